"""What cannot be bounded is refused by name, before any sum exists, and the model is as it was."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

import reticent as rt
from reticent.errors import CoupledExamples, ReticentError, UnsupportedModel
from tests.support import oracle, zoo
from tests.support.case import Case
from tests.support.judge import snapshot

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
STATEFUL = {case.name for case in zoo.refused.STATE} | {
    "embedding-max-norm", "spectral-norm-old", "spectral-norm-parametrization", "instance-norm-tracking",
}  # fmt: skip


@DTYPES
@pytest.mark.parametrize("case", zoo.REFUSED, ids=repr)
def test_it_is_refused_with_the_reason(case: Case, dtype: torch.dtype) -> None:
    problem = case.build(0, dtype)
    assert case.refuse is not None
    with pytest.raises(case.refuse, match=case.match) as caught:
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)
    assert isinstance(caught.value, ReticentError)
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", caught.value.code)


@pytest.mark.parametrize("case", [c for c in zoo.REFUSED if c.name not in STATEFUL], ids=repr)
def test_a_refusal_leaves_nothing_on_the_model(case: Case) -> None:
    problem = case.build(0, torch.float64)
    before = snapshot(problem.model)
    values = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    with pytest.raises(ReticentError):
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)
    after = snapshot(problem.model)
    assert {k: v for k, v in after.items() if "<buffer>" not in k} == {
        k: v for k, v in before.items() if "<buffer>" not in k
    }
    assert all(torch.equal(p, values[name]) for name, p in problem.model.named_parameters())


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("case", (*zoo.refused.COUPLED_MODELS, *zoo.refused.COUPLED_LOSSES), ids=repr)
def test_coupling_is_found_whatever_the_data(case: Case, seed: int) -> None:
    problem = case.build(seed, torch.float32)
    with pytest.raises(ReticentError):
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)


@pytest.mark.parametrize(
    "case",
    zoo.named(
        "batch-mean-off-hidden", "batch-softmax", "batch-cumulated", "batch-rolled", "attention-across-batch",
        "lstm-across-batch", "contrastive", "mixed-up", "losses-averaged-and-repeated",
    ),
    ids=repr,
)  # fmt: skip
def test_without_a_batch_gradient_that_flows_between_examples_is_found(case: Case) -> None:
    problem = case.build(0, torch.float64)
    with pytest.raises((CoupledExamples, UnsupportedModel)):
        rt.clipped_sum(problem.model, lambda: problem.losses(problem.batch), max_norm=1.0)


@pytest.mark.parametrize("case", zoo.named("batch-mean-off-hidden", "token-mean-over-batch"), ids=repr)
def test_a_batch_of_one_does_not_excuse_the_next_batch(case: Case) -> None:
    problem = case.build(0, torch.float64)
    one = oracle.take_rows(problem.batch, slice(0, 1))
    rt.clipped_sum(problem.model, problem.losses, one, max_norm=1.0)
    with pytest.raises(CoupledExamples):
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)


@pytest.mark.parametrize("case", zoo.named("batch-mean-off-hidden", "attention-across-batch"), ids=repr)
def test_a_refused_model_says_nothing_about_the_data(case: Case) -> None:
    problem = case.build(0, torch.float64)
    with pytest.raises(ReticentError) as caught:
        rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=1.0)
    numbers = {float(n) for n in re.findall(r"\d+\.\d+", str(caught.value))}
    held = torch.cat([t.flatten() for t in problem.batch]).abs()
    assert not any(bool(((held - n).abs() < 1e-3 * held).any()) for n in numbers)


def test_batches_whose_tensors_disagree_on_rows_are_refused() -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float32)
    x, y = problem.batch
    with pytest.raises(ReticentError, match=r"5.*4|4.*5"):
        rt.clipped_sum(problem.model, problem.losses, (x, y[:4]), max_norm=1.0)


def test_losses_without_any_gradient_are_refused() -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float32)
    with pytest.raises(ReticentError, match=r"(?i)gradient"):
        rt.clipped_sum(
            problem.model, lambda batch: problem.losses(batch).detach(), problem.batch, max_norm=1.0
        )


class Squared(torch.autograd.Function):
    """A custom function that hides a use of the weight from any watcher of torch operations."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad @ w.square().mT, 2 * w * (x.mT @ grad)


