"""Canaries beside a model: each is seen by itself, through the real training path."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reticent.audit import (
    Watched,
    log_likelihood_ratios,
    one_run_bound,
    private_training,
    record,
    small_subject,
    step_level_bound,
)
from reticent.audit._problem import pose
from reticent.audit._white_box import shrunk
from reticent.clipping import (
    AdaptiveClipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
    groups,
)
from reticent.errors import AuditError, ConfigError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.sample import FullBatchSampler, PoissonSampler
from reticent.train import over_views


def plan(*, num_steps=20, noise_multiplier=1.0, clipping=None, sampler=None):
    return Plan(
        sampler=sampler or PoissonSampler(sampling_prob=0.1, expected_batch_size=20.0),
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
        clipping=clipping or FlatClipping(max_norm=0.5),
        delta=1e-5,
    )


@pytest.mark.parametrize("directions", ["dirac", "random"])
def test_a_canarys_score_is_its_presence_and_noise_of_the_claimed_size(directions):
    quiet = plan(noise_multiplier=1e-3)
    seen = record(
        private_training,
        small_subject(quiet),
        num_canaries=60,
        num_rows=16,
        directions=directions,
        num_steps=6,
    )
    assert seen.included.any() and not seen.included.all()
    assert np.abs(seen.scores - seen.included).max() < 6e-3


def test_who_took_part_is_what_was_drawn():
    seen = record(private_training, small_subject(plan()), num_canaries=200, num_rows=16, seed=3)
    assert 0.07 < seen.included.mean() < 0.13  # 4,000 draws at 0.1
    assert 0.9 < (seen.scores - seen.included).std() < 1.1


def test_full_batches_toss_coins_so_that_there_is_something_to_compare_with():
    full = plan(sampler=FullBatchSampler(num_examples=40), num_steps=2)
    seen = record(private_training, small_subject(full), num_canaries=40, num_rows=8)
    assert 0 < seen.member.sum() < 40
    assert (seen.included == seen.member).all()


@pytest.mark.parametrize(("seed", "how_many"), [(1, "none"), (2, "all")])
def test_coins_that_all_fell_alike_are_refused_before_training(seed, how_many):
    full = small_subject(plan(sampler=FullBatchSampler(num_examples=40), num_steps=2))
    with pytest.raises(AuditError, match=f"{how_many} of 2 canaries were put into the data") as caught:
        record(pytest.fail, full, num_canaries=2, num_rows=8, seed=seed)
    assert caught.value.code == "audit-saw-nothing"


def test_random_directions_are_orthonormal():
    model = Watched(
        torch.nn.Linear(1, 1), lambda m, x: x, num_canaries=30, directions="random", steepness=1.0
    )
    along = model.along.double()
    assert torch.allclose(along[1:] @ along[1:].T, torch.eye(30, dtype=torch.float64), atol=1e-6)
    assert not along[0].any()


def test_the_shrunk_plan_keeps_what_the_claim_is_about():
    small = shrunk(plan(), num_rows=500, num_steps=7)
    assert small.mechanism == plan().mechanism
    assert small.expected_batch_size == 50.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clipping": AdaptiveClipping(initial_max_norm=1.0)}, "its clipping norm adapts"),
        ({"noise_multiplier": 0.0}, "claims no privacy"),
    ],
)
def test_what_canaries_cannot_measure_is_refused(changes, words):
    with pytest.raises(AuditError, match=words) as caught:
        record(private_training, small_subject(plan(**changes)))
    assert caught.value.code == "audit-subject"


def test_too_few_canaries_are_refused():
    with pytest.raises(ConfigError, match="at least 2 canaries") as caught:
        record(private_training, small_subject(plan()), num_canaries=1)
    assert caught.value.code == "audit-size"


def test_a_trainer_that_steps_nothing_or_too_little_is_refused():
    with pytest.raises(AuditError, match="saw no step") as caught:
        record(lambda problem: None, small_subject(plan()), num_canaries=4, num_rows=8)
    assert caught.value.code == "audit-saw-nothing"

    def once(problem):
        problem.model(problem.dataset).sum().backward()
        problem.optimizer.step()

    with pytest.raises(AuditError, match="stepped the optimizer 1 times") as caught:
        record(once, small_subject(plan()), num_canaries=4, num_rows=8)
    assert caught.value.code == "audit-steps"


@pytest.mark.parametrize("directions", ["dirac", "random"])
@pytest.mark.parametrize(
    "clipping",
    [
        PerLayerClipping(max_norm=1.0),
        PerLayerClipping(max_norm=2.0, split="size"),
        GroupedClipping(max_norms=(("2.*", 0.3), ("*", 1.5))),
    ],
)
def test_a_canary_of_all_groups_reaches_the_whole_bound(clipping, directions):
    split = plan(clipping=clipping, noise_multiplier=1e-3)
    seen = record(
        private_training,
        small_subject(split),
        num_canaries=40,
        num_rows=16,
        num_steps=4,
        directions=directions,
    )
    assert seen.included.any()
    assert np.abs(seen.scores - seen.included).max() < 6e-3


def test_groups_hold_what_the_plan_clips_together():
    grouped = plan(clipping=GroupedClipping(max_norms=(("2.*", 0.3), ("*", 1.5))))
    subject = small_subject(grouped)
    problem, _ = pose(
        subject, plan=grouped, member=np.ones(3, bool), num_rows=8, directions="dirac", folder=Path("x")
    )
    sizes = {name: p.numel() for name, p in problem.model.named_parameters()}
    held = groups(problem.plan.clipping, sizes)
    assert [part.max_norm for part in held] == [0.3, 1.5]
    canary = 3 + 1  # row 0 of the embedding is no canary's
    assert sum(sizes[name] for name in held[0].parameters) == 64 * 10 + 10 + canary
    assert sum(sizes[name] for name in held[1].parameters) == 64 * 64 + 64 + canary
    assert sum(sizes.values()) == sum(p.numel() for p in subject.build().parameters()) + 2 * canary


def test_canaries_stand_beside_units_of_several_views():
    def rows(num):
        generator = torch.Generator().manual_seed(0)
        return torch.randn((num, 3, 64), generator=generator), torch.arange(num).remainder(10).repeat(3, 1).T

    quiet = plan(noise_multiplier=1e-3)
    subject = small_subject(quiet)
    of_views = replace(subject, losses=over_views(subject.losses), rows=rows)
    seen = record(private_training, of_views, num_canaries=40, num_rows=16, num_steps=6)
    assert seen.included.any()
    assert np.abs(seen.scores - seen.included).max() < 6e-3


def calibrated(epsilon, num_steps=100):
    return Plan.calibrate(
        budget=Budget(epsilon=epsilon, delta=1e-5),
        sampler=PoissonSampler(sampling_prob=0.1, expected_batch_size=120.0),
        num_steps=num_steps,
        clipping=FlatClipping(max_norm=1.0),
    )


@pytest.mark.slow
def test_a_thousand_canaries_show_most_of_a_claim_of_eight():
    claimed = calibrated(8.0)
    found = []
    for _ in range(3):
        seen = record(private_training, small_subject(claimed), num_rows=64)
        bound = step_level_bound(
            seen, mechanism=claimed.mechanism, num_steps=100, delta=1e-5, confidence=1 - 1e-6
        )
        found.append(bound.epsilon)
    assert max(found) <= 8.0
    assert np.median(found) > 6.0  # 6.5 over 20 runs: see benchmarks/results


@pytest.mark.slow
def test_one_run_with_a_thousand_canaries_shows_something_of_a_claim_of_eight():
    claimed = calibrated(8.0)
    seen = record(private_training, small_subject(claimed), num_rows=64, coins=True)
    bound = one_run_bound(
        log_likelihood_ratios(seen, mechanism=claimed.mechanism),
        seen.member,
        delta=1e-5,
        confidence=0.95,
        mechanism=claimed.mechanism,
        num_steps=100,
    )
    assert 1.0 < bound.epsilon <= 8.0
