"""Private steps with every kind of clipping: the sum, the noise, the count beside it, and resuming."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from reticent.account.ledger import Ledger, read_ledger
from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine
from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
    sensitivity,
)
from reticent.dist import Alone
from reticent.errors import CheckpointError, ConfigError, LedgerError, StepError
from reticent.noise import CipherNoise
from reticent.train import TrainSettings, resume, train
from reticent.train import _step as step_module
from reticent.train._adapt import anything_clipped
from reticent.train._checkpoint import load_checkpoint
from tests.train.joint import (
    BATCH_SIZE,
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
from tests.train.modes import ModeEngine, clipped_one, limits_of
from tests.train.test_step import no_gradient, std_is

ADAPTIVE = AdaptiveClipping(initial_max_norm=0.5)
BY_LAYER = AdaptiveClipping(initial_max_norm=0.5, per_layer=True, learning_rate=0.5)
FIXED = [
    FlatClipping(max_norm=0.5),
    AutomaticClipping(max_norm=0.5),
    AutomaticClipping(max_norm=0.5, stability=1e-4),
    PerLayerClipping(max_norm=0.5),
    PerLayerClipping(max_norm=0.5, split="size"),
    GroupedClipping(max_norms=(("*.bias", 0.2), ("*", 0.4))),
]
ALL = [*FIXED, ADAPTIVE, BY_LAYER]


def plan_for(clipping, **options):
    return dataclasses.replace(make_plan(**options), clipping=clipping)


def private_for(tmp_path, clipping, *, model=None, **options):
    model = model or make_model()
    plan = options.pop("plan", None) or plan_for(clipping)
    engine = options.pop("engine", None) or ModeEngine(
        model, clipping=FlatClipping(max_norm=0.5) if isinstance(clipping, AdaptiveClipping) else clipping
    )
    return make_private(tmp_path, model=model, plan=plan, engine=engine, **options)


def rows_of(plan, indices, data=None):
    batch = next(iter(plan.batches(data or make_data())))
    return with_rows(batch, indices)


def moved_by(tmp_path, clipping, indices, loss=cross_entropy, **options):
    """The update's sum over units, and the norms after it, of one step without noise."""
    model = make_model()
    private = private_for(tmp_path, clipping, model=model, noise=NoNoise(), **options)
    before = weights_of(model)
    take(private, rows_of(private.plan, indices), loss)
    return (before - weights_of(model)) * BATCH_SIZE, private.clip_norms


def long_for_some(model, rows):
    """Gradients of very different lengths."""
    x, _ = rows
    length = torch.exp(3 * x[:, 1])
    return length * cross_entropy(model, rows)


