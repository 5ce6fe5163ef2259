"""The audit is itself tested: each planted mistake is flagged, and the trainer without one is not.

A right trainer fails a probe with probability at most 1e-6 in each test here, and its bound exceeds the claim
with probability at most 1e-6.
"""

from dataclasses import replace

import numpy as np
import pytest

from reticent.audit import Claim, audit_steps, neighbour_probe, noise_probes, private_training, small_subject
from reticent.clipping import FlatClipping, GroupedClipping, PerLayerClipping
from reticent.errors import AuditError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.sample import PoissonSampler
from tests.audit import planted

PLAN = Plan.calibrate(
    budget=Budget(epsilon=8.0, delta=1e-5),
    sampler=PoissonSampler(sampling_prob=0.1, expected_batch_size=30.0),
    num_steps=40,
    clipping=FlatClipping(max_norm=planted.C),
)
CLAIM = Claim(epsilon=8.0, delta=1e-5, mechanism=PLAN.mechanism, num_steps=40)
SURE = 1 - 1e-6


def audited(trainer, **changes):
    return audit_steps(
        small_subject(PLAN), claim=CLAIM, trainer=trainer, num_canaries=240, num_rows=64, **changes
    )


def failed(result):
    return {probe.name for probe in result.probes if not probe.passed}


def test_a_right_trainer_passes_and_the_bound_is_worth_having():
    result = audited(planted.trainer(), confidence=SURE)
    assert result.passed, result
    assert 3.0 < result.bound.epsilon <= 8.0


def test_the_librarys_own_path_passes():
    result = audited(private_training, directions="random", confidence=SURE)
    assert result.passed, result
    assert 3.0 < result.bound.epsilon <= 8.0


@pytest.mark.parametrize(
    ("parts", "probe"),
    [
        ({"noise": planted.no_noise}, "noise size"),
        ({"noise": planted.noise_for_each_of_four_parts}, "noise size"),
        ({"sums": planted.clipped_after_averaging}, "sensitivity"),
    ],
)
def test_mistakes_that_the_bound_sees(parts, probe):
    result = audited(planted.trainer(**parts))
    assert result.refuted
    assert result.bound.epsilon > 8.0
    assert not result.passed
    assert probe in failed(result)


def half_the_noise(problem):
    """The library's own training, by a plan of half the noise."""
    plan = replace(problem.plan, noise_multiplier=problem.plan.noise_multiplier / 2.0)
    private_training(replace(problem, plan=plan))


@pytest.mark.slow
@pytest.mark.parametrize(
    "clipping",
    [PerLayerClipping(max_norm=1.0), GroupedClipping(max_norms=(("2.*", 0.3), ("*", 1.5)))],
)
def test_half_the_noise_of_clipping_by_groups(clipping):
    subject = small_subject(replace(PLAN, clipping=clipping))
    size = {"num_rows": 64, "num_steps": 20}
    halved = audit_steps(subject, claim=CLAIM, trainer=half_the_noise, probes=False, num_canaries=240, **size)
    assert halved.refuted and halved.bound.epsilon > 16.0
    right = audit_steps(subject, claim=CLAIM, confidence=SURE, num_canaries=480, **size)
    assert right.passed, right
    assert right.bound.epsilon > 3.0  # and so not that of one group alone


def test_equal_seeds_of_two_workers_noise_is_seen_by_a_probe_only():
    result = audited(planted.trainer(noise=planted.equal_seeds), confidence=SURE)
    assert "noise independence" in failed(result)
    assert not result.passed
    assert not result.refuted  # along single coordinates the noise is as large as claimed


def test_equal_seeds_of_two_workers_draws():
    assert "sampling independence" in failed(audited(planted.trainer(draws=planted.equal_draws)))


def test_shuffling_sold_as_poisson():
    found = audited(planted.trainer(draws=planted.shuffled), num_steps=80)  # enough for turns to be counted
    assert "spread of turns" in failed(found)


@pytest.mark.parametrize("how_many", ["none", "all"])
def test_an_audit_of_canaries_that_all_or_none_took_part_is_refused_unless_a_probe_sees_it(how_many):
    def draws(num_rows, plan):
        return [np.arange(num_rows if how_many == "all" else 0)] * plan.num_steps

    rigged = planted.trainer(draws=draws)
    with pytest.raises(AuditError, match=f"{how_many} of 240 canaries took part in 4 steps") as caught:
        audited(rigged, num_steps=4, probes=False)
    assert caught.value.code == "audit-saw-nothing"
    assert "sampling rate" in failed(audited(rigged, num_steps=4))


def test_where_no_canary_took_part_by_chance_nothing_is_said_to_have_been_tested():
    """A small sampling probability makes it likely, so that no probe fails; those to come are not run."""
    seldom = replace(PLAN, sampler=PoissonSampler(sampling_prob=1e-4, expected_batch_size=0.03))
    claim, calls = replace(CLAIM, mechanism=seldom.mechanism), []
    how = {"num_canaries": 60, "num_steps": 4, "confidence": SURE}

    def train(problem):
        calls.append(problem)
        planted.trainer(draws=lambda num_rows, plan: [np.arange(0)] * plan.num_steps)(problem)

    with pytest.raises(AuditError, match="Nothing was tested: none of 60 canaries") as caught:
        audit_steps(small_subject(seldom), claim=claim, trainer=train, **how)
    assert caught.value.code == "audit-saw-nothing" and len(calls) == 1


def test_a_divisor_that_tells_how_many_rows_were_drawn():
    assert "noise of each step" in failed(audited(planted.divided_by_the_batch, num_steps=80))


@pytest.mark.parametrize("noise", [planted.noise_on_weights_only, planted.same_noise_every_step])
def test_noise_that_is_missing_or_repeated_away_from_the_canaries(noise):
    found = noise_probes(planted.trainer(noise=noise), small_subject(PLAN), chance=1e-3)
    assert not all(probe.passed for probe in found)


def test_noise_that_every_run_repeats():
    found = noise_probes(planted.noise_from_a_fixed_seed, small_subject(PLAN), chance=1e-3)
    assert [probe.passed for probe in found] == [True, False]
    assert "two steps carry related noise (cosine 1.00)" in found[1].finding


def test_forgotten_ties_are_seen_by_the_neighbours_and_kept_ones_pass():
    forgot = neighbour_probe(planted.trainer(sums=planted.ties_forgotten), planted.tied_subject(PLAN))
    kept = neighbour_probe(private_training, planted.tied_subject(PLAN))
    assert not forgot.passed
    assert kept.passed, kept
