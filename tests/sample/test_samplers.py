"""Samplers: each example joins with probability q, independently, whatever the user seeded.

False alarms: draws here are unseeded, as in real use, so each statistical check is set to a rate of
at most 1e-6.
"""

import dataclasses
import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from reticent.errors import ConfigError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import FullBatchSampler, PoissonSampler, SampleStream

ALPHA = 1e-6
DRAWS = 20_000
N, B = 40, 6.0  # q = 0.15
Q = B / N


def taking_part(sampler: PoissonSampler, stream: SampleStream, num_draws: int, n: int = N) -> np.ndarray:
    """(num_draws, n) matrix: 1 where the example was drawn."""
    drawn = np.zeros((num_draws, n))
    for row in drawn:
        row[sampler.draw(n, stream)] = 1
    return drawn


@pytest.fixture(scope="module", params=["public N", "secret N", "reproducible"])
def matrix(request) -> np.ndarray:
    public = PoissonSampler(num_examples=N, expected_batch_size=B)
    secret = PoissonSampler(sampling_prob=Q, expected_batch_size=B)
    stream = SampleStream.reproducible(5) if request.param == "reproducible" else SampleStream.fresh()
    return taking_part(secret if request.param == "secret N" else public, stream, DRAWS)


def inclusion_pvalue(matrix: np.ndarray, q: float) -> float:
    """Chi-square of the N inclusion counts against Binomial(draws, q)."""
    draws, n = matrix.shape
    z = (matrix.sum(0) - draws * q) / math.sqrt(draws * q * (1 - q))
    return float(stats.chi2.sf(np.square(z).sum(), n))