# -- the sum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", ALL, ids=repr)
@pytest.mark.parametrize("size", [3, 100])
def test_a_step_moves_by_the_oracles_sum_whatever_the_chunks(tmp_path, clipping, size):
    moved, _ = moved_by(tmp_path, clipping, range(17), long_for_some, physical_batch_size=size)
    model, data = make_model(), make_data()
    now = {ADAPTIVE: FlatClipping(max_norm=0.5), BY_LAYER: PerLayerClipping(max_norm=0.5)}.get(
        clipping, clipping
    )
    total = dict.fromkeys(dict(model.named_parameters()), 0.0)
    for i in range(17):
        loss = long_for_some(model, data[i : i + 1])[0]
        grads = torch.autograd.grad(loss, list(model.parameters()))
        parts, _ = clipped_one(dict(zip(total, (g.double() for g in grads), strict=True)), now)
        for part, _ in parts.values():
            for name, g in part.items():
                total[name] = total[name] + g
    expected = torch.cat([total[name].reshape(-1) for name in total]).float()
    assert torch.allclose(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clipping", ALL, ids=repr)
def test_the_librarys_engine_takes_the_same_steps_as_the_double(tmp_path, clipping):
    """Five steps without noise: weights, and norms that adapt, of the engine that is made by default."""
    ends = {}
    for name in ("ours", "double"):
        model, plan = make_model(), plan_for(clipping)
        double = private_for(tmp_path / "x", clipping, model=model)._engine if name == "double" else None
        private = make_private(
            tmp_path / name, model=model, plan=plan, engine=double, noise=NoNoise(), physical_batch_size=7
        )
        for step, batch in enumerate(plan.batches(make_data())):
            take(private, with_rows(batch, range(3 * step, 20 + step)), long_for_some)
        ends[name] = weights_of(model), private.clip_norms
    assert torch.allclose(ends["ours"][0], ends["double"][0], rtol=1e-4, atol=2e-5)
    assert ends["ours"][1] == pytest.approx(ends["double"][1], rel=1e-9)
    assert len(set(ends["ours"][1])) == len(ends["ours"][1])


def test_groups_that_do_not_fit_the_model_are_refused_before_a_ledger_is_made(tmp_path):
    clipping = GroupedClipping(max_norms=(("0.*", 0.5),))
    with pytest.raises(ConfigError, match=r"No group of max_norms takes.*2\.weight"):
        make_private(tmp_path, plan=plan_for(clipping))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("clipping", ALL, ids=repr)
def test_no_neighbour_moves_a_step_beyond_its_sensitivity(tmp_path, clipping):
    full, norms = moved_by(tmp_path / "full", clipping, range(12), long_for_some)
    largest = 0.0
    for unit in range(12):
        rest = [i for i in range(12) if i != unit]
        less, less_norms = moved_by(tmp_path / str(unit), clipping, rest, long_for_some)
        moved = float((full - less).norm())
        largest = max(largest, moved)
        assert moved <= sensitivity(clipping) * (1 + 1e-5)
        if norms:  # one unit moves every entry of the count by 1/2: seen through the update of the norms
            changes = [
                abs(math.log(a / b)) * BATCH_SIZE / clipping.learning_rate
                for a, b in zip(norms, less_norms, strict=True)
            ]
            assert changes == pytest.approx([0.5] * len(norms), rel=1e-9)
    assert largest > 0.5 * sensitivity(clipping)  # some unit comes near: the test could fail


@pytest.mark.parametrize("clipping", ALL, ids=repr)
def test_a_zero_gradient_stays_zero_and_one_that_is_not_finite_counts_as_zero(tmp_path, clipping):
    def loss(model, rows):
        return torch.where(rows[0][:, 0] > 0, 0.0, math.inf) * model(rows[0]).sum(1)

    moved, norms = moved_by(tmp_path, clipping, range(10), loss)
    assert bool((moved == 0).all())
    below = int((make_data()[:10][0][:, 0] > 0).sum())
    if norms:
        share = (below - 5) / BATCH_SIZE + 0.5
        first = 0.5 / math.sqrt(len(norms))
        assert norms == pytest.approx(
            [first * math.exp(-clipping.learning_rate * (share - 0.5))] * len(norms)
        )


# -- the noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipping", ALL, ids=repr)
def test_noise_is_scaled_to_the_sums_sensitivity(tmp_path, clipping):
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 100))
    plan = plan_for(clipping, noise_multiplier=1.7)
    private = private_for(tmp_path, clipping, model=model, plan=plan)
    before = weights_of(model)
    take(private, rows_of(plan, [], torch.utils.data.TensorDataset(torch.ones(64, 200))), no_gradient)
    noise = (before - weights_of(model)) * BATCH_SIZE
    std = 1.7 * sensitivity(clipping) / (math.sqrt(1 - 0.01) if private.clip_norms else 1.0)
    assert std_is(noise, std)
    assert not std_is(noise, std * 2 / 3)
    assert not std_is(noise, std * 3 / 2)


