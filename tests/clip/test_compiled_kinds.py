"""The traced graph under every kind of clipping, for convolutions, and for tiny gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from reticent.clip import ClipEngine, CompiledEngine
from reticent.clipping import AutomaticClipping, FlatClipping, GroupedClipping, PerLayerClipping, StepClipping
from reticent.errors import ConfigError, UnsupportedModel
from reticent.rules import Gather
from reticent.rules._conv import ConvForm
from reticent.rules._conv_methods import ConvSettings
from tests.support import oracle, zoo
from tests.support.case import Case
from tests.support.judge import assert_close, median_norm

GROUPS = (("0.*", 0.3), ("*.weight", 0.2), ("*", 0.1))
CONVOLUTIONS = zoo.named(
    "cnn-group-norm", "conv1d", "conv2d-stride-padding", "conv2d-1x1", "conv2d-groups",
    "conv2d-depthwise-times-2", "conv3d-groups-stride", "conv-transpose2d-output-padding",
    "conv-transpose1d-depthwise", "conv-used-three-times",
)  # fmt: skip
# Replayed without a rule and compared by value, or not one graph for another reason.
REFUSED = frozenset((
    "prelu-one", "prelu-channels", "bilinear", "mask-token-assigned", "matmul-vector",
    "matmul-transposed-batch-last", "einsum", "einsum-over-time", "einsum-batch-contracted-last", "tensordot",
    "experts-bmm-all-used", "weight-norm-old-hook", "parameters-in-plain-containers", "examples-in-last-axis",
))  # fmt: skip


pytestmark = pytest.mark.usefixtures("same_data", "as_traced")


def network() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double()
        return model, torch.randn(7, 5, dtype=torch.float64)


def losses_of(model: nn.Module):
    return lambda x: model(x).square().sum(1)


def parts(clipping: StepClipping, names: list[str]) -> dict[str, tuple[object, float]]:
    """Parameter -> (its group, the group's norm), written down by hand."""
    match clipping:
        case PerLayerClipping():
            return {n: (n.split(".")[0], clipping.max_norm / math.sqrt(3)) for n in names}
        case GroupedClipping():
            return {
                n: GROUPS[0] if n.startswith("0.") else GROUPS[1] if n.endswith("weight") else GROUPS[2]
                for n in names
            }
        case _:
            return {n: ("all", clipping.max_norm) for n in names}


def reference(model: nn.Module, x: Tensor, clipping: StepClipping) -> tuple[dict[str, Tensor], Tensor]:
    """The sum, and each unit's norm in each group, one unit at a time; what is not finite adds nothing."""
    bounds = parts(clipping, [n for n, _ in model.named_parameters()])
    groups = list(dict.fromkeys(bounds.values()))
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    norms = torch.zeros(len(x), len(groups), dtype=torch.float64)
    for u in range(len(x)):
        grads = oracle.unit_gradient(model, losses_of(model), x[u : u + 1])
        for i, (group, bound) in enumerate(groups):
            mine = {n: g for n, g in grads.items() if bounds[n] == (group, bound)}
            norm = norms[u, i] = oracle.norm_of(mine)
            if not norm.isfinite():
                continue
            weight = (
                bound / (norm + clipping.stability)
                if isinstance(clipping, AutomaticClipping)
                else min(1.0, bound / float(norm))
            )
            total |= {n: total[n] + weight * g for n, g in mine.items()}
    return total, norms


@pytest.mark.parametrize("rows", [7, 3, 4])
@pytest.mark.parametrize(
    "clipping",
    [
        FlatClipping(max_norm=0.7),
        AutomaticClipping(max_norm=0.7, stability=0.05),
        AutomaticClipping(max_norm=0.7, stability=1e-4),
        PerLayerClipping(max_norm=0.7),
        GroupedClipping(max_norms=GROUPS),
    ],
    ids=lambda c: type(c).__name__,
)
def test_every_kind_of_clipping_is_that_of_one_unit_at_a_time(clipping: StepClipping, rows: int) -> None:
    model, x = network()
    x = x[:rows]
    engine = CompiledEngine(model, clipping=clipping, physical_batch_size=4)
    eager = ClipEngine(model, clipping=clipping).clipped_sum(losses_of(model), x)
    total, norm_UL = reference(model, x, clipping)
    for _ in range(2):
        got = engine.clipped_sum(losses_of(model), x)
        assert oracle.distance(dict(got.total), total) < 1e-10
        torch.testing.assert_close(got.norms, norm_UL.square().sum(1).sqrt(), rtol=1e-10, atol=0.0)
        assert got.bound == eager.bound
        if norm_UL.shape[1] == 1:
            assert got.group_norms is None
        else:
            torch.testing.assert_close(got.group_norms, norm_UL, rtol=1e-10, atol=0.0)
    assert engine.num_eager == 1


def test_another_norm_for_one_call_runs_the_same_graph() -> None:
    model, x = network()
    engine = CompiledEngine(model, max_norm=0.7, physical_batch_size=8)
    for clipping in (None, FlatClipping(max_norm=0.2), FlatClipping(max_norm=1e3), None):
        got = engine.clipped_sum(losses_of(model), x, clipping=clipping)
        norm = 0.7 if clipping is None else clipping.max_norm
        total, norms = oracle.loop_clipped_sum(model, losses_of(model), x, norm)
        assert_close(got, total, norms, max_norm=norm, tolerance=1e-10)
        assert got.bound == norm
    assert engine.num_eager == 1
    engine.clipped_sum(losses_of(model), x, clipping=PerLayerClipping(max_norm=0.7))
    assert engine.num_eager == 2, "other groups are another graph"


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "kind",
    [PerLayerClipping(max_norm=0.4), GroupedClipping(max_norms=GROUPS), AutomaticClipping(max_norm=0.4)],
    ids=lambda c: type(c).__name__,
)
def test_a_row_that_is_not_finite_counts_as_zero_where_it_is_not(
    kind: StepClipping, bad: float, at: int
) -> None:
    """Behind the tanh an infinity is finite again: the layers above count, as `ClipEngine` has it."""
    model, x = network()
    engine = CompiledEngine(model, clipping=kind, physical_batch_size=8)
    engine.clipped_sum(losses_of(model), x)
    broken = x.clone()
    broken[at, 1] = bad
    total, norm_UL = reference(model, broken, kind)
    for answer in (engine, ClipEngine(model, clipping=kind)):
        got = answer.clipped_sum(losses_of(model), broken)
        assert oracle.distance(dict(got.total), total) < 1e-10
        finite_U = torch.arange(len(x)) != at
        assert torch.equal(got.norms.isfinite(), finite_U)
        if norm_UL.shape[1] > 1:
            torch.testing.assert_close(got.group_norms, norm_UL, rtol=1e-10, atol=0.0)
            assert bool(norm_UL[at].isfinite().any()) == (bad == math.inf)
    partly = bad == math.inf and norm_UL.shape[1] > 1
    assert engine.num_eager == 1 + partly, "only what is finite in part runs alone"


