"""No graph is used before a comparison that says something: what counts as one, and when it is tried.

Shape letters (this file): U units, L groups.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine, CompiledEngine, _compiled
from reticent.clip._agree import agree, lowered, tolerance
from reticent.clip._groups import Group
from reticent.clip._precision import precisions
from reticent.clipping import FlatClipping, GroupedClipping, PerLayerClipping, StepClipping
from reticent.errors import UnsupportedModel
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("same_data", "as_traced")


@pytest.fixture
def threefold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler whose sums are three times what they should be, and its norms right."""

    def compiled(module, inputs):
        def run(*inputs: Tensor):
            *sums, norm_UL, finite_UL, doubt_U = module(*inputs)
            return (*(3 * t for t in sums), norm_UL, finite_UL, doubt_U)

        return run

    monkeypatch.setattr(_compiled, "_compile_graph", compiled)


def linear(max_norm: float) -> tuple[CompiledEngine, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return CompiledEngine(model, max_norm=max_norm, physical_batch_size=4), model, torch.randn(4, 4)


def losses_of(model: nn.Module):
    return lambda x: model(x).square().sum(1)


def summed(norms: Tensor, totals: dict[str, float]) -> BoundedSum:
    """A sum of one parameter for each total, of so long a gradient; norms are (U, L)."""
    several = norms.shape[1] > 1
    return BoundedSum(
        total={name: torch.full((4,), size / 2, dtype=torch.float64) for name, size in totals.items()},
        bound=1.0,
        norms=torch.linalg.vector_norm(norms, dim=1) if several else norms[:, 0],
        group_norms=norms if several else None,
    )


# -- what counts as a comparison ----------------------------------------------------------------------


def test_agreement_to_a_share_of_a_large_norm_lets_no_wrong_graph_pass(threefold: None) -> None:
    """All gradients are short beside C, and almost any sum agrees to a share of C; another C comes later."""
    engine, model, x = linear(max_norm=1e8)
    want = ClipEngine(model, max_norm=1e8).clipped_sum(losses_of(model), x)
    got = engine.clipped_sum(losses_of(model), x)
    assert oracle.distance(dict(got.total), dict(want.total)) < 1e-5
    smaller = FlatClipping(max_norm=0.1)
    for _ in range(3):
        with pytest.raises(UnsupportedModel, match="does not give the sum"):
            engine.clipped_sum(losses_of(model), x[:1], clipping=smaller)


def test_a_right_graph_is_used_however_large_the_norm() -> None:
    engine, model, x = linear(max_norm=1e8)
    for _ in range(3):
        engine.clipped_sum(losses_of(model), x)
    assert engine.num_eager == 2  # one of them clipped to a norm that clips


@pytest.mark.parametrize(
    "clipping",
    [
        FlatClipping(max_norm=100.0),
        PerLayerClipping(max_norm=100.0),
        GroupedClipping(max_norms=(("*weight", 80.0), ("*", 90.0))),
    ],
)
def test_a_graph_that_forgets_to_clip_is_refused_though_no_unit_need_be_clipped(
    monkeypatch: pytest.MonkeyPatch, clipping: StepClipping
) -> None:
    def compiled(module, inputs):
        at = max(i for i, t in enumerate(inputs) if t.dtype == torch.float64)

        def run(*inputs: Tensor):
            return module(*inputs[:at], torch.full_like(inputs[at], 1e30), *inputs[at + 1 :])

        return run

    monkeypatch.setattr(_compiled, "_compile_graph", compiled)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    engine = CompiledEngine(model, clipping=clipping, physical_batch_size=4)
    with pytest.raises(UnsupportedModel, match="does not give the sum"):
        engine.clipped_sum(losses_of(model), torch.randn(4, 4))


class Adapted(nn.Module):
    """A head, beside it a low-rank product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x[:, :5]) + self.b(self.a(x)))


@pytest.mark.parametrize("clipping", [FlatClipping(max_norm=1.0), PerLayerClipping(max_norm=1.0)])
@pytest.mark.parametrize("wrong", ["short", "zero"])
def test_a_parameters_sum_that_is_short_beside_others_is_compared_or_told_from_nothing(
    monkeypatch: pytest.MonkeyPatch, wrong: str, clipping: StepClipping
) -> None:
    """Sums of one matrix are three times what they should be, and all but vanish in the first chunks."""
    torch.manual_seed(0)
    model, x = Adapted(), torch.randn(4, 6)
    with torch.no_grad():
        (model.b if wrong == "short" else model.a).weight.fill_(1e-4 if wrong == "short" else 0.0)
    shape = (model.a if wrong == "short" else model.b).weight.shape

    def compiled(module, inputs):
        def run(*inputs: Tensor):
            *sums, norm_UL, finite_UL, doubt_U = module(*inputs)
            return (*(3 * t if t.shape == shape else t for t in sums), norm_UL, finite_UL, doubt_U)

        return run

    monkeypatch.setattr(_compiled, "_compile_graph", compiled)
    engine = CompiledEngine(model, clipping=clipping, physical_batch_size=4)
    refused = 0
    for step in range(6):
        if step == 2:
            torch.manual_seed(1)
            nn.init.normal_((model.b if wrong == "short" else model.a).weight)
        want = ClipEngine(model, clipping=clipping).clipped_sum(losses_of(model), x)
        try:
            got = engine.clipped_sum(losses_of(model), x)
        except UnsupportedModel as error:
            assert error.code == "compile-self-check"
            refused += 1
        else:
            assert oracle.distance(dict(got.total), dict(want.total)) < 1e-4
    assert refused


def test_a_chunk_that_proves_too_little_leaves_random_state_as_the_eager_engine_does() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    nn.init.zeros_(model[2].weight)
    x, after = torch.randn(4, 4), []
    for engine in (
        ClipEngine(model, max_norm=1.0),
        CompiledEngine(model, max_norm=1.0, physical_batch_size=4),
    ):
        torch.manual_seed(1)
        engine.clipped_sum(losses_of(model), x)
        after.append(torch.rand(1))
    assert torch.equal(*after)


def test_a_gradient_of_padding_alone_compares_nothing(threefold: None) -> None:
    """A unit whose rows cancel, and padding that repeats one of them."""
    model = nn.ParameterList([nn.Parameter(torch.ones(4, dtype=torch.float64))])
    losses = lambda x: (x * model[0]).sum(1)  # noqa: E731
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    x = torch.randn(1, 4, dtype=torch.float64)
    found = engine.clipped_sum(losses, torch.cat([x, -x]), num_units=1)
    assert float(found.norms) == 0.0
    with pytest.raises(UnsupportedModel, match="does not give the sum"):
        engine.clipped_sum(losses, torch.cat([x, x]), num_units=1)


def test_what_the_graph_lacks_is_a_part_of_the_sum() -> None:
    groups = [Group(names=("a", "b"), max_norm=1.0)]
    eager = summed(torch.ones(1, 1, dtype=torch.float64), {"a": 1.0, "b": 1e-9})
    sums = dict(eager.total)
    assert agree(groups, sums, eager.norms[:, None], eager, 1e-3)
    del sums["b"]
    assert agree(groups, sums, eager.norms[:, None], eager, 1e-3) is False
    eager.total["b"].zero_()
    assert agree(groups, sums, eager.norms[:, None], eager, 1e-3)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_a_graph_without_a_parameter_that_the_eager_engine_reaches_is_refused() -> None:
    """A reentrant checkpoint sees that rows require a gradient, and those of a graph do not."""
    torch.manual_seed(0)
    block, head = nn.Linear(4, 4), nn.Linear(4, 1)
    model, x = nn.ModuleList([block, head]), torch.randn(4, 4, requires_grad=True)
    engine = CompiledEngine(model, max_norm=1e2, physical_batch_size=4)

    def losses(x: Tensor) -> Tensor:
        return head(x).squeeze(1) + 1e-3 * checkpoint(block, x, use_reentrant=True).sum(1)

    with pytest.raises(UnsupportedModel, match="does not give the sum"):
        engine.clipped_sum(losses, x)


@pytest.mark.parametrize(
    ("norm", "found"),
    [(1e-7, None), (0.5, False), (math.nan, False)],
)
def test_short_gradients_need_not_agree_and_tell_nothing_then(norm: float, found: bool | None) -> None:
    groups = [Group(names=("weight",), max_norm=1.0)]
    short = norm < 1e-6
    eager = summed(torch.tensor([[1e-7 if short else 0.5]]).double(), {"weight": 1e-7 if short else 0.5})
    norm_UL = torch.tensor([[1.5 * norm]], dtype=torch.float64)
    assert agree(groups, eager.total, eager.norms[:, None], eager, 1e-3) is True
    other = {name: t * 1.5 for name, t in eager.total.items()}
    assert agree(groups, other, norm_UL, eager, 1e-3) is found
    nothing = summed(torch.zeros(1, 1, dtype=torch.float64), {"weight": 0.0})
    assert agree(groups, nothing.total, nothing.norms[:, None], nothing, 1e-3) is None


def test_short_gradients_beside_long_ones_need_not_agree() -> None:
    groups = [Group(names=("weight",), max_norm=1.0)]
    eager = summed(torch.tensor([[1.0], [1e-7]], dtype=torch.float64), {"weight": 1.0})
    norm_UL = torch.tensor([[1.0], [2e-7]], dtype=torch.float64)
    assert agree(groups, {"weight": eager.total["weight"] + 1e-7}, norm_UL, eager, 1e-3) is True
    twice = {"weight": eager.total["weight"] * 2}
    assert agree(groups, twice, norm_UL, eager, 1e-3) is False


def test_units_that_are_rounding_do_not_say_how_far_to_lower_the_norm() -> None:
    """15 real gradients beside 17 of examples that are learned by heart, each off by a tenth of itself."""
    groups, norm_UL = [Group(names=("weight",), max_norm=1.0)], torch.ones(32, 1, dtype=torch.float64)
    norm_UL[15:] = 1e-6
    lower = lowered(FlatClipping(max_norm=1.0), groups, norm_UL)
    assert lower is None  # the 15 are clipped as it is
    lower = lowered(FlatClipping(max_norm=8.0), [Group(names=("weight",), max_norm=8.0)], norm_UL)
    assert lower == FlatClipping(max_norm=0.5)
    groups = [Group(names=("weight",), max_norm=0.5)]
    eager = summed(norm_UL, {"weight": 7.5})
    sums = {"weight": eager.total["weight"] + 1e-6}
    assert agree(groups, sums, norm_UL * (1 + 1e-4), eager, 1e-3, short_L=[0.08]) is True


@pytest.mark.parametrize(("stability", "norm", "off"), [(1e-2, 1e-6, 1e-6), (1e-4, 1e-6, 1e-7)])
def test_automatic_clipping_of_what_is_learned_by_heart_tells_nothing(
    stability: float, norm: float, off: float
) -> None:
    """Its weights are far above 1 there, and so is what they make of rounding."""
    groups = [Group(names=("weight",), max_norm=1.0, stability=stability)]
    norm_UL = torch.full((32, 1), norm, dtype=torch.float64)
    weight = 1.0 / (norm + stability)
    eager = summed(norm_UL, {"weight": 32 * weight * norm})
    sums = {"weight": eager.total["weight"] + 32 * weight * off / 4}
    assert agree(groups, sums, norm_UL + off, eager, 1e-3) is None


def test_few_long_gradients_among_many_that_are_zero_tell_only_by_their_own_share() -> None:
    """A share of what 200 units might add up to is all that one unit adds."""
    groups = [Group(names=("weight",), max_norm=1.0)]
    norm_UL = torch.zeros(200, 1, dtype=torch.float64)
    norm_UL[7] = 0.1
    eager = summed(norm_UL, {"weight": 0.1})
    assert agree(groups, eager.total, norm_UL, eager, 5e-2) is True
    assert agree(groups, {"weight": eager.total["weight"] * 1.9}, norm_UL, eager, 5e-2) is None
    assert agree(groups, {"weight": eager.total["weight"] * 9}, norm_UL, eager, 5e-2) is False


def test_one_groups_long_gradients_tell_nothing_of_anothers() -> None:
    groups = [Group(names=("a",), max_norm=1.0), Group(names=("b",), max_norm=1e6)]
    eager = summed(torch.ones(3, 2, dtype=torch.float64), {"a": 3.0, "b": 3.0})
    norm_UL = torch.ones(4, 2, dtype=torch.float64)  # with padding
    assert agree(groups, eager.total, norm_UL, eager, 1e-3) is True
    norm_UL[0, 1] = 1.5
    assert agree(groups, eager.total, norm_UL, eager, 1e-3) is None
    norm_UL[0] = torch.tensor([1.5, 1.0])
    assert agree(groups, eager.total, norm_UL, eager, 1e-3) is False


def test_the_loosest_parameter_says_how_far_sums_may_differ() -> None:
    params = [torch.zeros(1, dtype=torch.float64), torch.zeros(1)]
    assert tolerance(params[:1], half=False) < tolerance(params, half=False) == 1e-3
    assert tolerance(params, half=True) > 1e-3


def test_what_is_compared_with_runs_in_full_float32_as_graphs_do() -> None:
    """TF32's products are too coarse for the comparison of float32 sums."""
    engine, model, x = linear(max_norm=1.0)
    seen = []

    def losses(x: Tensor) -> Tensor:
        seen.append(precisions("cpu"))
        return losses_of(model)(x)

    matmul = torch.backends.mkldnn.matmul
    was = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        engine.clipped_sum(losses, x)
        assert precisions("cpu")[0] == "bf16"
    finally:
        matmul.fp32_precision = was
    assert set(seen[0]) <= {"none", "ieee"}


# -- when it is tried ---------------------------------------------------------------------------------


def test_a_graph_that_no_chunk_can_be_compared_with_costs_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, model, x = linear(max_norm=1.0)
    tried = []
    monkeypatch.setattr(_compiled, "compare", lambda *args, **kwargs: tried.append(engine.num_eager))
    for _ in range(9):
        engine.clipped_sum(losses_of(model), x)
    assert tried == [1, 2, 4, 8], "the numbers of the chunks"
    assert engine.num_eager == 9


def test_a_wrong_graph_is_refused_in_every_call_whatever_came_before(threefold: None) -> None:
    engine, model, x = linear(max_norm=1e8)
    for _ in range(3):
        engine.clipped_sum(losses_of(model), x)
    for _ in range(4):
        with pytest.raises(UnsupportedModel, match="does not give the sum"):
            engine.clipped_sum(losses_of(model), x, clipping=FlatClipping(max_norm=0.1))


class Branch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


def test_what_is_not_one_graph_is_refused_in_every_call() -> None:
    model = Branch(3, 3)
    engine = CompiledEngine(model, max_norm=1.0, physical_batch_size=4)
    for _ in range(5):
        with pytest.raises(UnsupportedModel) as caught:
            engine.clipped_sum(losses_of(model), torch.randn(4, 3))
        assert caught.value.code == "compile-data-dependent"
