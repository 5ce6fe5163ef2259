"""Input canaries through a subject's own training: strong enough to refute, calm where nothing is wrong."""

import numpy as np
import pytest
import torch

from reticent.audit import (
    Claim,
    Subject,
    audit_rows,
    exposure_ranks,
    private_training,
    small_subject,
)
from reticent.audit._own_rows import mislabelled_rows
from reticent.clipping import AdaptiveClipping, FlatClipping, GroupedClipping
from reticent.errors import AuditError, ConfigError
from reticent.plan import Plan
from reticent.sample import PoissonSampler, TruncatedPoissonSampler
from tests.audit import planted


def plan(*, num_steps=60, noise_multiplier=8.0, clipping=None):
    return Plan(
        sampler=PoissonSampler(sampling_prob=0.2, expected_batch_size=30.0),
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
        clipping=clipping or FlatClipping(max_norm=planted.C),
        delta=1e-5,
    )


def claim_of(plan):
    return Claim(
        epsilon=plan.epsilon().epsilon, delta=1e-5, mechanism=plan.mechanism, num_steps=plan.num_steps
    )


def audited(plan, *, trainer=private_training, subject=None, num_canaries=300, **more):
    return audit_rows(
        subject or small_subject(plan),
        claim=claim_of(plan),
        trainer=trainer,
        num_canaries=num_canaries,
        num_rows=8,
        confidence=0.999,
        **more,
    )


@pytest.mark.slow
def test_a_trainer_that_adds_no_noise_is_refuted_and_one_that_does_is_not():
    claimed = plan(noise_multiplier=16.0)
    assert claim_of(claimed).epsilon < 0.4
    silent = audited(claimed, trainer=planted.trainer(noise=planted.no_noise))
    assert silent.refuted and not silent.passed
    right = audited(claimed)
    assert right.passed and right.bound.epsilon <= right.claim.epsilon
    assert right.num_steps == 60 and right.canaries == "inputs, mislabelled" and right.exposure is None


@pytest.mark.parametrize(
    "clipping",
    [AdaptiveClipping(initial_max_norm=1.0), GroupedClipping(max_norms=(("2.*", 1.0), ("*", 1.0)))],
)
def test_what_gradient_canaries_cannot_measure_inputs_can(clipping):
    result = audited(plan(clipping=clipping, num_steps=2), num_canaries=8, seed=1)
    assert result.passed and result.num_steps == 2


def test_the_divisor_tells_no_coins_and_ordinary_rows_are_always_there():
    seen = []
    for seed in range(3):
        with pytest.raises(AuditError, match="the same score"):  # it trains nothing
            audited(plan(num_steps=1), trainer=seen.append, num_canaries=10, seed=seed)
    assert len({problem.plan.expected_batch_size for problem in seen}) == 1
    assert len({len(problem.dataset[0]) for problem in seen}) > 1
    ordinary = small_subject(plan()).rows(10)
    for problem in seen:
        given = {(row.numpy().tobytes(), int(y)) for row, y in zip(*problem.dataset, strict=True)}
        assert {(row.numpy().tobytes(), int(y)) for row, y in zip(*ordinary, strict=True)} <= given


def test_a_mislabelled_row_has_an_ordinary_rows_input_and_another_label():
    x, y = torch.randn(50, 3), torch.arange(50) % 3
    wrong_x, wrong_y = mislabelled_rows((x, y))
    assert (wrong_x == x).all() and (wrong_y != y).all() and set(wrong_y.tolist()) == {0, 1, 2}
    several = torch.tensor([[0, 1], [0, 1], [1, 1]])
    assert (mislabelled_rows((x[:3], several))[1] != several).any(1).all()
    for rows in ((x, torch.zeros(50)), x, {"x": x}):
        with pytest.raises(AuditError, match="cannot be mislabelled") as caught:
            mislabelled_rows(rows)
        assert caught.value.code == "audit-subject"


def table_subject(plan):
    """A table with an entry for each row, which so is remembered by itself, and noise of its own."""

    def build():
        table = torch.nn.Embedding(1200, 1)
        torch.nn.init.normal_(table.weight, std=0.01, generator=torch.Generator().manual_seed(0))
        return table

    return Subject(
        name="table",
        plan=plan,
        build=build,
        losses=lambda model, given: model(given[0]).squeeze(1),
        rows=lambda num: (torch.arange(num), torch.zeros(num)),
    )


@pytest.mark.slow
def test_random_tokens_that_were_learned_are_exposed_and_others_are_not():
    claimed = plan(num_steps=4)
    result = audited(
        claimed,
        subject=table_subject(claimed),
        trainer=planted.trainer(
            noise=planted.no_noise, draws=lambda num, plan: [np.arange(num)] * plan.num_steps
        ),
        num_canaries=100,
        kind="random tokens",
        strange=lambda num: (torch.arange(100, 100 + num), torch.zeros(num)),
    )
    assert result.exposure is not None
    assert result.exposure.num_references == 1000
    assert result.exposure.bits_in > 5 > 2 > result.exposure.bits_out
    assert result.to_dict()["exposure"]["rank_in"] == result.exposure.rank_in


def test_exposure_is_that_of_the_rank_and_equal_losses_count_as_before_it():
    references = np.arange(1.0, 8.0)
    found = exposure_ranks(np.array([0.0, 9.0, 1.0]), references, np.array([True, False, False]))
    assert (found.bits_in, found.rank_in) == (3.0, 1.0)
    assert (found.bits_out, found.rank_out) == (1.0, 5.0)  # of ranks 8 and 2
    chance = np.random.default_rng(0).random(3000)
    unseen = exposure_ranks(chance[:1000], chance[1000:], np.arange(1000) < 500)
    assert 1.2 < unseen.bits_in < 1.7  # log2(e) = 1.44, standard error 0.065


@pytest.mark.parametrize(
    ("more", "words"),
    [({"num_canaries": 1}, "at least 2 canaries"), ({"num_steps": 61}, r"1 to 60 steps \(the claim's\)")],
)
def test_sizes_that_bound_nothing_are_refused(more, words):
    with pytest.raises(ConfigError, match=words) as caught:
        audited(plan(), **more)
    assert caught.value.code == "audit-size"


def test_batches_of_other_samplers_are_refused():
    sampler = TruncatedPoissonSampler(num_examples=100, expected_batch_size=10.0, max_batch_size=30)
    other = Plan(
        sampler=sampler,
        num_steps=2,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-5,
    )
    with pytest.raises(AuditError, match="drawn into Poisson batches") as caught:
        audited(other)
    assert caught.value.code == "audit-subject"
