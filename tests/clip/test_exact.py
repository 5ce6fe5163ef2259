"""The engine equals the oracle: norms and clipped sums, on every model of the zoo."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reticent as rt
from reticent.errors import ConfigError, ReticentError
from tests.support import oracle, zoo
from tests.support.case import Case, Problem
from tests.support.judge import assert_close, median_norm, snapshot

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]

A_FEW = zoo.named(
    "mlp", "cnn-group-norm", "lm-tied-function", "class-token", "lstm-time-major-square", "encoder-layer",
    "flattened-time-batch-square", "relative-bias-table", "weight-standardised-conv", "composition-3",
)  # fmt: skip


def answer(problem: Problem, max_norm: float) -> Any:
    return rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)


def truth(problem: Problem, max_norm: float) -> tuple[dict[str, Tensor], Tensor]:
    return oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)


@pytest.mark.parametrize("case", (*zoo.EXACT, *zoo.GENERATED), ids=repr)
def test_float64_equals_autograd_one_example_at_a_time(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = truth(problem, max_norm)
    got = answer(problem, max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)
    assert max_norm <= got.bound <= max_norm * (1 + 1e-6)


@pytest.mark.parametrize("case", (*zoo.EXACT, *zoo.GENERATED), ids=repr)
def test_float32_is_close_to_the_float64_truth_and_never_rounds_a_norm_down(case: Case) -> None:
    wide, problem = case.build(0, torch.float64), case.build(0, torch.float32)
    max_norm = median_norm(wide)
    total, norms = truth(wide, max_norm)
    got = answer(problem, max_norm)
    above = got.norms.double() / norms.clamp_min(1e-30)
    assert bool(((above >= 1) | (norms == 0)).all()), f"a norm is {1 - above.min():.1e} below the truth"
    assert bool((got.norms <= norms * (1 + 1e-3)).all()), f"a norm is {above.max() - 1:.1e} above the truth"
    assert oracle.distance(dict(got.total), total) <= 1e-5 * got.bound * len(norms)


@pytest.mark.parametrize("case", zoo.EITHER, ids=repr)
def test_a_doubtful_model_is_exact_or_refused_by_name(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = truth(problem, max_norm)
    try:
        got = answer(problem, max_norm)
    except ReticentError as refusal:
        with pytest.raises(case.refuse or ReticentError, match=case.match):
            raise refusal
    else:
        assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", zoo.EXACT, ids=repr)
def test_nothing_is_left_on_the_model(case: Case) -> None:
    problem = case.build(0, torch.float64)
    losses = problem.losses(problem.batch).detach()
    before, random_state = snapshot(problem.model), torch.get_rng_state()
    values = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    answer(problem, 1.0)
    assert snapshot(problem.model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(p, values[name]) for name, p in problem.model.named_parameters())
    assert torch.equal(problem.losses(problem.batch).detach(), losses)


@pytest.mark.parametrize("case", zoo.EXACT, ids=repr)
def test_one_example(case: Case) -> None:
    problem = case.build(0, torch.float64)
    one = Problem(
        model=problem.model, losses=problem.losses, batch=oracle.take_rows(problem.batch, slice(1, 2))
    )
    max_norm = 0.5 * median_norm(one) + 1e-3
    total, norms = truth(one, max_norm)
    assert_close(answer(one, max_norm), total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", zoo.EXACT, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_examples_give_zeros_of_the_right_shapes(case: Case, dtype: torch.dtype) -> None:
    problem = case.build(0, dtype)
    empty = oracle.take_rows(problem.batch, slice(0, 0))
    got = rt.clipped_sum(problem.model, problem.losses, empty, max_norm=2.0)
    trainable = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    assert list(got.total) == list(trainable)
    for name, p in trainable.items():
        assert got.total[name].shape == p.shape and not got.total[name].any()
    assert got.norms.shape == (0,) and got.bound >= 2.0


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 2, 0, 4)])
@pytest.mark.parametrize("method", ["book-keeping", "ghost", "loop"])
def test_examples_without_positions_have_gradients_of_zero(shape: tuple[int, ...], method: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    engine = rt.ClipEngine(model, max_norm=1.0, method=method)

    def losses(x: Tensor) -> Tensor:
        return model(x).flatten(1).sum(1)

    engine.check(losses, torch.zeros(shape).double())
    got = engine.clipped_sum(losses, torch.zeros(shape).double())
    assert got.norms.tolist() == [0.0] * 3
    assert all(not t.any() for t in got.total.values())
    after = torch.randn(3, 5, 4).double()
    assert float(engine.clipped_sum(losses, after).norms.min()) > 0.0


@pytest.mark.parametrize("max_norm", [1e-8, 1e-3, 1e3, 1e8])
@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_clipping_norms_of_every_size(case: Case, max_norm: float) -> None:
    problem = case.build(1, torch.float64)
    total, norms = truth(problem, max_norm)
    got = answer(problem, max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)
    if max_norm < 1e-6:  # every example is clipped to the bound
        assert oracle.norm_of(dict(got.total)) <= len(norms) * max_norm * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_other_seeds(case: Case, seed: int) -> None:
    problem = case.build(seed, torch.float64)
    max_norm = median_norm(problem)
    total, norms = truth(problem, max_norm)
    assert_close(answer(problem, max_norm), total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_without_a_batch_the_closure_runs_the_model(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = truth(problem, max_norm)
    got = rt.clipped_sum(problem.model, lambda: problem.losses(problem.batch), max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_the_order_of_rows_orders_norms_and_nothing_else(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    order = torch.arange(problem.num_rows).flip(0)
    got = answer(problem, max_norm)
    batch = oracle.take_rows(problem.batch, order)
    flipped = rt.clipped_sum(problem.model, problem.losses, batch, max_norm=max_norm)
    torch.testing.assert_close(flipped.norms, got.norms[order], rtol=1e-11, atol=1e-14)
    assert oracle.distance(dict(got.total), dict(flipped.total)) <= 1e-10 * got.bound


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_a_second_call_sees_the_parameters_as_they_are_now(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    first = answer(problem, max_norm)
    with torch.no_grad():
        for name, p in problem.model.named_parameters():
            if p.requires_grad:
                p.sub_(0.3 * first.total[name] / max_norm)
    total, norms = truth(problem, max_norm)
    assert_close(answer(problem, max_norm), total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_gradients_the_user_holds_are_not_touched(case: Case) -> None:
    problem = case.build(0, torch.float64)
    held = {name: torch.full_like(p, 7.0) for name, p in problem.model.named_parameters()}
    for name, p in problem.model.named_parameters():
        p.grad = held[name]
    got = answer(problem, 1.0)
    for name, p in problem.model.named_parameters():
        assert p.grad is held[name] and bool((p.grad == 7.0).all())
        assert not p.requires_grad or not got.total[name].requires_grad


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_ordinary_training_works_afterwards(case: Case) -> None:
    problem = case.build(0, torch.float64)
    plain = oracle.unit_gradient(problem.model, problem.losses, problem.batch)
    answer(problem, 1.0)
    again = oracle.unit_gradient(problem.model, problem.losses, problem.batch)
    assert oracle.distance(plain, again) == 0.0


@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_freezing_and_thawing_between_calls_is_followed(case: Case) -> None:
    problem = case.build(0, torch.float64)
    name, p = next(iter(problem.model.named_parameters()))
    p.requires_grad_(False)
    total, norms = truth(problem, 0.1)
    frozen = answer(problem, 0.1)
    assert name not in frozen.total
    assert_close(frozen, total, norms, max_norm=0.1, tolerance=1e-10)
    p.requires_grad_(True)
    total, norms = truth(problem, 0.1)
    assert_close(answer(problem, 0.1), total, norms, max_norm=0.1, tolerance=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("case", A_FEW, ids=repr)
def test_a_unit_of_several_rows_is_clipped_as_one(case: Case, size: int) -> None:
    problem = case.build(0, torch.float64)
    rows = torch.arange(6) % problem.num_rows
    batch = oracle.take_rows(problem.batch, rows)

    def unit_losses(part: Any) -> Tensor:
        return problem.losses(part).unflatten(0, (-1, size)).mean(1)

    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, unit_losses, batch, max_norm, num_units=6 // size)
    got = rt.clipped_sum(problem.model, unit_losses, batch, max_norm=max_norm, num_units=6 // size)
    assert got.norms.shape == (6 // size,)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("num_units", [4, 5, 7])
def test_rows_that_are_not_equal_units_are_refused(num_units: int) -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float64)
    six = oracle.take_rows(problem.batch, torch.arange(6) % 5)
    with pytest.raises(ReticentError, match=str(num_units)):
        rt.clipped_sum(problem.model, problem.losses, six, max_norm=1.0, num_units=num_units)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_clipping_norm_that_bounds_nothing_is_refused(max_norm: float) -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float32)
    with pytest.raises(ConfigError, match="max_norm"):
        answer(problem, max_norm)


class Root(nn.Module):
    """A loss whose gradient is not finite where the example's activation is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).abs().sqrt().sum(1)


