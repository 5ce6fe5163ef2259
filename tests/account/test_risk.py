"""Bounds on attacks: pinned to separately computed values, and valid against the worst mechanism."""

import pytest
from scipy.stats import norm

from reticent.account import epsilon, risk
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme


def poisson(q, sigma):
    return Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=sigma)


FULL = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=2.0)


def of(segments, delta=1e-5, **options):
    return risk(epsilon(segments, delta=delta, **options), segments)


# Computed by riskcal 1.5.1 on the composed privacy loss distribution.
@pytest.mark.parametrize(
    ("q", "sigma", "num_steps", "advantage", "success"),
    [
        (4096 / 50_000, 3.0, 2000, 0.467, {1e-5: 0.0013, 1e-3: 0.0335, 1e-2: 0.142, 0.1: 0.4875}),
        pytest.param(
            1024 / 67_349,
            0.8,
            198,
            0.152,
            {1e-5: 0.0001, 1e-3: 0.005, 1e-2: 0.032, 0.1: 0.195},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_risks_of_known_runs(q, sigma, num_steps, advantage, success):
    found = of([(poisson(q, sigma), num_steps)])
    assert found.advantage == pytest.approx(advantage, abs=2e-3)
    reconstruction = dict(found.reconstruction)
    for prior, bound in success.items():
        assert reconstruction[prior] == pytest.approx(bound, rel=0.02, abs=6e-5)


def test_full_batches_have_the_gaussian_curve():
    found = of([(FULL, 4)])
    for alpha, beta in found.trade_off:
        assert beta == pytest.approx(norm.cdf(norm.isf(alpha) - 1.0), rel=1e-9)
    assert found.advantage == pytest.approx(2 * norm.cdf(0.5) - 1, rel=1e-9)
    twice = of([(FULL, 4)], relation=NeighbouringRelation.REPLACE_ONE)
    assert twice.advantage == pytest.approx(2 * norm.cdf(1.0) - 1, rel=1e-9)


def test_no_test_of_one_step_beats_the_curve():
    """The likelihood-ratio test is the best there is; its errors are in closed form."""
    q, sigma = 0.5, 1.0
    found = of([(poisson(q, sigma), 1)])
    for alpha, beta in found.trade_off:
        threshold = norm.isf(alpha)
        power = (1 - q) * alpha + q * norm.sf(threshold - 1.0)
        assert beta <= 1 - power + 1e-6
        assert beta >= 1 - power - 0.05


def test_without_a_pld_the_bounds_come_from_epsilon_alone_and_are_weaker():
    segments = [(poisson(0.01, 2.0), 1000)]
    found = of(segments, delta=1e-13)
    assert found.source == "(epsilon, delta) alone"
    assert found.advantage > of(segments, delta=1e-5).advantage


def test_nothing_spent_is_guessing_and_no_noise_is_everything():
    assert of([]).advantage == 0.0
    assert all(success == pytest.approx(prior) for prior, success in of([]).reconstruction)
    open_run = of([(poisson(0.1, 0.0), 1)])
    assert open_run.advantage == 1.0
    assert all(success == 1.0 for _, success in open_run.reconstruction)