def test_the_gradients_noise_grows_by_what_the_count_takes(tmp_path):
    clipping = AdaptiveClipping(initial_max_norm=0.5, count_noise_multiplier=2.0)
    model = nn.Linear(300, 500, bias=False)
    plan = plan_for(clipping, noise_multiplier=1.6)
    private = private_for(tmp_path, clipping, model=model, plan=plan)
    before = weights_of(model)
    take(private, rows_of(plan, [], torch.utils.data.TensorDataset(torch.ones(64, 300))), no_gradient)
    noise = (before - weights_of(model)) * BATCH_SIZE
    assert std_is(noise, 0.5 / math.sqrt(1 / 1.6**2 - 1 / 2.0**2))
    assert not std_is(noise, 0.5 * 1.6)


@pytest.mark.parametrize(("clipping", "num_norms"), [(ADAPTIVE, 1), (BY_LAYER, 2)])
def test_the_count_is_noised_also_when_nobody_was_drawn(tmp_path, clipping, num_norms):
    """600 / L empty steps: each entry's noise seen through the norms; 6 standard errors, once in 1e9."""
    num_steps = 600 // num_norms
    clipping = dataclasses.replace(clipping, min_norm=1e-15, max_norm=1e15)
    plan = plan_for(clipping, num_steps=num_steps, noise_multiplier=0.8)
    private = private_for(tmp_path, clipping, plan=plan)
    path = [private.clip_norms]
    for batch in plan.batches(make_data()):
        take(private, with_rows(batch, []))
        path.append(private.clip_norms)
    logs = torch.tensor(path, dtype=torch.float64).log()
    noise = -(logs[1:] - logs[:-1]) / clipping.learning_rate * BATCH_SIZE
    std = 10 * 0.8 * math.sqrt(num_norms) / 2
    assert std_is(noise.reshape(-1), std)
    assert not std_is(noise.reshape(-1), std * 2 / 3)
    assert not std_is(noise.reshape(-1), std * 3 / 2)
    if num_norms == 2:  # entries are independent: a correlation of 300 pairs, 6 standard errors
        assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 6 / math.sqrt(num_steps)


# -- the ledger, the order, and what is refused -------------------------------------------------------


@pytest.mark.parametrize("clipping", [ADAPTIVE, BY_LAYER], ids=repr)
def test_gradient_and_count_are_one_entry_of_the_plans_noise(tmp_path, clipping):
    plan = plan_for(clipping)
    private = private_for(tmp_path, clipping, plan=plan)
    for batch in plan.batches(make_data()):
        take(private, batch)
    view = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert list(view.segments()) == [(plan.mechanism, plan.num_steps)]
    assert plan.mechanism.noise_multiplier == plan.noise_multiplier
    assert private.epsilon().epsilon == make_plan().epsilon().epsilon
    assert view.public["clipping"]["kind"] == "adaptive"
    assert view.public["gradient_noise_multiplier"] == plan.gradient_noise_multiplier


def test_both_are_noised_only_when_the_ledger_holds_the_step(tmp_path):
    seen = []

    class Listening(NoNoise):
        def normal(self, shape, *, dtype, device="cpu"):
            seen.append((tuple(shape), read_ledger(tmp_path / "run" / "ledger.jsonl").num_steps))
            return super().normal(shape, dtype=dtype, device=device)

    private = private_for(tmp_path, BY_LAYER, noise=Listening())
    take(private, rows_of(private.plan, range(5)))
    assert len(seen) == 5
    assert {spent for _, spent in seen} == {1}
    assert seen[-1][0] == (2,)


def test_a_new_norm_holds_from_the_next_step_on_and_for_all_of_it(tmp_path):
    model = make_model()
    engine = ModeEngine(model, max_norm=0.5)
    private = private_for(tmp_path, ADAPTIVE, model=model, engine=engine, physical_batch_size=4)
    used = []
    for batch in private.plan.batches(make_data()):
        expected = FlatClipping(max_norm=private.clip_norms[0])
        take(private, with_rows(batch, range(10)))
        assert engine.calls == [expected] * 3
        engine.calls.clear()
        used.append(expected.max_norm)
    assert used[0] == 0.5
    assert len(set(used)) == len(used)


