"""The joint: what a private step does, in which order, and what it refuses."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reticent.account.ledger import Ledger, read_ledger
from reticent.errors import (
    BudgetExhausted,
    ConfigError,
    CoupledExamples,
    LedgerError,
    StepError,
)
from reticent.noise import CipherNoise, add_noise
from reticent.sample import PoissonSampler, SampleStream
from reticent.train import PrivateStep
from tests.train.joint import (
    BATCH_SIZE,
    LoopEngine,
    NoNoise,
    cross_entropy,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)


def no_gradient(model, rows):
    return 0.0 * model(rows[0]).sum(1)


def sums_up(model, rows):
    """Every example's gradient has the same direction and is longer than the bound."""
    return 100.0 * model(torch.ones_like(rows[0])).sum(1)


# -- the size of the update ---------------------------------------------------------------------------


def std_is(values, std):
    """Accepts the right std but for once in 1e9 tries: 6 standard errors of the sample's std."""
    error = std / (2 * len(values)) ** 0.5
    return abs(float(values.double().square().mean().sqrt()) - std) < 6 * error


@pytest.mark.parametrize("num_chunks", [1, 8])
def test_noise_has_the_plans_std_once_for_any_number_of_chunks(tmp_path, num_chunks):
    model = nn.Linear(300, 500, bias=False)
    plan = make_plan(noise_multiplier=1.7, max_norm=0.3)
    data = torch.utils.data.TensorDataset(torch.ones(64, 300))
    private = make_private(tmp_path, model=model, plan=plan, physical_batch_size=16 // num_chunks)
    before = weights_of(model)
    batch = with_rows(next(iter(plan.batches(data))), range(16))
    take(private, batch, no_gradient)
    noise = (before - weights_of(model)) * BATCH_SIZE
    assert std_is(noise, 1.7 * 0.3)
    assert not std_is(noise, 1.7 * 0.3 * 2 / 3)
    assert not std_is(noise, 1.7 * 0.3 * 3 / 2)


class KnownNoise(NoNoise):
    """The same normals in every run. It claims to be private: tests only."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, shape, *, dtype, device="cpu"):
        return torch.randn(tuple(shape), dtype=dtype, device=device, generator=self.generator)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_loss_times_1024_leaves_the_noise_over_the_bound_as_it_is(tmp_path, compile, half, monkeypatch):
    """Nor does it move the sum: losses may be scaled against underflow. Every example is clipped here."""
    from reticent.clip import _compiled

    monkeypatch.setattr(_compiled, "_compile_graph", lambda module, inputs: module)
    max_norm = 0.02

    def update(scale, noise):
        def loss(model, rows):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return scale * cross_entropy(model, rows).float()

        model, plan = make_model(), make_plan(noise_multiplier=1.7, max_norm=max_norm)
        folder = tmp_path / f"{scale}-{type(noise).__name__}"
        options = dict(noise=noise, compile=compile, physical_batch_size=8)
        private = make_private(folder, model=model, plan=plan, **options)
        before = weights_of(model)
        take(private, with_rows(next(iter(plan.batches(make_data()))), range(20)), loss)
        return (before - weights_of(model)) * BATCH_SIZE / max_norm

    sums = {scale: update(scale, NoNoise()) for scale in (1, 1024)}
    added = {scale: update(scale, KnownNoise()) - sums[scale] for scale in (1, 1024)}
    assert torch.allclose(sums[1], sums[1024], rtol=0, atol=1e-3)
    assert 1 < float(sums[1].norm()) <= 20 * (1 + 1e-3)
    assert torch.allclose(added[1], added[1024], rtol=0, atol=1e-3)
    drawn = KnownNoise()
    normals = [drawn.normal(p.shape, dtype=torch.float64).flatten() for p in make_model().parameters()]
    assert torch.allclose(added[1].double(), 1.7 * torch.cat(normals), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_drawn", [0, 1, 37])
def test_the_divisor_is_the_expected_batch_size_whatever_was_drawn(tmp_path, num_drawn):
    model, plan, data = make_model(), make_plan(max_norm=0.5), make_data()
    private = make_private(tmp_path, model=model, plan=plan, noise=NoNoise(), physical_batch_size=8)
    before = weights_of(model)
    take(private, with_rows(next(iter(plan.batches(data))), range(num_drawn)), sums_up)
    moved = float((weights_of(model) - before).norm())
    assert moved == pytest.approx(num_drawn * 0.5 / BATCH_SIZE, rel=1e-5, abs=1e-12)


def test_an_empty_batch_is_a_step_of_pure_noise(tmp_path):
    model, plan = make_model(), make_plan()
    private = make_private(tmp_path, model=model, plan=plan)
    before = weights_of(model)
    take(private, with_rows(next(iter(plan.batches(make_data()))), []))
    assert private.num_steps == 1
    assert int((weights_of(model) == before).sum()) < 2  # one may get less noise than half an ulp


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_any_physical_batch_size_gives_the_same_update(tmp_path, size):
    def update(size, folder):
        model, plan = make_model(), make_plan(max_norm=0.1)
        private = make_private(folder, model=model, plan=plan, noise=NoNoise(), physical_batch_size=size)
        for step, batch in enumerate(plan.batches(make_data())):
            take(private, with_rows(batch, range(step, 20 + step)))
        return weights_of(model)

    assert torch.allclose(update(size, tmp_path / "a"), update(20, tmp_path / "b"), rtol=0, atol=1e-6)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_as_torch_does_from_the_noised_gradient(tmp_path, name):
    plan, data = make_plan(num_steps=3, max_norm=0.2), make_data()
    model, reference = make_model(), make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    theirs = OPTIMIZERS[name](reference.parameters())
    private = make_private(
        tmp_path, model=model, optimizer=optimizer, plan=plan, noise=CipherNoise.reproducible(5)
    )
    noise = CipherNoise.reproducible(5)
    stream = SampleStream.reproducible(1)  # of some batches a gradient is near 0, and rounding shows
    for batch in plan.batches(data, stream=stream):
        take(private, batch)
        rows = data[torch.from_numpy(batch.indices)]
        summed = LoopEngine(reference, 0.2).clipped_sum(lambda given: cross_entropy(reference, given), rows)
        noised = add_noise(summed, noise_multiplier=plan.noise_multiplier, source=noise)
        for key, p in reference.named_parameters():
            p.grad = noised[key] / BATCH_SIZE
        theirs.step()
    assert torch.allclose(weights_of(model), weights_of(reference), rtol=1e-4, atol=1e-5)


# -- the order, and what is left behind ---------------------------------------------------------------


def test_the_ledger_holds_the_step_and_raw_sums_are_gone_before_the_optimizer_moves(tmp_path):
    model, plan = make_model(), make_plan()
    engine = LoopEngine(model, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    private = make_private(tmp_path, model=model, optimizer=optimizer, plan=plan, engine=engine)
    seen = []

    def look(*_):
        on_disk = read_ledger(tmp_path / "run" / "ledger.jsonl").num_steps
        raw = [bool(t.isnan().all()) for total in engine.sums for t in total.values()]
        seen.append((on_disk, all(raw)))

    optimizer.register_step_pre_hook(look)
    for batch in plan.batches(make_data()):
        take(private, batch)
    assert seen == [(k, True) for k in range(1, 6)]


def test_nothing_is_left_on_the_model_and_a_second_optimizer_step_does_nothing(tmp_path):
    model, plan = make_model(), make_plan()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    names = set(vars(model)), [set(vars(p)) for p in model.parameters()]
    private = make_private(tmp_path, model=model, optimizer=optimizer, plan=plan)
    take(private, next(iter(plan.batches(make_data()))))
    assert all(p.grad is None for p in model.parameters())
    assert (set(vars(model)), [set(vars(p)) for p in model.parameters()]) == names
    after = weights_of(model)
    optimizer.step()
    assert torch.equal(weights_of(model), after)


def test_an_exception_inside_the_block_releases_and_charges_nothing(tmp_path):
    model, plan = make_model(), make_plan()
    engine = LoopEngine(model, 1.0)
    private = make_private(tmp_path, model=model, plan=plan, engine=engine, physical_batch_size=4)
    before = weights_of(model)
    batch = with_rows(next(iter(plan.batches(make_data()))), range(12))
    with pytest.raises(ZeroDivisionError), private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
            raise ZeroDivisionError
    assert private.num_steps == 0
    assert torch.equal(weights_of(model), before)
    assert all(bool(t.isnan().all()) for t in engine.sums[-1].values())
    assert all(p.grad is None for p in model.parameters())
    take(private, batch)
    assert private.num_steps == 1


def test_an_optimizer_that_fails_leaves_the_step_spent_and_no_gradient(tmp_path):
    model, plan = make_model(), make_plan()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    private = make_private(tmp_path, model=model, optimizer=optimizer, plan=plan)

    def fail(*_):
        raise MemoryError

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(MemoryError):
        take(private, next(iter(plan.batches(make_data()))))
    assert private.num_steps == 1
    assert all(p.grad is None for p in model.parameters())


def test_epsilon_is_the_ledgers_and_infinite_for_reproducible_noise(tmp_path):
    plan = make_plan()
    for name, noise, finite in (("a", None, True), ("b", CipherNoise.reproducible(1), False)):
        private = make_private(tmp_path / name, plan=plan, noise=noise)
        take(private, next(iter(plan.batches(make_data()))))
        report = private.epsilon()
        assert np.isfinite(report.epsilon) == finite
        assert report.num_steps == 1
        assert read_ledger(tmp_path / name / "run" / "ledger.jsonl").reproducible != finite


def test_two_runs_draw_different_noise(tmp_path):
    def update(folder):
        model, plan = make_model(), make_plan()
        take(
            make_private(folder, model=model, plan=plan),
            with_rows(next(iter(plan.batches(make_data()))), []),
        )
        return weights_of(model)

    assert not torch.equal(update(tmp_path / "a"), update(tmp_path / "b"))


def test_reprs_say_nothing_of_the_batch(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)
    batch = with_rows(next(iter(plan.batches(make_data()))), range(41))
    with private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
        assert "41" not in repr(step) + repr(private)


# -- refusals -----------------------------------------------------------------------------------------


def first(plan, rows=range(12)):
    return with_rows(next(iter(plan.batches(make_data()))), rows)


def refused(private, batch, use, error, text):
    """Using a step like this raises, spends nothing and moves nothing."""
    before = weights_of(private.model)
    with pytest.raises(error, match=text), private.step(batch) as step:
        use(step)
    assert private.num_steps == 0
    assert torch.equal(weights_of(private.model), before)


def leave_early(step):
    for chunk in step.chunks():
        step.backward(cross_entropy, chunk)
        break


def forget_one(step):
    for k, chunk in enumerate(step.chunks()):
        if k != 1:
            step.backward(cross_entropy, chunk)


def forget_last(step):
    for k, chunk in enumerate(step.chunks()):
        if k != 2:
            step.backward(cross_entropy, chunk)


def read_twice(step):
    for _ in range(2):
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)


def backward_twice(step):
    for chunk in step.chunks():
        step.backward(cross_entropy, chunk)
        step.backward(cross_entropy, chunk)


def other_rows(step):
    for chunk in step.chunks():
        step.backward(cross_entropy, tuple(t.clone() for t in chunk))


def plain_backward(step):
    for chunk in step.chunks():
        cross_entropy(step._owner.model, chunk).sum().backward()
        step.backward(cross_entropy, chunk)


@pytest.mark.parametrize(
    ("use", "code"),
    [
        (leave_early, "chunks-left"),
        (lambda step: None, "chunks-left"),
        (forget_one, "chunk-unused"),
        (forget_last, "chunk-unused"),
        (read_twice, "chunks-twice"),
        (backward_twice, "foreign-chunk"),
        (other_rows, "foreign-chunk"),
        (plain_backward, "raw-gradient"),
    ],
)
def test_chunks_used_wrongly_are_refused_and_nothing_is_spent(tmp_path, use, code):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan, physical_batch_size=4, engine=None)
    refused(private, first(plan), use, StepError, rf"\[{code}\]")


def test_a_step_is_dead_after_its_block(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)
    with private.step(first(plan)) as step:
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
    with pytest.raises(StepError, match=r"\[step-closed\]"):
        step.backward(cross_entropy, chunk)
    with pytest.raises(StepError, match=r"\[chunks-twice\]"):
        step.chunks()


def test_one_step_at_a_time(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)
    batch = first(plan)
    refused(private, batch, lambda step: take(private, batch), StepError, r"\[step-open\]")


def test_a_batch_is_used_once_and_in_order(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)
    zero, one, two, *_ = plan.batches(make_data())
    with pytest.raises(StepError, match=r"batch 1, and batch 0 is next.*\[batch-order\]"):
        take(private, one)
    take(private, zero)
    with pytest.raises(StepError, match=r"\[batch-order\]"):
        take(private, zero)
    with pytest.raises(StepError, match=r"\[batch-order\]"):
        take(private, two)
    assert private.num_steps == 1


def test_a_batch_of_another_plan_or_no_batch_is_refused(tmp_path):
    private = make_private(tmp_path, plan=make_plan())
    secret_n = dataclasses.replace(
        make_plan(), sampler=PoissonSampler(sampling_prob=0.9, expected_batch_size=BATCH_SIZE)
    )
    for foreign in (first(make_plan(batch=8)), first(secret_n), make_data()[:4], None):
        with pytest.raises(StepError, match=r"\[foreign-batch\]"):
            take(private, foreign)
    assert private.num_steps == 0


@pytest.mark.parametrize("indices", [[3, 3], [5, 3], [-1, 2], [2, 10**6], [[1, 2]], [True, False], [0.5]])
def test_a_batch_with_a_row_in_it_twice_is_refused(tmp_path, indices):
    """Twice in one sum, an example moves it by twice the bound that noise is scaled to."""
    plan = make_plan()
    batch = dataclasses.replace(next(iter(plan.batches(make_data()))), indices=np.array(indices))
    private = make_private(tmp_path, plan=plan)
    with pytest.raises(StepError, match=r"\[foreign-batch\]"):
        take(private, batch)
    assert private.num_steps == 0


def test_a_batch_that_can_be_drawn_again_is_refused_unless_the_ledger_says_so(tmp_path):
    plan = make_plan()
    batch = next(plan.batches(make_data(), stream=SampleStream.reproducible(1)))
    private = make_private(tmp_path, plan=plan)
    with pytest.raises(StepError, match=r"\[reproducible-batch\]"):
        take(private, batch)
    assert private.num_steps == 0
    marked = make_private(tmp_path / "marked", plan=plan, noise=CipherNoise.reproducible(1))
    take(marked, batch)
    assert marked.epsilon().epsilon == float("inf")


def test_the_step_beyond_the_plan_is_refused(tmp_path):
    plan = make_plan(num_steps=2)
    private = make_private(tmp_path, plan=plan)
    batches = list(plan.batches(make_data()))
    for batch in batches:
        take(private, batch)
    with pytest.raises(BudgetExhausted, match="allows 2 steps and the ledger holds 2"):
        take(private, dataclasses.replace(batches[-1], step=2))
    assert private.num_steps == 2


def test_freezing_a_parameter_in_mid_run_is_refused(tmp_path):
    plan, model = make_plan(), make_model()
    private = make_private(tmp_path, model=model, plan=plan)
    batch = first(plan)
    model[0].weight.requires_grad_(False)
    with pytest.raises(StepError, match=r"'0.weight'.*\[parameters-changed\]"):
        take(private, batch)
    model[0].weight.requires_grad_(True)

    def freeze(step):
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
        model[2].bias.requires_grad_(False)

    refused(private, batch, freeze, StepError, r"'2.bias'.*\[parameters-changed\]")


class WrappedOptimizer(torch.optim.Optimizer):
    """As Accelerate's: has the groups of another, and steps when it likes."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure=None):
        raise AssertionError


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), "optimizer-closure"),
        (lambda m: torch.optim.SGD(m[0].parameters(), lr=1.0), "optimizer-parameters"),
        (
            lambda m: torch.optim.SGD([*m.parameters(), nn.Parameter(torch.zeros(2))], lr=1.0),
            "optimizer-parameters",
        ),
        (lambda m: object(), "optimizer-type"),
        (lambda m: WrappedOptimizer(torch.optim.SGD(m.parameters(), lr=1.0)), "optimizer-type"),
    ],
)
def test_an_optimizer_that_cannot_be_private_is_refused_before_a_ledger_exists(tmp_path, make, code):
    model = make_model()
    with pytest.raises(ConfigError, match=rf"\[{code}\]"):
        make_private(tmp_path, model=model, optimizer=make(model))
    assert not (tmp_path / "run").exists()


