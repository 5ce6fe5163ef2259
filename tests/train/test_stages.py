"""Runs whose batch size changes: each step is drawn, divided, noised and entered as its own stage says."""

import json

import pytest
import torch
from torch import nn

from reticent.account import epsilon
from reticent.account.ledger import Ledger, read_ledger
from reticent.clipping import AdaptiveClipping, FlatClipping
from reticent.dist import ALONE, RanksLedger
from reticent.errors import ConfigError, LedgerError, StepError
from reticent.plan import Plan, Stage, StagedSampler
from reticent.records import Budget
from reticent.report import verify_run
from reticent.sample import FullBatchSampler, PoissonSampler
from reticent.train import PrivateStep, TrainSettings, resume, train
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model

N = 64
CLIP = FlatClipping(max_norm=1.0)
STAGES = StagedSampler(
    stages=(
        Stage(sampler=PoissonSampler(num_examples=N, expected_batch_size=8), num_steps=3),
        Stage(sampler=PoissonSampler(num_examples=N, expected_batch_size=48), num_steps=3, noise_scale=2.0),
        Stage(sampler=FullBatchSampler(num_examples=N), num_steps=2, noise_scale=3.0),
    )
)
PLAN = Plan(sampler=STAGES, num_steps=8, noise_multiplier=4.0, clipping=CLIP, delta=1e-3)
ENTERED = tuple((PLAN.at(t).mechanism, count) for t, count in ((0, 3), (3, 3), (6, 2)))


