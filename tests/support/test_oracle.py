"""The oracle agrees with gradients worked out by hand, and tells every planted mistake apart."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support import oracle, zoo
from tests.support.case import Problem
from tests.support.judge import median_norm

Answer = tuple[dict[str, Tensor], Tensor]


def _problem(name: str) -> Problem:
    return zoo.named(name)[0].build(0, torch.float64)


def _each(problem: Problem) -> list[dict[str, Tensor]]:
    return [
        oracle.unit_gradient(problem.model, problem.losses, oracle.take_rows(problem.batch, slice(i, i + 1)))
        for i in range(problem.num_rows)
    ]


def _scaled_sum(grads: list[dict[str, Tensor]], norms: list[float], max_norm: float) -> Answer:
    total = {
        name: sum(g[name] / max(1.0, norm / max_norm) for g, norm in zip(grads, norms, strict=True))
        for name in grads[0]
    }
    return total, torch.tensor(norms, dtype=torch.float64)


def _norms(grads: list[dict[str, Tensor]]) -> list[float]:
    return [math.sqrt(sum(float(t.square().sum()) for t in g.values())) for g in grads]


def clip_after_mean(problem: Problem, max_norm: float) -> Answer:
    """The classic mistake: one clip of the whole batch's gradient."""
    grads = _each(problem)
    total = {name: sum(g[name] for g in grads) for name in grads[0]}
    scale = max(1.0, _norms([total])[0] / len(grads) / max_norm)
    return {name: t / scale for name, t in total.items()}, torch.tensor(_norms(grads))


def without_biases(problem: Problem, max_norm: float) -> Answer:
    """Norms that never see a bias."""
    grads = _each(problem)
    norms = _norms([{n: t for n, t in g.items() if "bias" not in n} for g in grads])
    return _scaled_sum(grads, norms, max_norm)


def each_parameter_alone(problem: Problem, max_norm: float) -> Answer:
    """Each parameter clipped by itself: sensitivity sqrt(P) C."""
    grads = _each(problem)
    clipped = [{n: t / max(1.0, float(t.norm()) / max_norm) for n, t in g.items()} for g in grads]
    return {n: sum(g[n] for g in clipped) for n in grads[0]}, torch.tensor(_norms(grads))


def not_clipped(problem: Problem, max_norm: float) -> Answer:
    """The plain sum."""
    return oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, 1e30)


def clipped_to_another_norm(problem: Problem, max_norm: float) -> Answer:
    """C mistaken by two percent."""
    return oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, 1.02 * max_norm)


def normalised(problem: Problem, max_norm: float) -> Answer:
    """Small gradients scaled up to C."""
    grads = _each(problem)
    norms = _norms(grads)
    total = {n: sum(g[n] * max_norm / norm for g, norm in zip(grads, norms, strict=True)) for n in grads[0]}
    return total, torch.tensor(norms)


def one_row_left_out(problem: Problem, max_norm: float) -> Answer:
    """The last example forgotten."""
    rest = oracle.without_row(problem.batch, problem.num_rows - 1)
    total, _ = oracle.loop_clipped_sum(problem.model, problem.losses, rest, max_norm)
    return total, torch.tensor(_norms(_each(problem)))


def weights_of_the_neighbour(problem: Problem, max_norm: float) -> Answer:
    """Right norms, applied to the wrong rows."""
    grads = _each(problem)
    norms = _norms(grads)
    total, _ = _scaled_sum(grads, norms[1:] + norms[:1], max_norm)
    return total, torch.tensor(norms)


MISTAKES = (
    clip_after_mean,
    without_biases,
    each_parameter_alone,
    not_clipped,
    clipped_to_another_norm,
    normalised,
    one_row_left_out,
    weights_of_the_neighbour,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["mlp", "cnn-group-norm", "lstm", "encoder-layer"])
def test_a_planted_mistake_is_far_from_the_oracle(
    name: str, mistake: Callable[[Problem, float], Answer]
) -> None:
    problem = _problem(name)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    wrong_total, wrong_norms = mistake(problem, max_norm)
    off = oracle.distance(total, wrong_total) / max_norm
    off_norms = ((norms - wrong_norms) / norms).abs().max().item()
    assert max(off, off_norms) > 1e-3


def test_the_same_loop_written_differently_agrees() -> None:
    problem = _problem("cnn-group-norm")
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    grads = _each(problem)
    other, other_norms = _scaled_sum(grads, _norms(grads), max_norm)
    assert oracle.distance(total, other) < 1e-13 * max_norm
    torch.testing.assert_close(norms, other_norms, rtol=1e-13, atol=0)