def test_a_block_left_by_an_exception_moves_no_norm(tmp_path):
    private = private_for(tmp_path, ADAPTIVE)
    batch = rows_of(private.plan, range(10))
    with pytest.raises(ZeroDivisionError), private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)
        raise ZeroDivisionError
    assert private.clip_norms == (0.5,)
    assert private.num_steps == 0


def test_a_failure_after_the_entry_loses_the_update_of_the_norm_and_keeps_the_step(tmp_path):
    class Failing(NoNoise):
        def normal(self, shape, *, dtype, device="cpu"):
            if tuple(shape) == (1,):
                raise ZeroDivisionError
            return super().normal(shape, dtype=dtype, device=device)

    model = make_model()
    private = private_for(tmp_path, ADAPTIVE, model=model, noise=Failing())
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError):
        take(private, rows_of(private.plan, range(10)))
    assert private.num_steps == 1
    assert private.clip_norms == (0.5,)
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize("count", [0.9, 1.0])
def test_a_count_with_less_noise_than_the_plan_is_refused(count):
    with pytest.raises(ConfigError, match="must be above the plan's noise multiplier 1") as caught:
        plan_for(AdaptiveClipping(initial_max_norm=1.0, count_noise_multiplier=count))
    assert caught.value.code == "count-noise"


def test_an_engine_for_another_clipping_is_refused(tmp_path):
    model = make_model()
    engine = ModeEngine(model, clipping=GroupedClipping(max_norms=(("*.bias", 0.2), ("*", 0.5))))
    private = private_for(tmp_path, FIXED[-1], model=model, engine=engine)
    with pytest.raises(StepError, match="not the one the plan asked for"):
        take(private, rows_of(private.plan, range(4)))
    assert private.num_steps == 0


def test_by_layer_a_model_of_one_layer_has_one_norm(tmp_path):
    model = nn.Linear(6, 3)
    private = private_for(tmp_path, BY_LAYER, model=model, noise=NoNoise())
    take(private, rows_of(private.plan, range(6)))
    assert private.clip_norms == pytest.approx((0.5 * math.exp(0.5 * 3 / BATCH_SIZE),))


@pytest.mark.parametrize("clipping", [ADAPTIVE, BY_LAYER], ids=repr)
def test_an_engine_that_gives_no_norms_cannot_count(tmp_path, clipping):
    class Mute(ModeEngine):
        def clipped_sum(self, losses, batch=None, **options):
            full = super().clipped_sum(losses, batch, **options)
            return dataclasses.replace(full, norms=full.norms[:0], group_norms=None)

    model = make_model()
    private = private_for(tmp_path, clipping, model=model, engine=Mute(model, max_norm=0.5))
    with pytest.raises(StepError, match="did not give one norm") as caught:
        take(private, rows_of(private.plan, range(4)))
    assert caught.value.code == "engine-mismatch"


@pytest.mark.parametrize("other", [ADAPTIVE, FIXED[1], FIXED[3]], ids=repr)
def test_a_ledger_made_for_another_clipping_is_refused(tmp_path, other):
    private = private_for(tmp_path, FIXED[0])
    private.close()
    with (
        Ledger.open(tmp_path / "run" / "ledger.jsonl") as ledger,
        pytest.raises(LedgerError, match="clipping") as caught,
    ):
        step_module.check_ledger(ledger, plan_for(other), reproducible=False)
    assert caught.value.code == "ledger-plan"


# -- going on -----------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_cannot_go_on_from_the_first_norms_by_accident(tmp_path):
    private = private_for(tmp_path, ADAPTIVE)
    batches = private.plan.batches(make_data())
    take(private, next(batches))
    arrived = private.clip_norms
    private.close()
    with Ledger.open(tmp_path / "run" / "ledger.jsonl") as ledger:
        ledger.append_resume(checkpoint_step=1)
        model = make_model()
        again = step_module.PrivateStep(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            plan=private.plan,
            ledger=ledger,
            engine=ModeEngine(model, max_norm=0.5),
        )
        batch = next(iter(private.plan.batches(make_data(), start=1)))
        with pytest.raises(StepError, match="restore_clip_norms") as caught, again.step(batch):
            pass
        assert caught.value.code == "clip-norms"
        again.restore_clip_norms(arrived)
        take(again, batch)
        assert again.num_steps == 2