def _with_weights(values: list[float], dtype: torch.dtype) -> Problem:
    problem = zoo.named("weighted-rows")[0].build(0, dtype)
    *rest, _ = problem.batch
    weights = torch.tensor(values, dtype=dtype)
    return Problem(model=problem.model, losses=problem.losses, batch=(*rest, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_an_example_with_a_loss_that_is_not_finite_counts_as_zero_bit_for_bit(
    value: float, max_norm: float, dtype: torch.dtype
) -> None:
    bad = answer(_with_weights([1.0, 0.5, value, 2.0, 0.3], dtype), max_norm)
    zero = answer(_with_weights([1.0, 0.5, 0.0, 2.0, 0.3], dtype), max_norm)
    for name in zero.total:
        assert torch.equal(bad.total[name], zero.total[name]), name
    assert bad.norms[2] == math.inf and zero.norms[2] == 0.0
    assert torch.equal(bad.norms.isfinite(), torch.arange(5) != 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", [c for c in A_FEW if c.name not in {"lm-tied-function"}], ids=repr)
def test_an_example_with_bad_inputs_counts_as_zero_in_every_layer(case: Case, value: float) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    x, *rest = problem.batch
    x = x.clone()
    x[1].fill_(value)
    got = rt.clipped_sum(problem.model, problem.losses, (x, *rest), max_norm=max_norm)
    total, _ = oracle.loop_clipped_sum(
        problem.model, problem.losses, oracle.without_row(problem.batch, 1), max_norm
    )
    assert all(t.isfinite().all() for t in got.total.values())
    assert oracle.distance(dict(got.total), total) <= 1e-10 * got.bound * problem.num_rows
    assert got.norms[1] == math.inf and got.norms.isfinite().sum() == problem.num_rows - 1


def test_a_finite_loss_with_a_gradient_that_is_not_counts_as_zero() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Root().double(), torch.randn(4, 3, dtype=torch.float64)
    x[2] = 0.0
    assert model(x).isfinite().all()
    got = rt.clipped_sum(model, model, x, max_norm=0.3)
    total, norms = oracle.loop_clipped_sum(model, model, x, 0.3)
    assert_close(got, total, norms, max_norm=0.3, tolerance=1e-10)
    assert got.norms[2] == math.inf


def test_all_examples_bad_give_zeros() -> None:
    got = answer(_with_weights([math.nan] * 5, torch.float32), 1.0)
    assert all(not t.any() for t in got.total.values()) and bool((got.norms == math.inf).all())


@pytest.mark.parametrize("scale", [1e-15, 1e-12, 1e12, 1e15])
def test_float32_norms_neither_overflow_nor_vanish(scale: float) -> None:
    weights = [scale, 0.5 * scale, 0.1 * scale, 2 * scale, 0.3 * scale]
    wide, narrow = _with_weights(weights, torch.float64), _with_weights(weights, torch.float32)
    total, norms = truth(wide, scale)
    got = answer(narrow, scale)
    torch.testing.assert_close(got.norms.double(), norms, rtol=1e-4, atol=0.0)
    assert oracle.distance(dict(got.total), total) <= 1e-4 * scale


def test_active_dropout_is_no_false_alarm_and_stays_bounded() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 2)).train()
        x = torch.randn(6, 4)
        got = rt.clipped_sum(model, lambda batch: model(batch).square().sum(1), x, max_norm=1e-3)
    assert 0 < oracle.norm_of(dict(got.total)) <= 6e-3 * (1 + 1e-5)


def test_two_models_take_turns_without_mixing() -> None:
    left, right = (zoo.named("mlp")[0].build(seed, torch.float64) for seed in (0, 1))

    def both(batch: Any) -> Tensor:
        return left.losses(batch) + right.losses(batch)

    max_norm = median_norm(left)
    total, norms = oracle.loop_clipped_sum(left.model, both, left.batch, max_norm)
    right.model.zero_grad()
    got = rt.clipped_sum(left.model, both, left.batch, max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)
    assert all(p.grad is None for p in right.model.parameters())


@pytest.mark.parametrize(
    "wrap", [list, tuple, lambda b: {"x": b[0], "y": b[1]}], ids=["list", "tuple", "dict"]
)
def test_batches_may_be_lists_tuples_or_dicts(wrap: Callable[[Any], Any]) -> None:
    problem = zoo.named("mlp")[0].build(0, torch.float64)

    def losses(batch: Any) -> Tensor:
        return problem.losses(tuple(batch.values()) if isinstance(batch, dict) else tuple(batch))

    max_norm = median_norm(problem)
    total, norms = truth(problem, max_norm)
    got = rt.clipped_sum(problem.model, losses, wrap(problem.batch), max_norm=max_norm)
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)
