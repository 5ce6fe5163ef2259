"""Every way to clip, and every way to run it, against one unit at a time in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reticent as rt
from reticent.clipping import AutomaticClipping, FlatClipping, GroupedClipping, PerLayerClipping, StepClipping
from reticent.errors import ConfigError, UnsupportedModel
from tests.support import oracle, zoo
from tests.support.case import Case, Problem
from tests.support.judge import assert_close, median_norm

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]

A_FEW = zoo.named(
    "mlp", "cnn-group-norm", "lm-tied-function", "class-token", "lstm-time-major-square", "encoder-layer",
    "flattened-time-batch-square", "relative-bias-table", "weight-standardised-conv", "composition-3",
)  # fmt: skip

Weight = Callable[[float, float], float]  # (norm, bound of the group) -> weight


def _clipped(norm: float, bound: float) -> float:
    return 1.0 / max(1.0, norm / bound)


def reference(
    problem: Problem, bounds: dict[str, tuple[str, float]], weight: Weight, num_units: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Each group's gradient scaled by itself, one unit at a time.

    Args:
        problem: the model, losses and batch.
        bounds: parameter -> (its group, the group's norm).
        weight: from a group's norm and bound.
        num_units: units, of contiguous rows.

    Returns:
        The sums, and each unit's norm over everything.
    """
    rows = problem.num_rows
    units = rows if num_units is None else num_units
    k = rows // units
    total = {name: torch.zeros((), dtype=torch.float64) for name in bounds}
    norms = []
    for u in range(units):
        grads = oracle.unit_gradient(
            problem.model, problem.losses, oracle.take_rows(problem.batch, slice(u * k, (u + 1) * k))
        )
        norms.append(float(oracle.norm_of(grads)))
        for group, bound in set(bounds.values()):
            mine = {n: g for n, g in grads.items() if bounds[n] == (group, bound)}
            norm = float(oracle.norm_of(mine))
            for name, grad in mine.items():
                total[name] = total[name] + (weight(norm, bound) * grad if math.isfinite(norm) else 0 * grad)
    return total, torch.tensor(norms, dtype=torch.float64)


def _names(problem: Problem) -> list[str]:
    return [n for n, p in problem.model.named_parameters() if p.requires_grad]


def _by_layer(problem: Problem, max_norm: float) -> dict[str, tuple[str, float]]:
    layers = {name: ".".join(name.split(".")[:-1]) for name in _names(problem)}
    each = max_norm / math.sqrt(len(set(layers.values())))
    return {name: (layer, each) for name, layer in layers.items()}


def check(
    problem: Problem, clipping: StepClipping, want: tuple[dict[str, Tensor], Tensor], **settings: Any
) -> None:
    got = rt.clipped_sum(problem.model, problem.losses, problem.batch, clipping=clipping, **settings)
    assert_close(got, *want, max_norm=got.bound, tolerance=1e-9)