def test_a_frozen_parameter_in_the_optimizer_is_refused(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"\[optimizer-parameters\]"):
        make_private(tmp_path, model=model, optimizer=optimizer)


def test_frozen_parameters_stay_as_they_are(tmp_path):
    model, plan = make_model(), make_plan()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=1.0)
    before = model[0].weight.clone(), model[2].weight.clone()
    private = make_private(tmp_path, model=model, optimizer=optimizer, plan=plan)
    take(private, first(plan))
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"\[nothing-to-train\]"):
        make_private(tmp_path, model=model, optimizer=optimizer)


def test_a_plan_without_noise_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\[no-noise\]"):
        make_private(tmp_path, plan=make_plan(noise_multiplier=0.0))


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_physical_batch_size_is_a_positive_integer(tmp_path, size):
    with pytest.raises(ConfigError, match=r"\[physical-batch-size\]"):
        make_private(tmp_path, physical_batch_size=size)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"noise": object()}, "noise-source"),
        ({"plan": make_plan(noise_multiplier=1e300, max_norm=1e15)}, "noise-bound"),
    ],
)
def test_noise_that_cannot_be_added_is_refused_before_a_ledger_exists(tmp_path, options, code):
    with pytest.raises(ConfigError, match=rf"\[{code}\]"):
        make_private(tmp_path, **options)
    assert not (tmp_path / "run").exists()


