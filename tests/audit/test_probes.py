"""Probes: right mechanisms seldom fail them, at the chance that they were given; wrong ones do.

At a chance of 0.05 the number of false alarms in 100 runs is at most Bin(100, 0.05): above 13 with
probability 5e-4; seeds are fixed.
"""

import numpy as np
import pytest

from reticent.audit import Recording
from reticent.audit._probes import moved_probe, noise_fresh, noise_size, recording_probes, sampling
from reticent.records import Mechanism, SamplingScheme

RUNS, TOO_MANY, CHANCE = 100, 13, 0.05
NOISE, Q = 0.8, 0.1
MECHANISM = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=Q, noise_multiplier=NOISE)


def right(rng, num_steps=30, num=200):
    included = rng.random((num_steps, num)) < Q
    scores = included + NOISE * rng.standard_normal((num_steps, num))
    return Recording(scores=scores, included=included, member=np.ones(num, dtype=bool))


def test_a_right_recording_seldom_fails_any_of_its_probes():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(RUNS):
        probes = recording_probes(right(rng), mechanism=MECHANISM, noise=NOISE, chance=CHANCE)
        alarms += not all(probe.passed for probe in probes)
    assert alarms <= TOO_MANY


def test_right_noise_seldom_fails_and_noise_a_fifth_too_small_always_does():
    rng = np.random.default_rng(2)
    tensors = [[("a", rng.standard_normal(2000)), ("b", rng.standard_normal((3, 50)))] for _ in range(RUNS)]
    assert sum(not noise_size(t, std=1.0, chance=CHANCE).passed for t in tensors) <= TOO_MANY
    assert all(not noise_size(t, std=1.25, chance=1e-3).passed for t in tensors[:20])
    many = [(f"t{k}", 0.99 * rng.standard_normal(1000)) for k in range(200)]
    assert "'all of them' got 0.99" in noise_size(many, std=1.0, chance=1e-3).finding


def test_noise_that_is_no_normal_and_noise_that_is_missing():
    rng = np.random.default_rng(3)
    assert "not normal" in noise_fresh([rng.laplace(size=5000)], std=1.0, chance=1e-3).finding
    silent = noise_fresh([np.zeros(50), rng.standard_normal(50)], std=1.0, chance=1e-3)
    assert silent.finding == "1 steps have no noise" and not silent.passed


def test_the_same_noise_in_two_steps_and_at_a_distance():
    rng = np.random.default_rng(4)
    z = rng.standard_normal(1000)
    assert "two steps" in noise_fresh([z, z], std=1.0, chance=1e-3).finding
    assert "distance 500" in noise_fresh([np.concatenate([z[:500], z[:500]])], std=1.0, chance=1e-3).finding


@pytest.mark.parametrize(
    ("draw", "probe"),
    [
        (lambda rng: rng.random((60, 300)) < 1.3 * Q, "sampling rate"),
        (lambda rng: np.stack([rng.permutation(np.arange(300) < 30) for _ in range(60)]), "batch sizes"),
        (lambda rng: np.repeat(rng.random((60, 150)) < Q, 2, axis=1), "independence"),
        (lambda rng: np.repeat(rng.random((30, 300)) < Q, 2, axis=0), "independence"),
    ],
)
def test_draws_that_are_not_the_claimed_ones(draw, probe):
    found = sampling(draw(np.random.default_rng(5)), mechanism=MECHANISM, chance=1e-3)
    assert any(probe in p.name and not p.passed for p in found), found


def test_full_batches_leave_nobody_out():
    full = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=1.0)
    everyone = np.ones((3, 9), dtype=bool)
    assert sampling(everyone, mechanism=full, chance=1e-3)[0].passed
    everyone[1, 2] = False
    assert not sampling(everyone, mechanism=full, chance=1e-3)[0].passed


def test_a_release_that_moves_by_more_than_the_bound():
    assert moved_probe([0.3, 1.0], slack=1e-4).passed
    assert not moved_probe([0.3, 1.01], slack=1e-4).passed


def test_few_coordinates_are_enough_to_see_repeated_noise_and_seldom_seem_to():
    rng = np.random.default_rng(6)
    z = rng.standard_normal(20)
    assert "cosine 1.00" in noise_fresh([z, z], std=1.0, chance=1e-3).finding
    pairs = [rng.standard_normal((2, 5)) for _ in range(RUNS)]
    assert sum(not noise_fresh(list(pair), std=1.0, chance=CHANCE).passed for pair in pairs) <= TOO_MANY


def test_what_few_draws_cannot_show_is_said_to_be_untested():
    rare = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.001, noise_multiplier=1.0)
    found = sampling(np.random.default_rng(7).random((50, 300)) < 0.001, mechanism=rare, chance=1e-3)
    assert [p.tested for p in found] == [True, False, False, False]
    assert all(p.passed for p in found)


@pytest.mark.parametrize(("num_steps", "num", "q"), [(30, 60, 0.5), (400, 300, 0.02), (60, 1000, 0.1)])
def test_counts_of_right_draws_spread_as_they_should(num_steps, num, q):
    rng = np.random.default_rng(8)
    claimed = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=1.0)
    alarms = sum(
        not all(p.passed for p in sampling(rng.random((num_steps, num)) < q, mechanism=claimed, chance=0.05))
        for _ in range(RUNS)
    )
    assert alarms <= TOO_MANY