@pytest.mark.parametrize("case", (*zoo.EXACT, *zoo.GENERATED), ids=repr)
def test_two_backwards_give_the_same_sum_as_one(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    check(problem, FlatClipping(max_norm=max_norm), (total, norms), method="ghost")


@pytest.mark.parametrize("case", (*zoo.EXACT, *zoo.GENERATED), ids=repr)
def test_each_layer_is_clipped_by_itself(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    want = reference(problem, _by_layer(problem, max_norm), _clipped)
    check(problem, PerLayerClipping(max_norm=max_norm), want)


@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_every_method_clips_each_layer_alike(case: Case, method: str) -> None:
    problem = case.build(1, torch.float64)
    max_norm = median_norm(problem)
    want = reference(problem, _by_layer(problem, max_norm), _clipped)
    check(problem, PerLayerClipping(max_norm=max_norm), want, method=method)


@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
@pytest.mark.parametrize("stability", [1e-4, 0.01, 10.0])
@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_automatic_clipping_weighs_by_the_inverse_of_the_norm(
    case: Case, stability: float, method: str
) -> None:
    problem = case.build(2, torch.float64)
    bounds = {name: ("all", 0.5) for name in _names(problem)}
    want = reference(problem, bounds, lambda norm, bound: bound / (norm + stability))
    check(problem, AutomaticClipping(max_norm=0.5, stability=stability), want, method=method)


@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
def test_groups_are_taken_by_the_first_pattern_that_matches(method: str) -> None:
    (case,) = zoo.named("encoder-layer")
    problem = case.build(3, torch.float64)
    norms = {"*attn*": 0.05, "*.weight": 0.2, "*": 0.1}

    def group(name: str) -> str:
        return "*attn*" if "attn" in name else "*.weight" if name.endswith(".weight") else "*"

    bounds = {name: (group(name), norms[group(name)]) for name in _names(problem)}
    want = reference(problem, bounds, _clipped)
    clipping = GroupedClipping(max_norms=tuple(norms.items()))
    check(problem, clipping, want, method=method)
    got = rt.clipped_sum(problem.model, problem.losses, problem.batch, clipping=clipping, method=method)
    assert got.bound == pytest.approx(math.sqrt(0.05**2 + 0.2**2 + 0.1**2))
    assert got.group_norms is not None and got.group_norms.shape == (problem.num_rows, 3)
    torch.testing.assert_close(got.group_norms.square().sum(1).sqrt(), got.norms)


MODES = {
    "flat": FlatClipping(max_norm=0.1),
    "per-layer": PerLayerClipping(max_norm=0.1),
    "per-layer-size": PerLayerClipping(max_norm=0.1, split="size"),
    "automatic": AutomaticClipping(max_norm=0.1),
    "normalised": AutomaticClipping(max_norm=0.1, stability=1e-4),
    "grouped": GroupedClipping(max_norms=(("*weight*", 0.1), ("*", 0.02))),
}


@pytest.mark.parametrize("num_units", [None, 2])
@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
@pytest.mark.parametrize("mode", MODES)
def test_no_unit_moves_the_sum_beyond_its_bound(mode: str, method: str, num_units: int | None) -> None:
    (case,) = zoo.named("encoder-layer")
    problem = case.build(4, torch.float32)
    rows = torch.arange(4)
    batch = oracle.take_rows(problem.batch, rows)

    def total(batch: Any, units: int | None) -> dict[str, Tensor]:
        engine = rt.ClipEngine(problem.model, clipping=MODES[mode], method=method)
        return dict(engine.clipped_sum(problem.losses, batch, num_units=units).total)

    k = 1 if num_units is None else 2
    full = total(batch, num_units)
    bound = rt.ClipEngine(problem.model, clipping=MODES[mode]).clipped_sum(problem.losses, batch).bound
    moves = []
    for unit in range(4 // k):
        kept = torch.cat([rows[: unit * k], rows[(unit + 1) * k :]])
        less = total(oracle.take_rows(batch, kept), None if num_units is None else num_units - 1)
        moves.append(oracle.distance(full, less))
    assert max(moves) <= bound * (1 + 1e-5)
    assert max(moves) >= bound / 2, "clipped gradients reach the bound, so a larger one would show"


@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_row_counts_as_zero_in_every_mode(mode: str, bad: float, method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    broken = x.clone()
    broken[2, 1] = bad

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().sum(1)

    engine = rt.ClipEngine(model, clipping=MODES[mode], method=method)
    got = engine.clipped_sum(losses, broken)
    want = engine.clipped_sum(losses, torch.cat([x[:2], x[3:]]))
    assert got.norms[2] == math.inf
    apart = oracle.distance(dict(got.total), dict(want.total))
    if bad == math.inf and got.group_norms is not None:  # tanh makes it finite again for the layers above
        assert bool(got.group_norms[2].isfinite().any())
        assert 0 < apart <= got.bound
    else:
        assert apart < 1e-12


@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
def test_gradients_too_small_for_float32_do_not_make_a_normalised_sum_nan(method: str) -> None:
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1e-22, 0.0], [0.0, 1e-20], [1.0, 1.0]])
    engine = rt.ClipEngine(model, clipping=AutomaticClipping(max_norm=1e15, stability=1e-4), method=method)
    got = engine.clipped_sum(lambda b: (1e-21 * model(b)).sum(1), x)
    assert bool(got.total["weight"].isfinite().all())
    assert float(torch.linalg.vector_norm(got.total["weight"])) <= 3e15 * (1 + 1e-5)


def test_a_clipping_for_one_call_overrides_the_engines() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    engine = rt.ClipEngine(model, max_norm=1e-3)
    got = engine.clipped_sum(lambda b: model(b).square().sum(1), x, clipping=FlatClipping(max_norm=1e3))
    assert got.bound == 1e3
    assert float(torch.linalg.vector_norm(got.total["weight"])) > 1e-2


def test_layers_are_clipped_inside_the_backward_and_let_go() -> None:
    """With per-layer clipping a layer's inputs are gone when the backward reaches the layer below."""
    import weakref

    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = x * 1
            seen.append(weakref.ref(y.untyped_storage()))
            return y

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in seen))
            return grads[0]

    def losses(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(Note.apply(torch.tanh(x)))
        return x.square().sum((1, 2))

    x = torch.randn(4, 3, 8)
    engine = rt.ClipEngine(layers, clipping=PerLayerClipping(max_norm=1.0))
    engine.clipped_sum(losses, x)
    seen.clear(), alive.clear()
    engine.clipped_sum(losses, x)
    assert alive == [5, 4, 3, 2, 1]


def test_exactly_one_of_max_norm_and_clipping_is_asked_for() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="exactly one of max_norm"):
        rt.ClipEngine(model)
    with pytest.raises(ConfigError, match="exactly one of max_norm"):
        rt.ClipEngine(model, max_norm=1.0, clipping=FlatClipping(max_norm=1.0))
    with pytest.raises(ConfigError, match="got dict"):
        rt.ClipEngine(model, clipping={"max_norm": 1.0})  # type: ignore[arg-type]