def test_a_stage_of_a_pipeline_is_refused(tmp_path):
    from torch.distributed.pipelining import PipelineStage

    store, model = torch.distributed.HashStore(), make_model()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        stage: Any = PipelineStage(model, 0, 1, torch.device("cpu"))
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        with pytest.raises(ConfigError, match=r"norm over all stages.*\[pipeline-parallel\]"):
            make_private(tmp_path, model=stage, optimizer=sgd)
    finally:
        torch.distributed.destroy_process_group()


def test_an_existing_ledger_is_not_taken_by_its_path(tmp_path):
    plan = make_plan()
    take(make_private(tmp_path, plan=plan), first(plan))
    with pytest.raises(LedgerError, match=r"\[ledger-exists\]"):
        make_private(tmp_path, plan=plan)


def test_a_loop_can_go_on_with_its_ledger(tmp_path):
    plan = make_plan()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(
        path, run_id="r", relation=plan.relation, delta=plan.delta, num_steps=plan.num_steps, public={}
    ) as ledger:
        take(PrivateStep(model, optimizer, plan=plan, ledger=ledger), first(plan))
    with Ledger.open(path) as ledger:
        ledger.append_resume(checkpoint_step=1)
        private = PrivateStep(model, optimizer, plan=plan, ledger=ledger)
        for batch in plan.batches(make_data(), start=private.num_steps):
            take(private, batch)
        assert private.num_steps == plan.num_steps


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"num_steps": 6}, "num_steps 5 .plan: 6"),
        ({"delta": 1e-4}, "delta"),
        ({"noise_multiplier": 2.0}, "entered"),
    ],
)
def test_a_ledger_of_another_plan_is_refused(tmp_path, changed, text):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)
    take(private, first(plan))
    other = dataclasses.replace(plan, **changed)
    with pytest.raises(LedgerError, match=rf"{text}.*\[ledger-plan\]"):
        PrivateStep(private.model, private.optimizer, plan=other, ledger=private.ledger)