def trained(out, *, plan=PLAN, loss=cross_entropy, going_on=False, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {} if going_on else {"plan": plan, "settings": TrainSettings(checkpoint_every=2)}
    run = resume if going_on else train
    return run(model, optimizer, dataset=make_data(), loss_per_example=loss, out=out, **settings, **options)


class Stop(BaseException):
    """What stands for a kill."""


def stops_in(step):
    """A loss, and an optimizer's hook that counts: stops inside the step of that number."""
    taken = [0]

    def loss(model, rows):
        if taken[0] == step:
            raise Stop
        return cross_entropy(model, rows)

    return loss, lambda *_: taken.__setitem__(0, taken[0] + 1)


def stopped(out, *, step, plan=PLAN):
    loss, count = stops_in(step)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(count)
    with pytest.raises(Stop):
        train(
            model,
            optimizer,
            plan=plan,
            dataset=make_data(),
            loss_per_example=loss,
            out=out,
            settings=TrainSettings(checkpoint_every=2),
        )


# -- what a step does at a border ------------------------------------------------------------------------


class Ones(nn.Module):
    """Each row's gradient is 1: a sum counts rows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, rows):
        return rows * self.weight


def counted(model, rows):
    return model(rows).sum(1)


def test_every_sum_is_of_the_stages_own_rows_over_its_own_divisor(tmp_path):
    """Without noise and with gradients of 1, a step moves the weight by rows over divisor."""
    model = Ones()
    private = PrivateStep(
        model, torch.optim.SGD(model.parameters(), lr=1.0), plan=PLAN, ledger=tmp_path, noise=NoNoise()
    )
    for batch in PLAN.batches(torch.ones(N, 1)):
        before, drawn = float(model.weight.detach()), len(batch.indices)
        with private.step(batch) as step:
            for chunk in step.chunks():
                step.backward(counted, chunk)
        divisor = (8, 8, 8, 48, 48, 48, 64, 64)[batch.step]
        assert before - float(model.weight.detach()) == pytest.approx(drawn / divisor, rel=1e-5)
    assert read_ledger(tmp_path / "ledger.jsonl").segments() == ENTERED


class Told:
    """Noise of one standard deviation, always: it claims to be private, and shows how much was asked for."""

    private = True

    def normal(self, shape, *, dtype, device="cpu"):
        return torch.ones(tuple(shape), dtype=dtype, device=device)


def test_every_step_gets_the_noise_of_its_stage(tmp_path):
    """A noise of exactly one standard deviation, on sums of nothing: the gradient shows it."""
    model = Ones()
    private = PrivateStep(
        model, torch.optim.SGD(model.parameters(), lr=1.0), plan=PLAN, ledger=tmp_path, noise=Told()
    )
    for batch in PLAN.batches(torch.zeros(N, 1)):
        before = float(model.weight.detach())
        with private.step(batch) as step:
            for chunk in step.chunks():
                step.backward(counted, chunk)
        sigma, divisor = (*[(4.0, 8)] * 3, *[(8.0, 48)] * 3, *[(12.0, 64)] * 2)[batch.step]
        assert before - float(model.weight.detach()) == pytest.approx(sigma / divisor, rel=1e-5)


def test_a_batch_of_another_stage_is_refused(tmp_path):
    """A plan with the stages the other way round draws a smaller batch where a larger is accounted for."""
    model = make_model()
    turned = Plan(
        sampler=StagedSampler(stages=STAGES.stages[::-1]),
        num_steps=8,
        noise_multiplier=4.0,
        clipping=CLIP,
        delta=1e-3,
    )
    private = PrivateStep(
        model, torch.optim.SGD(model.parameters(), lr=0.1), plan=PLAN, ledger=tmp_path, noise=NoNoise()
    )
    with pytest.raises(StepError, match="foreign-batch"), private.step(next(turned.batches(make_data()))):
        pass
    with (
        pytest.raises(StepError, match="batch-order"),
        private.step(next(PLAN.batches(make_data(), start=3))),
    ):
        pass
    assert private.num_steps == 0


def private_ones(model, ledger):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return PrivateStep(model, optimizer, plan=PLAN, ledger=ledger, noise=NoNoise())


def take(private, batch):
    with private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(counted, chunk)


def test_a_step_that_ends_beyond_the_border_is_not_entered_as_a_step_of_the_next_stage(tmp_path):
    """Drawn with the first stage's probability, it would get the second's entry, noise and divisor."""
    data, (model, other) = torch.ones(N, 1), (Ones(), Ones())
    private = private_ones(model, tmp_path)
    beside = private_ones(other, private.ledger)
    batches, again = PLAN.batches(data), PLAN.batches(data, start=2)
    for _ in range(2):
        take(private, next(batches))
    before = float(model.weight.detach())
    with (
        pytest.raises(StepError, match=r"batch 2 was open.*\[batch-order\]"),
        private.step(next(batches)) as step,
    ):
        for chunk in step.chunks():
            step.backward(counted, chunk)
        take(beside, next(again))
    assert float(model.weight.detach()) == before
    assert read_ledger(tmp_path / "ledger.jsonl").segments() == PLAN.segments(3)
    take(private, next(batches))
    assert read_ledger(tmp_path / "ledger.jsonl").segments() == PLAN.segments(4)


def test_the_norms_of_adaptive_clipping_move_by_the_stages_own_divisor(tmp_path):
    clipping = AdaptiveClipping(
        initial_max_norm=1.0, target_quantile=0.5, learning_rate=0.2, count_noise_multiplier=40.0
    )
    plan = Plan(sampler=STAGES, num_steps=8, noise_multiplier=4.0, clipping=clipping, delta=1e-3)
    model = Ones()
    private = PrivateStep(
        model, torch.optim.SGD(model.parameters(), lr=0.0), plan=plan, ledger=tmp_path, noise=NoNoise()
    )
    for batch in plan.batches(torch.full((N, 1), 1e-3)):  # all below the norm
        (before,), drawn = private.clip_norms, len(batch.indices)
        with private.step(batch) as step:
            for chunk in step.chunks():
                step.backward(counted, chunk)
        share = 0.5 * drawn / plan.at(batch.step).expected_batch_size + 0.5
        moved = torch.tensor(-0.2 * (share - 0.5)).exp()
        assert private.clip_norms[0] == pytest.approx(before * float(moved), rel=1e-5)
    assert private.ledger.public["count_noise_multiplier"] == [40.0] * 3


# -- whole runs --------------------------------------------------------------------------------------------


def test_a_run_of_stages_spends_what_its_ledger_says_and_is_sound(tmp_path):
    result = trained(tmp_path / "run")
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.segments() == ENTERED
    assert ledger.public["expected_batch_size"] == [8.0, 48.0, 64.0]
    spent = epsilon(ENTERED, delta=1e-3, relation=PLAN.relation).epsilon
    assert result.epsilon.epsilon == spent == PLAN.epsilon().epsilon
    found = verify_run(tmp_path / "run")
    assert found.sound and found.private, found.problems
    assert found.statement["mechanisms"] == [{**m.describe(), "num_steps": n} for m, n in ENTERED]


@pytest.mark.parametrize("step", [2, 3, 4, 7])
def test_a_run_goes_on_in_the_middle_of_a_stage(tmp_path, step, seeded):
    """Steps that were lost stay spent, and count for the border: the ledger holds the plan's, no more.

    Seeded: the loss stops the run, and is not called of an empty batch; step 2 has one in 2e-4 of runs.
    """
    out = tmp_path / "run"
    stopped(out, step=step)
    assert read_ledger(out / "ledger.jsonl").segments() == PLAN.segments(step)
    result = trained(out, going_on=True)
    ledger = read_ledger(out / "ledger.jsonl")
    assert ledger.segments() == ENTERED
    assert result.num_lost == step % 2
    assert verify_run(out).sound


@pytest.mark.parametrize(
    "edit",
    [
        lambda stages: stages[1].update(num_steps=2) or stages[0].update(num_steps=4),
        lambda stages: stages[2].update(noise_scale=30.0),
        lambda stages: stages[0].update(noise_scale=30.0),
        lambda stages: stages[1]["sampler"].update(expected_batch_size=32.0, sampling_prob=0.5),
    ],
)
def test_other_stages_than_the_ledgers_are_refused_and_found(tmp_path, edit):
    out = tmp_path / "run"
    stopped(out, step=4)
    about = json.loads((out / "run.json").read_text())
    edit(about["plan"]["sampler"]["stages"])
    (out / "run.json").write_text(json.dumps(about))
    with pytest.raises((LedgerError, ConfigError)) as caught:
        trained(out, going_on=True)
    assert caught.value.code in ("ledger-plan", "run-edited", "plan-record")
    assert not verify_run(out).sound


def test_a_plan_of_equal_steps_is_not_that_of_a_ledger_of_stages(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(
        path, run_id="a", relation=PLAN.relation, delta=1e-3, num_steps=8, public={}
    ) as ledger:
        for t in range(5):
            ledger.append_step(PLAN.at(t).mechanism)
        assert RanksLedger(ALONE, ledger, planned=PLAN.segments()).segments() == PLAN.segments(5)
        wrong = Plan(
            sampler=STAGES.stages[0].sampler, num_steps=8, noise_multiplier=4.0, clipping=CLIP, delta=1e-3
        )
        with pytest.raises(LedgerError, match="ledger-plan"):
            RanksLedger(ALONE, ledger, planned=wrong.segments())


def test_the_ranks_ledger_takes_the_next_stages_step_and_no_other(tmp_path):
    with Ledger.create(
        tmp_path / "ledger.jsonl", run_id="a", relation=PLAN.relation, delta=1e-3, num_steps=8, public={}
    ) as opened:
        ledger = RanksLedger(ALONE, opened, planned=PLAN.segments())
        for t in range(8):
            for other in {PLAN.at(s).mechanism for s in range(8)} - {PLAN.at(t).mechanism}:
                with pytest.raises(LedgerError, match="ledger-plan"):
                    ledger.append_step(other)
            assert ledger.append_step(PLAN.at(t).mechanism) == t + 1
        assert ledger.segments() == opened.segments() == ENTERED


def test_a_budget_is_kept_by_all_stages_together(tmp_path):
    budget = Budget(epsilon=4.0, delta=1e-3)
    plan = Plan.calibrate(budget=budget, sampler=STAGES, clipping=CLIP)
    result = trained(tmp_path / "run", plan=plan)
    assert 0.999 * 4.0 <= result.epsilon.epsilon <= 4.0
    assert "budget" in verify_run(tmp_path / "run").checks