def test_units_that_run_alone_leave_the_draws_of_later_chunks_as_they_are() -> None:
    _, x = network()
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    engine = CompiledEngine(model, clipping=PerLayerClipping(max_norm=0.4), physical_batch_size=7)
    engine.clipped_sum(losses_of(model), x)
    broken = x.clone()
    broken[2, 1] = math.inf
    later, eager = [], engine.num_eager
    with torch.random.fork_rng():
        for first in (x, broken):
            torch.manual_seed(3)
            engine.clipped_sum(losses_of(model), first)
            later.append(engine.clipped_sum(losses_of(model), x))
    assert engine.num_eager == eager + 1
    assert torch.equal(later[0].norms, later[1].norms)


def test_exactly_one_of_max_norm_and_clipping_is_asked_for() -> None:
    for given in ({}, {"max_norm": 1.0, "clipping": FlatClipping(max_norm=1.0)}):
        with pytest.raises(ConfigError) as caught:
            CompiledEngine(nn.Linear(2, 2), physical_batch_size=2, **given)
        assert caught.value.code == "clipping"


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=repr)
def test_convolutions_are_exact_in_one_graph(case: Case, dtype: torch.dtype) -> None:
    wide, problem = case.build(0, torch.float64), case.build(0, dtype)
    max_norm = median_norm(wide)
    total, norms = oracle.loop_clipped_sum(wide.model, wide.losses, wide.batch, max_norm)
    engine = CompiledEngine(problem.model, max_norm=max_norm, physical_batch_size=problem.num_rows + 1)
    for _ in range(2):
        got = engine.clipped_sum(problem.losses, problem.batch)
        assert_close(
            got, total, norms, max_norm=max_norm, tolerance=1e-10 if dtype == torch.float64 else 1e-3
        )
    assert engine.num_eager == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("case", zoo.EXACT, ids=repr)
