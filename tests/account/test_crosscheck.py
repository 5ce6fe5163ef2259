"""Cross-checks: they hold for what is reported, and would not for a wrong number."""

import dataclasses
import math

import dp_accounting
import pytest

from reticent.account import _crosscheck as module
from reticent.account import checked_epsilon, cross_check, epsilon
from reticent.account._events import merge_phases
from reticent.errors import AccountingError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import FixedSizeSampler, TruncatedPoissonSampler


def poisson(q, sigma):
    return Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=sigma)


FULL = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=20.0)
SMALL = [(poisson(0.02, 2.0), 200)]
HISTORIES = {
    "small": (SMALL, 1e-5),
    "cifar": ([(poisson(4096 / 50_000, 3.0), 2000)], 1e-5),
    "sst-2": ([(poisson(1024 / 67_349, 0.8), 198)], 1e-5),
    "two kinds": ([(poisson(0.02, 1.0), 300), (poisson(0.02, 2.0), 300)], 1e-5),
    "full batch": ([(FULL, 100)], 1e-6),
    "both": ([(FULL, 10), (poisson(0.02, 1.0), 100)], 1e-6),
    "tiny delta": ([(poisson(0.01, 1.0), 10_000)], 1e-10),
    "one step": ([(poisson(0.5, 1.0), 1)], 1e-5),
}


REAL = ("one step", "cifar", "sst-2", "two kinds", "tiny delta", "both")
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in REAL else n for n in HISTORIES]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reported_passes_every_check(name):
    segments, delta = HISTORIES[name]
    checks = cross_check(epsilon(segments, delta=delta), segments)
    assert [check for check in checks if check.holds is False] == []
    assert sum(check.holds is True for check in checks) >= 2


@pytest.mark.parametrize("name", ["small", "full batch", pytest.param("cifar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("factor", [0.999, 0.9])
def test_an_epsilon_that_is_too_small_is_caught_by_the_integral(name, factor):
    """It knows nothing of how the number was computed."""
    segments, delta = HISTORIES[name]
    report = epsilon(segments, delta=delta)
    less = dataclasses.replace(report, epsilon=factor * report.epsilon)
    failed = {check.name for check in cross_check(less, segments) if check.holds is False}
    assert failed == {"true delta by a contour integral"}


def test_an_accountant_that_loses_steps_is_caught(monkeypatch):
    real = module.epsilon
    monkeypatch.setattr(module, "epsilon", lambda s, **o: real([(m, int(0.8 * n)) for m, n in s], **o))
    with pytest.raises(AccountingError, match="disagree") as caught:
        checked_epsilon(SMALL, delta=1e-5)
    assert caught.value.code == "accountants-disagree"


def test_a_wrong_grid_is_caught(monkeypatch):
    real = module.pld_epsilon
    monkeypatch.setattr(module, "pld_epsilon", lambda *given: 1.2 * real(*given))
    failed = {c.name for c in cross_check(epsilon(SMALL, delta=1e-5), SMALL) if c.holds is False}
    assert failed == {"PLD on a second grid"}


def test_nothing_spent_and_nothing_private_need_no_second_opinion():
    assert checked_epsilon([], delta=1e-5).epsilon == 0.0
    none = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.1, noise_multiplier=0.0)
    assert checked_epsilon([(none, 1)], delta=1e-5).epsilon == math.inf
    checked_epsilon([(FULL, 1)], delta=1e-5, relation=NeighbouringRelation.REPLACE_ONE)


@pytest.mark.parametrize(("q", "noise", "steps"), [(0.2, 8.0, 2), (1.0, 60.0, 2), (0.2, 60.0, 100)])
def test_a_tiny_epsilon_whose_best_order_is_large_is_no_disagreement(q, noise, steps):
    scheme = SamplingScheme.FULL_BATCH if q == 1.0 else SamplingScheme.POISSON
    segments = [(Mechanism(scheme=scheme, sampling_prob=q, noise_multiplier=noise), steps)]
    assert checked_epsilon(segments, delta=1e-5) == epsilon(segments, delta=1e-5)


@pytest.mark.parametrize("name", ["cifar", "sst-2", "full batch", "one step"])
def test_integer_orders_are_those_of_the_library(name):
    """Our closed form against dp-accounting's, at the very same orders."""
    segments, delta = HISTORIES[name]
    phases = merge_phases(segments)
    theirs = dp_accounting.rdp.RdpAccountant(orders=module._ORDERS)
    for phase in phases:
        event = dp_accounting.GaussianDpEvent(phase.noise_multiplier)
        if phase.sampled:
            event = dp_accounting.PoissonSampledDpEvent(phase.sampling_prob, event)
        theirs.compose(event, phase.num_steps)
    ours = module.integer_rdp_epsilon(phases, delta=delta)
    assert ours == pytest.approx(theirs.get_epsilon(delta), rel=1e-6)


CUT = TruncatedPoissonSampler(num_examples=60_000, expected_batch_size=600, max_batch_size=620).mechanism(1.0)
FIXED = FixedSizeSampler(num_examples=1000, batch_size=20).mechanism(2.0)
SIZED = {
    "truncated": (CUT, NeighbouringRelation.ZERO_OUT),
    "fixed": (FIXED, NeighbouringRelation.REPLACE_ONE),
}


@pytest.mark.parametrize("name", SIZED)
def test_batches_of_a_bounded_size_have_other_opinions_too(name):
    """Which hold for what is reported, and not if it is forgotten that replacing moves twice the bound."""
    mechanism, relation = SIZED[name]
    report = checked_epsilon([(mechanism, 200)], delta=1e-5, relation=relation)
    checks = cross_check(report, [(mechanism, 200)])
    assert [check.holds for check in checks] == [True] * (2 if name == "truncated" else 1)
    less = dataclasses.replace(report, epsilon=(0.95 if name == "truncated" else 0.5) * report.epsilon)
    assert False in [check.holds for check in cross_check(less, [(mechanism, 200)])]


@pytest.mark.parametrize("prob", [1.0, 0.05])
def test_replacing_an_example_is_checked_and_half_its_cost_is_caught(prob):
    """dp-accounting's RDP states half of it (see `_replace`): a report that did so must not get through."""
    scheme = SamplingScheme.FULL_BATCH if prob == 1.0 else SamplingScheme.POISSON
    steps = [(Mechanism(scheme=scheme, sampling_prob=prob, noise_multiplier=2.0), 20)]
    report = epsilon(steps, delta=1e-5, relation=NeighbouringRelation.REPLACE_ONE)
    checks = cross_check(report, steps, integral=False)
    assert checks and all(check.holds for check in checks)
    halved = dataclasses.replace(
        report, epsilon=report.epsilon * 0.45, epsilon_pld=report.epsilon * 0.45, epsilon_rdp=None
    )
    found = cross_check(halved, steps)
    assert any(check.holds is False for check in found)