@pytest.mark.parametrize("norms", [(), (0.5, 0.5), (1e-9,), (1e9,), (math.nan,)])
def test_norms_that_do_not_fit_are_not_restored(tmp_path, norms):
    with pytest.raises(CheckpointError, match="clipping norms") as caught:
        private_for(tmp_path, ADAPTIVE).restore_clip_norms(norms)
    assert caught.value.code == "checkpoint-mismatch"


class Stop(BaseException):
    """What stands for a kill."""


@pytest.fixture
def engines(monkeypatch):
    """Whole runs make their own engine: this one stands in, and is remembered."""
    made = []

    def make(model, **options):
        made.append(ModeEngine(model, **options))
        return made[-1]

    monkeypatch.setattr(step_module, "ClipEngine", make)
    return made


def run(out, clipping, *, stop_after=None, noise_seed=None, **settings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    taken = []

    def loss(model, rows):
        if len(taken) == stop_after:
            raise Stop
        return cross_entropy(model, rows)

    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    train(
        model,
        optimizer,
        plan=plan_for(clipping, num_steps=8, batch=60),
        dataset=make_data(),
        loss_per_example=loss,
        out=out,
        settings=TrainSettings(checkpoint_every=2, **settings),
        noise_seed=noise_seed,
    )
    return model


def go_on(out):
    model = make_model(seed=3)
    return resume(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=out,
    )


@pytest.mark.parametrize("clipping", [ADAPTIVE, BY_LAYER], ids=repr)
def test_a_resumed_run_goes_on_from_the_checkpoints_norms(tmp_path, engines, clipping):
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(out, clipping, stop_after=5)
    saved = load_checkpoint(out, say=print)
    assert (saved.step, read_ledger(out / "ledger.jsonl").num_steps) == (4, 5)
    assert len(saved.clip_norms) == (2 if clipping.per_layer else 1)
    result = go_on(out)
    first, resumed = engines[-2].calls, engines[-1].calls
    used = [c.max_norms if clipping.per_layer else ((None, c.max_norm),) for c in resumed]
    assert tuple(norm for _, norm in used[0]) == saved.clip_norms
    assert resumed[0] not in first[:4]  # not the initial ones
    assert (result.num_steps, result.num_lost) == (8, 1)
    assert len({repr(c) for c in resumed}) == 3
    assert result.epsilon.epsilon == plan_for(clipping, num_steps=8, batch=60).epsilon().epsilon


def test_noise_of_the_count_is_not_replayed_by_a_resume(tmp_path, engines):
    """Two copies of one stopped run go on from the same norm to different ones."""
    import shutil

    with pytest.raises(Stop):
        run(tmp_path / "a", ADAPTIVE, stop_after=5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    go_on(tmp_path / "a")
    go_on(tmp_path / "b")
    a, b = (load_checkpoint(tmp_path / name, say=print).clip_norms for name in "ab")
    assert a != b


def test_a_checkpoint_without_norms_does_not_fit_an_adaptive_plan(tmp_path, engines, monkeypatch):
    with pytest.raises(Stop):
        run(tmp_path / "run", ADAPTIVE, stop_after=5)
    from reticent.train import _train

    load = _train.load_checkpoint
    monkeypatch.setattr(
        _train, "load_checkpoint", lambda *a, **k: dataclasses.replace(load(*a, **k), clip_norms=())
    )
    with pytest.raises(CheckpointError, match="holds 0 clipping norms"):
        go_on(tmp_path / "run")


@pytest.mark.parametrize("clipping", FIXED[1:], ids=repr)
def test_a_whole_run_of_every_kind_can_be_stopped_and_ends_in_its_budget(tmp_path, engines, clipping):
    with pytest.raises(Stop):
        run(tmp_path / "run", clipping, stop_after=3)
    assert go_on(tmp_path / "run").num_steps == 8
    assert {repr(call) for engine in engines for call in engine.calls} == {repr(clipping)}


# -- what is shown, and is not private ----------------------------------------------------------------


def test_norms_are_shown_only_if_asked_for_and_everything_says_so(tmp_path, engines):
    run(tmp_path / "off", ADAPTIVE, noise_seed=4)
    run(tmp_path / "on", ADAPTIVE, noise_seed=4, show_norms=True)
    assert not (tmp_path / "off" / "not-private.jsonl").exists()
    assert "not_private" not in read_ledger(tmp_path / "off" / "ledger.jsonl").public
    assert read_ledger(tmp_path / "on" / "ledger.jsonl").public["not_private"] == ["norms"]
    lines = [json.loads(line) for line in (tmp_path / "on" / "not-private.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert 0 <= line["clip_fraction"] <= 1
        assert 0 < line["norm_q10"] <= line["norm_q50"] <= line["norm_q90"]
        assert line["signal_to_noise"] > 0
    a, b = (load_checkpoint(tmp_path / name, say=print) for name in ("off", "on"))
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    assert a.clip_norms == b.clip_norms


def test_what_is_shown_is_what_the_norms_were(tmp_path):
    model = make_model()
    engine = ModeEngine(model, max_norm=0.5)
    plan = plan_for(FIXED[0])
    private = private_for(
        tmp_path, FIXED[0], model=model, engine=engine, plan=plan, show_norms=True, physical_batch_size=4,
        noise=NoNoise(),
    )  # fmt: skip
    assert private.last_not_private is None
    before = weights_of(model)
    named_before = {name: p.detach().clone() for name, p in model.named_parameters()}
    take(private, rows_of(plan, range(11)), long_for_some)
    norms = sorted(norm for call in engine.norms for norm in call)
    shown = private.last_not_private
    assert shown["clip_fraction"] == pytest.approx(sum(norm > 0.5 for norm in norms) / 11)
    assert [shown[f"norm_q{q}"] for q in (10, 50, 90)] == [norms[1], norms[5], norms[9]]
    length = float((before - weights_of(model)).norm()) * BATCH_SIZE
    assert shown["signal_to_noise"] == pytest.approx(length / (0.5 * math.sqrt(53)), rel=1e-4)
    assert shown["cosine"] == pytest.approx(1.0, abs=1e-6)  # no noise was added
    assert "clip_fraction" not in repr(private)
    by_parameter = shown["signal_to_noise_by_parameter"]
    after = dict(model.named_parameters())
    assert by_parameter.keys() == after.keys()
    for name, start in named_before.items():
        length = float((start - after[name].detach()).norm()) * BATCH_SIZE
        assert by_parameter[name] == pytest.approx(length / (0.5 * math.sqrt(start.numel())), rel=1e-4)


@pytest.mark.parametrize("clipping", [*FIXED, BY_LAYER], ids=repr)
def test_the_share_clipped_is_of_units_with_a_weight_below_one_in_some_group(tmp_path, clipping):
    model, plan = make_model(), plan_for(clipping)
    engine = ClipEngine(model, clipping=FlatClipping(max_norm=0.5) if clipping is BY_LAYER else clipping)
    private = private_for(
        tmp_path, clipping, model=model, plan=plan, engine=engine, show_norms=True, physical_batch_size=4,
        noise=NoNoise(),
    )  # fmt: skip
    now = private._norms.now()
    clipped = 0
    for i in range(11):
        grads = torch.autograd.grad(
            long_for_some(model, make_data()[i : i + 1]).sum(), list(model.parameters())
        )
        named = {n: g.double() for (n, _), g in zip(model.named_parameters(), grads, strict=True)}
        parts, _ = clipped_one(named, now)
        limits = limits_of(named, now)
        stability = getattr(now, "stability", 0.0)
        clipped += any(norm + stability > limits[names] for names, (_, norm) in parts.items())
    take(private, rows_of(plan, range(11)), long_for_some)
    assert private.last_not_private["clip_fraction"] == pytest.approx(clipped / 11)


def test_a_unit_shorter_than_the_bound_counts_as_clipped_where_one_layer_was():
    """Two layers of one norm each, 0.5 / sqrt(2): a unit of length 0.4 with 0.39 of it in one of them."""
    added = BoundedSum(
        total={},
        bound=0.5,
        norms=torch.tensor([0.4, 0.45, math.inf]),
        group_norms=torch.tensor([[0.39, 0.09], [0.32, 0.32], [math.inf, 0.1]]),
    )
    sizes = {"a.weight": 2, "b.weight": 2}
    by_layer = anything_clipped(added, PerLayerClipping(max_norm=0.5), sizes)
    assert by_layer.tolist() == [1.0, 0.0, 1.0]
    assert anything_clipped(added, FlatClipping(max_norm=0.42), sizes).tolist() == [0.0, 1.0, 1.0]
    silent = dataclasses.replace(added, group_norms=None)
    assert anything_clipped(silent, PerLayerClipping(max_norm=0.5), sizes).isnan().all()


def test_the_cosine_shown_is_of_the_noised_sum_and_the_clean_one(tmp_path):
    """A step's update, of SGD at rate 1, is the noised sum; the same step without noise, the clean one."""
    updates = []
    for noise in (None, NoNoise()):
        model = make_model()
        plan = plan_for(FIXED[0])
        private = private_for(
            tmp_path / str(len(updates)), FIXED[0], model=model, plan=plan, show_norms=True,
            noise=noise or CipherNoise.reproducible(3, start=0),
        )  # fmt: skip
        before = weights_of(model)
        take(private, rows_of(plan, range(11)), long_for_some)
        updates.append(before - weights_of(model))
        if noise is None:
            shown = private.last_not_private["cosine"]
    noised, clean = (u.double() for u in updates)
    expected = float(noised @ clean / (noised.norm() * clean.norm()))
    assert 0.0 < abs(expected) < 0.99
    assert shown == pytest.approx(expected, rel=1e-4)


def stop_at(monkeypatch, point):
    """Kill the run in its sixth step (the checkpoint holds four) at a point of the release."""
    from reticent.train import _loop

    def stopping(real, is_time):
        def call(*args, **options):
            if is_time(args):
                raise Stop
            return real(*args, **options)

        return call

    spent = {"entries": 0}
    append = Ledger.append_step

    def counting(self, mechanism):
        append(self, mechanism)
        spent["entries"] += 1

    monkeypatch.setattr(Ledger, "append_step", counting)
    sixth = lambda args: spent["entries"] == 6  # noqa: E731
    match point:
        case "before the noise":
            monkeypatch.setattr(Alone, "add_noise", stopping(Alone.add_noise, sixth))
        case "before the count's noise":
            of_count = lambda args: sixth(args) and list(args[1].total) == ["count"]  # noqa: E731
            monkeypatch.setattr(Alone, "add_noise", stopping(Alone.add_noise, of_count))
        case "before the update":
            monkeypatch.setattr(torch.optim.SGD, "step", stopping(torch.optim.SGD.step, sixth))
        case "before the checkpoint":
            monkeypatch.setattr(_loop, "save_checkpoint", stopping(_loop.save_checkpoint, sixth))


POINTS = ["before the noise", "before the count's noise", "before the update", "before the checkpoint"]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_in_the_release_loses_the_update_of_the_norm_and_nothing_else(
    tmp_path, engines, monkeypatch, point
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, point)
        with pytest.raises(Stop):
            run(out, ADAPTIVE)
    saved = load_checkpoint(out, say=print)
    assert (saved.step, read_ledger(out / "ledger.jsonl").num_steps) == (4, 6)
    assert saved.clip_norms != (0.5,)
    result = go_on(out)
    assert engines[-1].calls[0] == FlatClipping(max_norm=saved.clip_norms[0])
    assert (result.num_steps, result.num_lost) == (8, 2)