def pair_pvalue(matrix: np.ndarray, q: float) -> float:
    """Chi-square of the co-inclusion counts of N / 2 disjoint pairs against Binomial(draws, q^2)."""
    draws, n = matrix.shape
    together = (matrix[:, : n // 2] * matrix[:, n // 2 :]).sum(0)
    z = (together - draws * q**2) / math.sqrt(draws * q**2 * (1 - q**2))
    return float(stats.chi2.sf(np.square(z).sum(), n // 2))


def size_pvalue(matrix: np.ndarray, q: float) -> float:
    """Chi-square of the histogram of batch sizes against Binomial(N, q)."""
    draws, n = matrix.shape
    observed = np.bincount(matrix.sum(1).astype(int), minlength=n + 1)
    expected = draws * stats.binom.pmf(np.arange(n + 1), n, q)
    common = expected >= 25
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    return float(stats.chisquare(observed, expected).pvalue)


def shuffled_chunks(num_draws: int) -> np.ndarray:
    """The planted mistake: a shuffled loader with fixed batches, accounted as Poisson."""
    rng, rows = np.random.default_rng(0), []
    while len(rows) < num_draws:
        for chunk in rng.permutation(N).reshape(-1, 5):
            rows.append(np.isin(np.arange(N), chunk))
    return np.array(rows[:num_draws], dtype=float)


def test_inclusion_rate_pairs_and_sizes_follow_the_law(matrix):
    assert inclusion_pvalue(matrix, Q) > ALPHA
    assert pair_pvalue(matrix, Q) > ALPHA
    assert size_pvalue(matrix, Q) > ALPHA


def test_batch_sizes_have_mean_nq_and_variance_nq_times_one_minus_q(matrix):
    sizes, variance = matrix.sum(1), N * Q * (1 - Q)
    fourth = variance * (1 + 3 * (N - 2) * Q * (1 - Q))  # central moment
    assert abs(sizes.mean() - N * Q) < 5 * math.sqrt(variance / DRAWS)
    assert abs(sizes.var() - variance) < 5 * math.sqrt((fourth - variance**2) / DRAWS)


def test_consecutive_draws_are_independent(matrix):
    both = (matrix[:-1] * matrix[1:]).sum()
    trials = (DRAWS - 1) * N
    assert abs(both - trials * Q**2) < 6 * math.sqrt(3 * trials * Q**2)


def test_the_checks_reject_wrong_rates_and_fixed_batches():
    matrix = taking_part(
        PoissonSampler(sampling_prob=Q * 1.1, expected_batch_size=B), SampleStream.fresh(), DRAWS
    )
    assert inclusion_pvalue(matrix, Q) < ALPHA
    assert pair_pvalue(matrix, Q) < ALPHA
    fixed = shuffled_chunks(DRAWS)
    assert inclusion_pvalue(fixed, 5 / N) > ALPHA  # the rate is right, and all else is wrong
    assert pair_pvalue(fixed, 5 / N) < ALPHA
    assert size_pvalue(fixed, 5 / N) < ALPHA


@pytest.mark.parametrize(
    ("q", "n", "draws"), [(1e-7, 400_000_000, 400), (1e-5, 10_000_000, 200), (0.3, 20_000, 400)]
)
def test_the_rate_is_exact_for_tiny_and_large_probabilities(q, n, draws):
    sampler, stream = PoissonSampler(sampling_prob=q, expected_batch_size=1.0), SampleStream.fresh()
    count = sum(len(sampler.draw(n, stream)) for _ in range(draws))
    assert stats.binomtest(count, n * draws, q).pvalue > ALPHA
    assert stats.binomtest(count, n * draws, q * 1.195).pvalue < ALPHA  # a 32-bit uniform's rate at 1e-7


def test_positions_are_uniform_in_a_large_set():
    """Large sets take another path through NumPy's choice than small ones."""
    sampler, stream = PoissonSampler(sampling_prob=1e-3, expected_batch_size=1.0), SampleStream.fresh()
    n = 1_000_000
    positions = np.concatenate([sampler.draw(n, stream) for _ in range(200)]) / n
    assert stats.kstest(positions, "uniform").pvalue > ALPHA
    assert stats.kstest(positions**1.05, "uniform").pvalue < ALPHA


@pytest.mark.parametrize(
    ("q", "n"), [(0.1, 0), (0.1, 1), (0.5, 7), (0.02, 100_000), (1e-3, 100_000), (1.0, 9)]
)
def test_a_draw_is_sorted_distinct_and_in_range(q, n):
    sampler = PoissonSampler(sampling_prob=q, expected_batch_size=1.0)
    for _ in range(20):
        drawn = sampler.draw(n, SampleStream.fresh())
        assert drawn.dtype == np.int64
        assert drawn.ndim == 1
        assert (np.diff(drawn) > 0).all()
        assert ((drawn >= 0) & (drawn < n)).all()


def test_an_empty_batch_is_an_empty_array_and_counts_as_a_draw():
    sampler, stream = PoissonSampler(num_examples=10, expected_batch_size=0.2), SampleStream.fresh()
    batches = [sampler.draw(10, stream) for _ in range(2000)]
    empty = sum(len(batch) == 0 for batch in batches)
    assert stats.binomtest(empty, 2000, 0.98**10).pvalue > ALPHA


def test_probability_one_takes_everybody():
    drawn = PoissonSampler(num_examples=5, expected_batch_size=5).draw(5, SampleStream.fresh())
    assert drawn.tolist() == [0, 1, 2, 3, 4]


def test_user_seeds_fix_nothing():
    sampler = PoissonSampler(num_examples=1000, expected_batch_size=100)
    outputs = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        outputs.append([sampler.draw(1000, SampleStream.fresh()).tolist() for _ in range(3)])
    assert not any(a == b for a, b in itertools.product(*outputs))


def test_two_processes_with_equal_seeds_draw_independently():
    """Two ranks that share a stream let a known companion betray who takes part."""
    program = (
        "import random, sys, numpy; random.seed(0); numpy.random.seed(0)\n"
        "from reticent.sample import PoissonSampler, SampleStream\n"
        "s, stream = PoissonSampler(sampling_prob=0.1, expected_batch_size=1.0), SampleStream.fresh()\n"
        "sys.stdout.write(' '.join(map(str, s.draw(100_000, stream))))\n"
        "assert 'torch' not in sys.modules"
    )
    run = [sys.executable, "-c", program]
    a, b = (set(subprocess.run(run, check=True, capture_output=True).stdout.split()) for _ in range(2))
    assert stats.binomtest(len(a & b), 100_000, 0.01).pvalue > ALPHA


def test_a_reproducible_stream_repeats_and_can_start_later():
    sampler = PoissonSampler(num_examples=1000, expected_batch_size=100)

    def draws(stream: SampleStream, count: int) -> list[list[int]]:
        return [sampler.draw(1000, stream).tolist() for _ in range(count)]

    whole = draws(SampleStream.reproducible(3), 6)
    assert whole == draws(SampleStream.reproducible(3), 6)
    assert whole[4:] == draws(SampleStream.reproducible(3, start=4), 2)
    assert whole != draws(SampleStream.reproducible(4), 6)
    assert len({tuple(batch) for batch in whole}) == 6


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "sampler-parameters"),
        ({"expected_batch_size": 8.0}, "sampler-parameters"),
        ({"num_examples": 100}, "expected-batch-size"),
        ({"sampling_prob": 0.1}, "expected-batch-size"),
        ({"num_examples": 100, "expected_batch_size": 10.0, "sampling_prob": 0.2}, "sampler-parameters"),
        ({"num_examples": 0, "expected_batch_size": 1.0}, "num-examples"),
        ({"num_examples": -5, "expected_batch_size": 1.0}, "num-examples"),
        ({"num_examples": True, "expected_batch_size": 1.0}, "num-examples"),
        ({"num_examples": 100, "expected_batch_size": 101.0}, "expected-batch-size"),
        *(
            ({"sampling_prob": 0.1, "expected_batch_size": size}, "expected-batch-size")
            for size in (0.0, -1.0, math.nan, math.inf, True)
        ),
        *(
            ({"sampling_prob": prob, "expected_batch_size": 8.0}, "sampling-prob")
            for prob in (0.0, -0.1, 1.0000001, math.nan, math.inf, True)
        ),
        ({"num_examples": 10**9, "expected_batch_size": 5e-324}, "sampling-prob"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, code):
    with pytest.raises(ConfigError, match=rf"\[{code}\]"):
        PoissonSampler(**arguments)


@pytest.mark.parametrize("num_examples", [0, -1, True])
def test_a_full_batch_needs_examples(num_examples):
    with pytest.raises(ConfigError, match=r"num_examples must be an integer from 1.*\[num-examples\]"):
        FullBatchSampler(num_examples=num_examples)


def test_what_is_public_decides_the_relation():
    public = PoissonSampler(num_examples=60_000, expected_batch_size=4096)
    secret = PoissonSampler(sampling_prob=0.07, expected_batch_size=4096)
    full = FullBatchSampler(num_examples=100)
    assert public.relation is full.relation is NeighbouringRelation.ZERO_OUT
    assert secret.relation is NeighbouringRelation.ADD_OR_REMOVE
    assert public.sampling_prob == 4096 / 60_000
    assert (secret.num_examples, secret.expected_batch_size) == (None, 4096.0)
    assert (full.expected_batch_size, full.sampling_prob) == (100.0, 1.0)


def test_the_mechanism_has_the_very_probability_that_is_drawn_with():
    sampler = PoissonSampler(num_examples=3, expected_batch_size=1.0)
    assert sampler.mechanism(1.5) == Mechanism(
        scheme=SamplingScheme.POISSON, sampling_prob=sampler.sampling_prob, noise_multiplier=1.5
    )
    full = FullBatchSampler(num_examples=3).mechanism(0.5)
    assert full == Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=0.5)


@pytest.mark.parametrize(
    "sampler",
    [
        PoissonSampler(num_examples=3, expected_batch_size=1),
        PoissonSampler(sampling_prob=0.3, expected_batch_size=1),
        FullBatchSampler(num_examples=3),
    ],
)
def test_samplers_are_frozen_values(sampler):
    assert dataclasses.replace(sampler) == sampler
    assert hash(dataclasses.replace(sampler)) == hash(sampler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.num_examples = 4


@pytest.mark.parametrize("available", [0, 9, 11])
def test_a_public_number_of_examples_is_checked(available):
    for sampler in (
        PoissonSampler(num_examples=10, expected_batch_size=2),
        FullBatchSampler(num_examples=10),
    ):
        with pytest.raises(
            ConfigError, match=rf"num_examples = 10 public.* {available} examples.*\[data-size\]"
        ):
            sampler.draw(available, SampleStream.fresh())


def test_a_negative_number_of_examples_is_refused():
    with pytest.raises(ConfigError, match=r"must be >= 0.*\[data-size\]"):
        PoissonSampler(sampling_prob=0.5, expected_batch_size=2).draw(-1, SampleStream.fresh())


def test_a_full_batch_is_everybody_every_time():
    sampler, stream = FullBatchSampler(num_examples=4), SampleStream.fresh()
    for _ in range(3):
        drawn = sampler.draw(4, stream)
        assert drawn.tolist() == [0, 1, 2, 3]
        assert drawn.dtype == np.int64