def test_the_norm_of_a_tied_weight_is_not_the_sum_of_norms_of_its_uses() -> None:
    tied, untied = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, 2.0]])

    def twice(batch: Tensor) -> Tensor:
        return (tied(batch) + 2 * tied(batch)).sum(1)

    def apart(batch: Tensor) -> Tensor:
        return (tied(batch) + 2 * untied(batch)).sum(1)

    _, exact = oracle.loop_clipped_sum(nn.ModuleList([tied]), twice, x, 1.0)
    _, quadrature = oracle.loop_clipped_sum(nn.ModuleList([tied, untied]), apart, x, 1.0)
    assert exact.item() == pytest.approx(3 * math.sqrt(10))
    assert quadrature.item() == pytest.approx(math.sqrt(5) * math.sqrt(10))


def test_linear_regression_by_hand() -> None:
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
        model.bias.fill_(0.5)
    x = torch.tensor([[3.0, 1.0], [0.0, 0.5], [2.0, 2.0]], dtype=torch.float64)
    # residuals r = 2.5, 0, 0.5; the gradient of r^2 is 2 r (x, 1), of norm 2 r sqrt(|x|^2 + 1)
    total, norms = oracle.loop_clipped_sum(model, lambda batch: model(batch)[:, 0].square(), x, 2.0)
    torch.testing.assert_close(norms, torch.tensor([5 * math.sqrt(11), 0.0, 3.0], dtype=torch.float64))
    first = torch.tensor([3.0, 1.0]).double() * 2 / math.sqrt(11)
    last = torch.tensor([2.0, 2.0]).double() * 2 / 3
    torch.testing.assert_close(total["weight"][0], first + last)
    assert total["bias"].item() == pytest.approx(2 / math.sqrt(11) + 2 / 3)


def test_units_of_several_rows_are_clipped_as_one() -> None:
    problem = _problem("time-major-square")
    six = oracle.take_rows(problem.batch, torch.tensor([0, 1, 2, 3, 4, 0]))
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, six, 0.1, num_units=3)
    rows = [
        oracle.unit_gradient(problem.model, problem.losses, oracle.take_rows(six, slice(i, i + 1)))
        for i in range(6)
    ]
    pairs = [{n: rows[i][n] + rows[i + 1][n] for n in rows[0]} for i in (0, 2, 4)]
    torch.testing.assert_close(norms, torch.tensor(_norms(pairs), dtype=torch.float64))
    other, _ = _scaled_sum(pairs, _norms(pairs), 0.1)
    assert oracle.distance(total, other) < 1e-12
    with pytest.raises(AssertionError, match="6 rows are not 4 equal units"):
        oracle.loop_clipped_sum(problem.model, problem.losses, six, 0.1, num_units=4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_unit_that_is_not_finite_adds_nothing(value: float) -> None:
    problem = _problem("mlp")
    x, y = problem.batch
    bad = x.clone()
    bad[2, 0] = value
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, (bad, y), 1.0)
    rest, _ = oracle.loop_clipped_sum(problem.model, problem.losses, oracle.without_row((x, y), 2), 1.0)
    assert oracle.distance(total, rest) == 0.0
    assert norms[2] == math.inf and norms.isfinite().sum() == 4


def test_huge_gradients_do_not_overflow_the_norm() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[3e200, 4e200]], dtype=torch.float64)
    total, norms = oracle.loop_clipped_sum(model, lambda batch: model(batch).sum(1), x, 1.0)
    assert norms.item() == pytest.approx(5e200)
    torch.testing.assert_close(total["weight"], torch.tensor([[0.6, 0.8]], dtype=torch.float64))


def test_an_empty_batch_gives_zeros() -> None:
    problem = _problem("mlp")
    empty = oracle.take_rows(problem.batch, slice(0, 0))
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, empty, 1.0)
    assert norms.shape == (0,) and all(not t.any() for t in total.values())


def test_gradients_the_user_holds_are_put_back() -> None:
    problem = _problem("mlp")
    held = {name: torch.full_like(p, 7.0) for name, p in problem.model.named_parameters()}
    for name, p in problem.model.named_parameters():
        p.grad = held[name]
    oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, 1.0)
    assert all(p.grad is held[name] for name, p in problem.model.named_parameters())