class Hidden(nn.Module):
    """Uses its weight in a custom autograd function."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.net = nn.Parameter(torch.ones(3, 3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Squared.apply(x, self.w))


def test_a_parameter_inside_a_custom_function_is_exact_or_refused_by_name() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Hidden().double(), torch.randn(5, 3, dtype=torch.float64)

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().sum(1)

    total, norms = oracle.loop_clipped_sum(model, losses, x, 1.0)
    try:
        got = rt.clipped_sum(model, losses, x, max_norm=1.0)
    except ReticentError as refusal:
        assert re.search(r"\bw\b", str(refusal))
    else:
        torch.testing.assert_close(got.norms, norms)
        assert oracle.distance(dict(got.total), total) < 1e-10


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_a_scripted_module_is_exact_or_refused_by_name() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = torch.randn(5, 3, dtype=torch.float64)
    inner = torch.jit.trace(model[0], x)
    whole = nn.Sequential(inner, model[1], model[2])

    def losses(batch: Tensor) -> Tensor:
        return whole(batch).square().sum(1)

    total, norms = oracle.loop_clipped_sum(whole, losses, x, 1.0)
    try:
        got = rt.clipped_sum(whole, losses, x, max_norm=1.0)
    except ReticentError as refusal:
        assert "0.weight" in str(refusal) or "0.bias" in str(refusal)
    else:
        torch.testing.assert_close(got.norms, norms)
        assert oracle.distance(dict(got.total), total) < 1e-10


class Overwritten(nn.Module):
    """A gate made of a parameter; what its making needs in the backward is overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.weight.exp()
        gate.mul_(2.0)
        return x * gate


def test_a_value_overwritten_since_its_graph_needs_it_is_refused_not_pulled_back() -> None:
    """Autograd notices by itself, except under hooks, which the engine sets around values' graphs."""
    model, x = Overwritten(), torch.randn(3, 5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    engine = rt.ClipEngine(model, max_norm=1.0)
    with pytest.raises(UnsupportedModel, match="overwritten by a later in-place operation") as caught:
        engine.clipped_sum(lambda rows: model(rows).sum(1), x)
    assert caught.value.code == "in-place-parameter"


def test_where_gradients_are_not_finite_the_refusal_says_so() -> None:
    """What mixes can hardly be told from weights that diverged."""
    model = nn.Linear(4, 5)
    engine = rt.ClipEngine(model, max_norm=1.0)

    def losses(x: Tensor) -> Tensor:
        y = model(x)
        return (y + y.roll(1, 0)).sum(1) * torch.tensor([1.0, math.inf, 1.0])

    with pytest.raises(rt.errors.CoupledExamples, match="not finite: if training has diverged"):
        engine.clipped_sum(losses, torch.randn(3, 4))


@pytest.mark.parametrize("first", ["no positions", "gradients of zero"])
def test_a_batch_that_shows_nothing_proves_nothing(first: str) -> None:
    """Where the first batch's gradients are empty or zero, examples that mix in a later one are refused."""
    torch.manual_seed(0)
    model = nn.Linear(4, 5)
    engine = rt.ClipEngine(model, max_norm=1.0)

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, scale = batch
        y = model(x).tanh() * scale[:, None, None]
        return (y + y.roll(1, 0)).sum((1, 2))

    shape, scale = ((3, 0, 4), 1.0) if first == "no positions" else ((3, 2, 4), 0.0)
    nothing = engine.clipped_sum(losses, (torch.randn(shape), torch.full((3,), scale)))
    assert not nothing.norms.any() and not any(t.any() for t in nothing.total.values())
    with pytest.raises(rt.errors.CoupledExamples) as caught:
        engine.clipped_sum(losses, (torch.randn(3, 2, 4), torch.ones(3)))
    assert caught.value.code == "gradient-mixes-examples"


def test_a_row_beyond_the_table_is_an_error_as_in_torch() -> None:
    table = nn.Parameter(torch.randn(5, 2))
    model = nn.Module()
    model.table = table
    engine = rt.ClipEngine(model, max_norm=1.0)
    losses = lambda ids: model.table[ids].sum((1, 2))  # noqa: E731
    last = engine.clipped_sum(losses, torch.tensor([[-1], [0]])).total["table"]
    assert bool(last[4].any()) and bool(last[0].any())
    for row in (7, -6):
        with pytest.raises(IndexError):
            engine.clipped_sum(losses, torch.tensor([[row], [0]]))