def test_reproducible_noise_is_refused_on_a_ledger_that_claims_privacy(tmp_path):
    private = make_private(tmp_path)
    with pytest.raises(LedgerError, match=r"claims privacy.*\[ledger-plan\]"):
        PrivateStep(
            private.model,
            private.optimizer,
            plan=private.plan,
            ledger=private.ledger,
            noise=CipherNoise.reproducible(0),
        )


def test_an_engine_with_another_bound_is_refused(tmp_path):
    model, plan = make_model(), make_plan(max_norm=1.0)
    private = make_private(tmp_path, model=model, plan=plan, engine=LoopEngine(model, 2.0))

    def use(step):
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)

    refused(private, first(plan), use, StepError, r"\[engine-mismatch\]")


def test_a_loss_that_couples_examples_is_refused_before_the_first_step(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)

    def token_mean(model, rows):
        return cross_entropy(model, rows) / len(rows[0])

    def use(step):
        for chunk in step.chunks():
            step.backward(token_mean, chunk)

    refused(private, first(plan), use, CoupledExamples, "loss")


def test_a_loss_that_is_not_one_value_an_example_is_refused(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan)

    def use(step):
        for chunk in step.chunks():
            step.backward(lambda model, rows: cross_entropy(model, rows).mean(), chunk)

    refused(private, first(plan), use, ConfigError, "loss")