def test_what_the_engine_clips_is_exact_in_one_graph_or_refused(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    engine = CompiledEngine(problem.model, max_norm=max_norm, physical_batch_size=problem.num_rows + 1)
    if case.name in REFUSED:
        with pytest.raises(UnsupportedModel) as caught:
            engine.clipped_sum(problem.losses, problem.batch)
        assert caught.value.code in ("compile-data-dependent", "compile-side-effect", "compile-unstable")
        return
    for _ in range(2):
        got = engine.clipped_sum(problem.losses, problem.batch)
        assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-9)
    assert engine.num_eager == 1


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e-25])
@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5), (48, 40, 4), (80, 80, 3)], ids=str)
def test_without_branches_a_convolutions_norm_is_not_below_the_truth(
    shape: tuple[int, int, int], cancelling: bool, scale: float
) -> None:
    torch.manual_seed(0)
    num_in, num_out, size = shape
    conf = ConvSettings((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    x, g = torch.randn(6, num_in, size, size), torch.randn(6, num_out, size, size) * scale
    if cancelling:
        x = x[..., :1, :1].expand_as(x).contiguous()
        g = g - g.mean((2, 3), keepdim=True)
    g[-1] = 0.0
    weight = torch.zeros(num_out, num_in, 3, 3)
    doubts: list[Tensor] = []
    square_U = ConvForm(conf, x, g, weight, 6).squared_norm(doubts)
    assert all(d.shape == (6,) and not d[-1] for d in doubts)
    for u in range(6):
        grad = torch.nn.grad.conv2d_weight(
            x[u : u + 1].double(), weight.shape, g[u : u + 1].double(), padding=1
        )
        truth = float(grad.square().sum())
        assert float(square_U[u]) >= truth * (1 - 1e-12)
        if not any(bool(d[u]) for d in doubts):
            rounding = 1e-6 * float(x[u].double().norm() * g[u].double().norm())
            assert float(square_U[u]) ** 0.5 <= truth**0.5 * (1 + 1e-3) + rounding


@pytest.mark.parametrize("method", ["gram", "rows"])
def test_rows_too_small_for_float32_products_are_not_lost(method: str) -> None:
    g = torch.full((2, 3, 4), 1e-24)
    g[1] = 0.0
    square_U, _ = Gather(torch.zeros(2, 3, dtype=torch.int64), g, 5).settle(method)
    want = g.double().sum(1).square().sum(1)
    torch.testing.assert_close(square_U, want, rtol=1e-5, atol=0.0)
    assert square_U[1] == 0.0


def test_a_norm_beyond_float32_counts_as_in_the_eager_engine() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, 16), torch.randn(4, 3, 16)
    losses = lambda x: 1e14 * model(x).tanh().sum((1, 2)) + 1e14 * model(x).sum((1, 2))  # noqa: E731
    compiled = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    compiled.clipped_sum(losses, x)
    x = torch.cat([x[:1], 1e6 * x[1:2], x[2:]])
    want, got = ClipEngine(model, max_norm=1.0).clipped_sum(losses, x), compiled.clipped_sum(losses, x)
    assert float(want.norms[1]) > 1e20
    torch.testing.assert_close(got.norms, want.norms, rtol=1e-4, atol=0.0)
    for name, total in want.total.items():
        torch.testing.assert_close(got.total[name], total, rtol=1e-3, atol=1e-4)


def test_a_chunk_that_allows_no_comparison_runs_once_eagerly() -> None:
    model = nn.Linear(4, 3, bias=False).double()
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=2)
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    for times in range(1, 5):
        found = engine.clipped_sum(losses_of(model), zeros)
        assert not any(bool(t.any()) for t in found.total.values())
        assert engine.num_eager == times
    want = ClipEngine(model, max_norm=1.0).clipped_sum(losses_of(model), zeros + 1.0)
    got = engine.clipped_sum(losses_of(model), zeros + 1.0)
    torch.testing.assert_close(got.total["weight"], want.total["weight"])