def test_reentrant_checkpoints_that_share_a_parameter_are_refused_per_layer() -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()

    def losses(x: Tensor) -> Tensor:
        x = torch.tanh(model[0](x))
        x = checkpoint(lambda t: torch.tanh(model[1](torch.tanh(model[0](t)))), x, use_reentrant=True)
        return model[1](x).square().sum(1)

    x = torch.randn(3, 4, dtype=torch.float64)
    engine = rt.ClipEngine(model, clipping=PerLayerClipping(max_norm=0.1))
    with pytest.raises(UnsupportedModel, match="more pieces than the forward recorded"):
        engine.clipped_sum(losses, x)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("mode", ["flat", "per-layer", "ghost"])
def test_activation_checkpointing_is_exact(mode: str, use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    blocks = nn.ModuleList(
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(3)
    ).double()
    table = nn.Embedding(9, 6).double()
    model = nn.ModuleDict({"table": table, "blocks": blocks})

    def losses(ids: Tensor) -> Tensor:
        x = table(ids)
        for block in blocks:
            x = x + checkpoint(block, x, use_reentrant=use_reentrant)
        return F.cross_entropy((x @ table.weight.T).mT, ids, reduction="none").mean(1)

    problem = Problem(model=model, losses=losses, batch=torch.randint(0, 9, (5, 4)))
    clipping = PerLayerClipping(max_norm=0.1) if mode == "per-layer" else FlatClipping(max_norm=0.1)
    bounds = (
        _by_layer(problem, 0.1) if mode == "per-layer" else {name: ("all", 0.1) for name in _names(problem)}
    )
    want = reference(problem, bounds, _clipped)
    check(problem, clipping, want, method="ghost" if mode == "ghost" else "book-keeping")


def test_many_units_in_chunks_add_up_in_every_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(7, 4, dtype=torch.float64)

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().sum(1)

    for clipping in MODES.values():
        for method in ("book-keeping", "ghost"):
            engine = rt.ClipEngine(model, clipping=clipping, method=method)
            whole = engine.clipped_sum(losses, x)
            out = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
            for chunk in x.split(3):
                engine.clipped_sum(losses, chunk, out=out)
            assert oracle.distance(out, dict(whole.total)) < 1e-12


# -- found by an independent review -----------------------------------------------------------------------


def test_norms_and_sums_of_two_backwards_see_the_same_random_draws() -> None:
    """A checkpoint that draws anew each time it runs: both passes must draw alike."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)).train()

    def losses(x: Tensor) -> Tensor:
        y = checkpoint(model, x, use_reentrant=False, preserve_rng_state=False)
        return y.square().sum(1)

    engine = rt.ClipEngine(model, max_norm=1e-2, method="ghost")
    for seed in range(20):
        torch.manual_seed(seed)
        got = engine.clipped_sum(losses, torch.randn(1, 6))
        assert float(oracle.norm_of(dict(got.total))) <= 1e-2 * (1 + 1e-5)


def test_a_small_gradient_mixed_with_a_huge_one_is_no_rounding() -> None:
    from reticent.errors import CoupledExamples

    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def losses(batch: Tensor) -> Tensor:
        y = model(batch[:, :4])
        mixed = torch.cat([y[:1], y[1:2] + 0.5 * y[2:3], y[2:]])
        return (mixed.square().sum(1)) * batch[:, 4]

    x = torch.cat([torch.randn(4, 4), torch.tensor([[1e9], [1.0], [1.0], [1.0]])], 1)
    for _ in range(20):
        with pytest.raises(CoupledExamples):
            rt.ClipEngine(model, max_norm=1.0).clipped_sum(losses, x)


def test_infinity_that_spreads_through_products_with_zero_is_refused() -> None:
    from reticent.errors import CoupledExamples

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

    def losses(x: Tensor) -> Tensor:
        h = model[0](x)
        return model[2](torch.eye(len(h)) @ h.square()).square().sum(1)

    x = torch.randn(5, 4)
    engine = rt.ClipEngine(model, max_norm=1.0)
    engine.clipped_sum(losses, x)
    x[2] *= 1e30
    with torch.no_grad():
        spreads = not bool(losses(x)[:2].isfinite().all())
    assert spreads
    with pytest.raises(CoupledExamples, match="finite alone"):
        engine.clipped_sum(losses, x)


def test_another_axis_in_the_same_operations_is_proven_anew() -> None:
    from reticent.errors import CoupledExamples

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    shift = 0

    def losses(x: Tensor) -> Tensor:
        return model[2](model[:2](x).roll(shift, 0)).square().sum(1)

    x = torch.randn(5, 4)
    engine = rt.ClipEngine(model, max_norm=1.0)
    engine.clipped_sum(losses, x)
    shift = 1
    with pytest.raises(CoupledExamples):
        engine.clipped_sum(losses, x)


@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
def test_a_model_that_lies_in_one_reentrant_checkpoint_is_exact(method: str) -> None:
    """The forward records nothing: that something must be proven shows in the backward only."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    def losses(x: Tensor) -> Tensor:
        return checkpoint(model, x.clone().requires_grad_(), use_reentrant=True).square().sum(1)

    problem = Problem(model=model, losses=losses, batch=torch.randn(5, 4, dtype=torch.float64))
    want = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, 0.1)
    check(problem, FlatClipping(max_norm=0.1), want, method=method)
