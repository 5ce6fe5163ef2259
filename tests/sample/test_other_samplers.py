"""Samplers beside Poisson and full batch: their laws, and that a run's ledger is accounted for by them.

False alarms: secret draws are unseeded, so each statistical check is set to a rate of at most 1e-6.
"""
# pyright: reportArgumentType=false

import math

import numpy as np
import pytest
from scipy import stats

from reticent.errors import ConfigError
from reticent.sample import FixedSizeSampler, PartitionSampler, SampleStream, TruncatedPoissonSampler

ALPHA = 1e-6
DRAWS = 4000
N = 12


def drawn(sampler, num_steps=DRAWS):
    """(steps, N): 1 where the example takes part."""
    stream, found = SampleStream.fresh(), np.zeros((num_steps, N))
    for step, row in enumerate(found):
        indices = sampler.draw(N, stream, step=step)
        assert indices.dtype == np.int64 and (np.diff(indices) > 0).all()
        row[indices] = 1
    return found


def pvalue(counts, trials, prob):
    """Chi-square of counts against Binomial(trials, prob), taken as independent."""
    z = (counts - trials * prob) / math.sqrt(trials * prob * (1 - prob))
    return float(stats.chi2.sf(np.square(z).sum(), len(z)))


def test_a_fixed_size_is_kept_and_every_set_of_that_size_is_as_likely():
    seen = drawn(FixedSizeSampler(num_examples=N, batch_size=2))
    assert (seen.sum(1) == 2).all()
    first, second = np.triu_indices(N, 1)
    pairs = np.array([(seen[:, a] * seen[:, b]).sum() for a, b in zip(first, second, strict=True)])
    assert stats.chisquare(pairs).pvalue > ALPHA
    again = (seen[1:] * seen[:-1]).sum()  # steps are independent: 2 * 2 / 12 in common
    assert abs(again - (DRAWS - 1) / 3) < 6 * math.sqrt(DRAWS / 3)


def test_truncated_poisson_is_poisson_whose_large_batches_are_cut_at_random():
    seen = drawn(TruncatedPoissonSampler(num_examples=N, expected_batch_size=4, max_batch_size=5))
    law = stats.binom.pmf(np.arange(N + 1), N, 1 / 3)
    sizes = np.bincount(seen.sum(1).astype(int), minlength=N + 1)[:6]
    expected = DRAWS * np.append(law[:5], law[5:].sum())
    assert stats.chisquare(sizes, expected * sizes.sum() / expected.sum()).pvalue > ALPHA
    share = float(np.minimum(np.arange(N + 1), 5) @ law) / N
    assert pvalue(seen.sum(0), DRAWS, share) > ALPHA
    assert pvalue(seen.sum(0), DRAWS, share * 1.15) < ALPHA  # the check can fail


@pytest.mark.parametrize("order", ["cyclic", "shuffled", "balls-in-bins"])
@pytest.mark.parametrize("num_batches", [1, 4, 5, 12])
def test_in_a_partition_every_example_takes_part_once_an_epoch(order, num_batches):
    seed = None if order == "cyclic" else 7
    sampler = PartitionSampler(num_examples=N, num_batches=num_batches, order=order, seed=seed)
    seen = drawn(sampler, 6 * num_batches + 3)
    for epoch in range(6):
        assert (seen[epoch * num_batches : (epoch + 1) * num_batches].sum(0) == 1).all()
    assert seen.sum(0).max() <= math.ceil(len(seen) / num_batches)
    assert (seen == drawn(sampler, len(seen))).all()  # and so does a run that goes on
    if order != "balls-in-bins":
        assert np.ptp(seen.sum(1)) <= 1


@pytest.mark.parametrize("order", ["shuffled", "balls-in-bins"])
def test_shuffles_and_bins_are_uniform_and_new_in_each_epoch(order):
    sampler = PartitionSampler(num_examples=N, num_batches=3, order=order, seed=1)
    seen = drawn(sampler, 3 * 1500).reshape(1500, 3, N)
    firsts = seen[:, 0]
    assert pvalue(firsts.sum(0), 1500, 1 / 3) > ALPHA
    both = (firsts[1:] * firsts[:-1]).sum()
    assert abs(both - 1499 * N / 9) < 6 * math.sqrt(1499 * N / 9)
    together = (firsts[:, :6] * firsts[:, 6:]).sum(0)
    prob = 1 / 9 if order == "balls-in-bins" else (4 * 3) / (12 * 11)
    assert pvalue(together, 1500, prob) > ALPHA
    other = PartitionSampler(num_examples=N, num_batches=3, order=order, seed=2)
    assert (drawn(other, 30) != seen.reshape(-1, N)[:30]).any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FixedSizeSampler(num_examples=5, batch_size=6), "from 1 to num_examples = 5"),
        (lambda: FixedSizeSampler(num_examples=5, batch_size=2.0), "must be an integer"),
        (
            lambda: TruncatedPoissonSampler(num_examples=5, expected_batch_size=2, max_batch_size=0),
            "max_batch",
        ),
        (
            lambda: TruncatedPoissonSampler(num_examples=5, expected_batch_size=6, max_batch_size=2),
            "more than",
        ),
        (lambda: PartitionSampler(num_examples=5, num_batches=2, order="poisson"), "order must be one of"),
        (lambda: PartitionSampler(num_examples=5, num_batches=2, order="shuffled"), "take a seed"),
        (lambda: PartitionSampler(num_examples=5, num_batches=2, order="cyclic", seed=1), "take no seed"),
        (lambda: PartitionSampler(num_examples=5, num_batches=6, order="cyclic"), "num_batches"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(
    "sampler",
    [
        FixedSizeSampler(num_examples=5, batch_size=2),
        TruncatedPoissonSampler(num_examples=5, expected_batch_size=2, max_batch_size=3),
        PartitionSampler(num_examples=5, num_batches=2, order="cyclic"),
    ],
)
def test_another_number_of_examples_is_refused(sampler):
    with pytest.raises(ConfigError, match="declares num_examples = 5 public"):
        sampler.draw(6, SampleStream.fresh(), step=0)
