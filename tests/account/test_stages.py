"""Epsilon of steps that differ: against dp-accounting composed by hand, another accountant, and the truth."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

from reticent.account import calibrate_noise_scale, epsilon, first_steps, noise_multiplier_for
from reticent.account._contour import true_delta
from reticent.records import Budget, Mechanism, NeighbouringRelation

DELTA = 1e-5
# (q, sigma, steps): a batch that grows, a noise that changes as well, one that shrinks, and a full one last.
GROWING = ((0.01, 1.1, 25), (0.03, 1.1, 15))
NOISIER = ((0.02, 0.9, 20), (0.06, 1.4, 12), (0.01, 0.8, 8))
FULL = ((0.05, 2.0, 12), (1.0, 6.0, 4))


def step(q, sigma):
    scheme = "full-batch" if q == 1.0 else "poisson"
    return Mechanism(scheme=scheme, sampling_prob=q, noise_multiplier=sigma)


def segments(stages):
    return [(step(q, sigma), count) for q, sigma, count in stages]


def in_order(accountant, stages):
    """One stage after the other, as they ran; full batches, which are exact, as one Gaussian."""
    for q, sigma, count in stages:
        if q == 1.0:
            accountant.compose(dp_accounting.GaussianDpEvent(sigma / math.sqrt(count)))
        else:
            step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
            accountant.compose(step, count)
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("stages", [GROWING, NOISIER, FULL], ids=["growing", "noisier", "full"])
def test_stages_cost_what_dp_accounting_composes(stages):
    report = epsilon(segments(stages), delta=DELTA)
    assert report.epsilon_rdp == pytest.approx(in_order(RdpAccountant(), stages), rel=1e-6)
    by_pld = in_order(PLDAccountant(value_discretization_interval=1e-3), stages)  # the grid that ours takes
    assert report.epsilon_pld == pytest.approx(by_pld, abs=1e-6)
    assert report.epsilon == report.epsilon_pld


def test_the_comparison_sees_a_step_on_the_wrong_side_of_a_border():
    moved = ((0.01, 1.1, 24), (0.03, 1.1, 16))
    ours = epsilon(segments(GROWING), delta=DELTA).epsilon
    assert abs(epsilon(segments(moved), delta=DELTA).epsilon - ours) > 1e-3


@pytest.mark.parametrize("stages", [GROWING, NOISIER], ids=["growing", "noisier"])
def test_stages_are_at_the_truth_and_not_below_it(stages):
    report = epsilon(segments(stages), delta=DELTA)
    assert 0.98 * DELTA < true_delta(list(stages), report.epsilon) <= DELTA


def test_a_second_accountant_agrees_on_stages():
    kinds = [
        PoissonSubsampledGaussianMechanism(noise_multiplier=sigma, sampling_probability=q)
        for q, sigma, _ in NOISIER
    ]
    counts = [count for _, _, count in NOISIER]
    accountant = PRVAccountant(
        prvs=kinds, max_self_compositions=counts, eps_error=0.01, delta_error=1e-3 * DELTA
    )
    low, _, high = accountant.compute_epsilon(delta=DELTA, num_self_compositions=counts)
    assert low <= epsilon(segments(NOISIER), delta=DELTA).epsilon <= high
    less = [(q, 0.97 * sigma, count) for q, sigma, count in NOISIER]
    assert epsilon(segments(less), delta=DELTA).epsilon > high


@pytest.mark.parametrize("relation", [NeighbouringRelation.ZERO_OUT, NeighbouringRelation.REPLACE_ONE])
def test_one_noise_is_found_for_all_stages_as_for_one_of_them(relation):
    budget = Budget(epsilon=2.0, delta=DELTA)

    def one(sigma):
        return [(step(0.02, sigma), 30)]

    def two(sigma):
        return [(step(0.02, sigma), 30), (step(0.05, 1.5 * sigma), 20)]

    found = calibrate_noise_scale(budget=budget, segments=one, relation=relation)
    assert found == noise_multiplier_for(
        lambda sigma: step(0.02, sigma), budget=budget, num_steps=30, relation=relation
    )
    found = calibrate_noise_scale(budget=budget, segments=two, relation=relation)
    assert 0.999 * 2.0 <= epsilon(two(found), delta=DELTA, relation=relation).epsilon <= 2.0


def test_first_steps_cut_segments_where_they_end():
    history = [(step(0.1, 1.0), 3), (step(0.1, 2.0), 4)]
    assert first_steps(history, 0) == ()
    assert first_steps(history, 2) == ((step(0.1, 1.0), 2),)
    assert first_steps(history, 3) == ((step(0.1, 1.0), 3),)
    assert first_steps(history, 6) == ((step(0.1, 1.0), 3), (step(0.1, 2.0), 3))
    assert first_steps(history, 9) == tuple(history)


def test_first_steps_put_neighbours_of_one_mechanism_together():
    history = [(step(0.1, 1.0), 3), (step(0.1, 1.0), 2), (step(0.1, 2.0), 1), (step(0.1, 1.0), 1)]
    together = ((step(0.1, 1.0), 5), (step(0.1, 2.0), 1), (step(0.1, 1.0), 1))
    assert first_steps(history, 7) == together
    assert first_steps(history, 4) == ((step(0.1, 1.0), 4),)
