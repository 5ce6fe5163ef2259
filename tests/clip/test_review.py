"""What an adversarial reading of the engine found: each must stay exact, bounded or refused by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import reticent as rt
from reticent.clip import ClipEngine
from reticent.errors import CoupledExamples, UnsupportedModel
from tests.support import oracle
from tests.support.judge import assert_close


class Net(nn.Module):
    """A linear layer, a vector, and a forward that a test gives."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.p = nn.Linear(4, 6), nn.Parameter(torch.randn(6))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def net(run: Callable[[Net, Tensor], Tensor]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(run).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def assert_exact(
    model: nn.Module, x: Any, *, engine: rt.ClipEngine | None = None, num_units: int | None = None
) -> None:
    """The engine itself, without its self-check, against one unit at a time."""

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().flatten(1).sum(1)

    engine = rt.ClipEngine(model, max_norm=1.0) if engine is None else engine
    total, norms = oracle.loop_clipped_sum(model, losses, x, 1.0, num_units)
    got = engine.clipped_sum(losses, x, num_units=num_units)
    assert_close(got, total, norms, max_norm=1.0, tolerance=1e-10)


# -- writes in place ---------------------------------------------------------------------------------


def add_to_a_view(net: Net, x: Tensor) -> Tensor:
    h = net.layer(x)
    h[:, :2].add_(net.p[:2])
    return h


def scale_a_reshaped_view(net: Net, x: Tensor) -> Tensor:
    h = net.layer(x)
    h.view(-1, 2, 3).mul_(net.p.view(2, 3))
    return torch.tanh(h)


def chain_on_views(net: Net, x: Tensor) -> Tensor:
    h = net.layer(x)
    h[:, 1:3].mul_(net.p[:2]).add_(net.p[2:4])
    h[:, :3] += net.p[:3]
    return torch.sin(h)


def set_items_of_a_view(net: Net, x: Tensor) -> Tensor:
    b = x.clone()
    part = b[:, :2]
    part[:] = net.p[:2]
    return net.layer(b)


def add_to_a_view_of_a_buffer(net: Net, x: Tensor) -> Tensor:
    b = x.new_zeros(len(x), 6)
    b[:, :2].add_(net.p[:2])
    return b * net.layer(x)


def copy_then_double(net: Net, x: Tensor) -> Tensor:
    w = net.layer.weight.clone()
    w.mul_(2)
    return F.linear(x, w)


def copy_then_zero_a_row(net: Net, x: Tensor) -> Tensor:
    w = net.layer.weight.clone()
    w[0] = 0
    return F.linear(x, w)


def transpose_a_copy_then_scale_it(net: Net, x: Tensor) -> Tensor:
    w = net.layer.weight.clone()
    v = w.t()
    w.mul_(3)
    return x @ v


def matrix_built_row_by_row(net: Net, x: Tensor) -> Tensor:
    w = torch.zeros(2, 4, dtype=x.dtype)
    w[0], w[1] = net.p[:4], net.p[2:] * 2
    return F.linear(x, w)


IN_PLACE = (
    add_to_a_view, scale_a_reshaped_view, chain_on_views, set_items_of_a_view, add_to_a_view_of_a_buffer,
    copy_then_double, copy_then_zero_a_row, transpose_a_copy_then_scale_it, matrix_built_row_by_row,
)  # fmt: skip


@pytest.mark.parametrize("run", IN_PLACE, ids=lambda run: run.__name__)
def test_writes_in_place_are_seen(run: Callable[[Net, Tensor], Tensor]) -> None:
    assert_exact(net(run), draw(5, 4))


# -- what is constant, and what is data ----------------------------------------------------------------


def straight_through(net: Net, x: Tensor) -> Tensor:
    w = net.layer.weight
    return F.linear(x, w + (torch.round(w * 4) / 4 - w).detach())


def masked_by_size(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (net.layer.weight.abs() > 0.1).to(x)
    return F.linear(x, net.layer.weight * mask)


def scaled_by_its_data(net: Net, x: Tensor) -> Tensor:
    return F.linear(x, net.layer.weight / net.layer.weight.data.norm())


def cast_to_the_type_of_the_batch(net: Net, x: Tensor) -> Tensor:
    return F.linear(x, net.layer.weight.to(x)) * net.p.type_as(x)


def one_hot_by_scatter(net: Net, x: Tensor) -> Tensor:
    one_hot = torch.zeros(len(x), 4, dtype=x.dtype).scatter_(1, (x[:, :1] > 0).long(), 1.0)
    return torch.tanh(net.layer(one_hot))


def buffer_filled_from_the_batch(net: Net, x: Tensor) -> Tensor:
    b = torch.zeros(len(x), 4, dtype=x.dtype)
    b[:, 1:].copy_(x[:, 1:])
    return torch.tanh(net.layer(b))


def driven_by_noise(net: Net, x: Tensor) -> Tensor:
    return torch.tanh(net.layer(0 * torch.randn(len(x), 4, dtype=x.dtype) + 1)) * net.p


CONSTANTS = (
    straight_through, masked_by_size, scaled_by_its_data, cast_to_the_type_of_the_batch, one_hot_by_scatter,
    buffer_filled_from_the_batch, driven_by_noise,
)  # fmt: skip


@pytest.mark.parametrize("run", CONSTANTS, ids=lambda run: run.__name__)
def test_weights_computed_from_weights_and_buffers_holding_data_are_no_false_alarm(
    run: Callable[[Net, Tensor], Tensor],
) -> None:
    assert_exact(net(run), draw(5, 4))


@pytest.mark.parametrize("cast", [Tensor.type_as, Tensor.to], ids=["type_as", "to"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_cast_to_the_type_of_a_parameter_leaves_the_batch_alone(
    cast: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = draw(5, 4).to(dtype)
    assert_exact(net(lambda net, x: net.layer(cast(x, net.layer.weight))), x)
    assert not x.requires_grad and x.grad_fn is None


# -- gradients inside the losses -----------------------------------------------------------------------


def test_adversarial_inputs_made_in_the_losses_do_not_count() -> None:
    model = net(lambda net, x: torch.tanh(net.layer(x)) * net.p)

    def losses(batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(x).square().sum(), x)
        return model((x + 0.1 * g.sign()).detach()).square().sum(1)

    total, norms = oracle.loop_clipped_sum(model, losses, draw(5, 4), 1.0)
    got = rt.ClipEngine(model, max_norm=1.0).clipped_sum(losses, draw(5, 4))
    assert_close(got, total, norms, max_norm=1.0, tolerance=1e-10)


def test_second_derivatives_are_refused_by_name() -> None:
    model = net(lambda net, x: torch.tanh(net.layer(x)))

    def losses(batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return g.square().sum(1)

    with pytest.raises(UnsupportedModel, match=r"create_graph=True through parameter .*layer"):
        rt.ClipEngine(model, max_norm=1.0).clipped_sum(losses, draw(5, 4))


def test_transforms_of_torch_func_are_refused_by_name() -> None:
    model = net(lambda net, x: net.layer(x))

    def losses(batch: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: model(row).square().sum())(batch)

    with pytest.raises(UnsupportedModel, match=r"torch\.func"):
        rt.ClipEngine(model, max_norm=1.0).clipped_sum(losses, draw(5, 4))


# -- layouts proven on one batch, used on the next ------------------------------------------------------


def time_major_and_flat(net: Net, x: Tensor) -> Tensor:
    rows, length, width = x.shape
    h = torch.tanh(net.layer(x.transpose(0, 1).reshape(length * rows, width))) * net.p
    return h.view(length, rows, 6).transpose(0, 1)


@pytest.mark.parametrize(
    "calls",
    [
        [(8, 4, None), (8, 4, 4), (8, 4, 2), (16, 4, 4), (8, 2, 4)],
        [(8, 4, 4), (8, 4, None), (12, 4, 3)],
        [(4, 1, None), (4, 3, None), (4, 4, None), (8, 2, 4)],
        [(4, 4, 1), (4, 4, None)],
    ],
    ids=["rows-then-units", "units-then-rows", "one-step-first", "one-unit-first"],
)
def test_a_layout_is_not_reused_where_it_was_not_proven(calls: list[tuple[int, int, int | None]]) -> None:
    model = net(time_major_and_flat)
    engine = rt.ClipEngine(model, max_norm=1.0)
    for seed, (rows, length, units) in enumerate(calls):
        assert_exact(model, draw(rows, length, 4, seed=seed), engine=engine, num_units=units)


@pytest.mark.parametrize("first", [1.0, -1.0])
def test_a_forward_that_takes_another_branch_is_proven_again(first: float) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        if float(x[0, 0, 0]) > 0:
            return torch.tanh(net.layer(x.transpose(0, 1))).transpose(0, 1)
        return torch.tanh(net.layer(x))

    model = net(run)
    engine = rt.ClipEngine(model, max_norm=1.0)
    for sign in (first, -first, first):
        x = draw(4, 4, 4)
        x[:, 0, 0] = sign
        assert_exact(model, x, engine=engine)


# -- attention ------------------------------------------------------------------------------------------


def test_attention_is_recorded_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from reticent.clip import _entries

    def no_replay(*args: Any) -> None:
        raise AssertionError("replayed unit by unit")

    monkeypatch.setattr(_entries, "unit_by_unit_forms", no_replay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
        model = Net(lambda net, x: layer(x, torch.cos(x[:, 1:])))
    model.layer, model.p = layer, None  # type: ignore[assignment]
    assert_exact(model, draw(5, 6, 8))


def test_dropout_inside_attention_is_no_false_alarm() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True).train()
        x = torch.randn(5, 6, 8)
        got = rt.clipped_sum(model, lambda batch: model(batch).square().sum((1, 2)), x, max_norm=1e-3)
    assert 0 < oracle.norm_of(dict(got.total)) <= 5e-3 * (1 + 1e-5)


# -- half precision -------------------------------------------------------------------------------------


def test_half_precision_inside_the_losses_is_no_false_alarm() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8))
        x = torch.randn(5, 6, 8)

    def losses(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(batch)
        return y.float().square().sum((1, 2))

    total, _ = oracle.loop_clipped_sum(model, losses, x, 1.0)
    got = rt.clipped_sum(model, losses, x, max_norm=1.0)
    assert oracle.distance(dict(got.total), total) <= 0.05 * len(x)


def test_half_precision_hides_no_coupling_and_its_rounding_is_none() -> None:
    """Compared in float32: a mean over the batch of one per cent is found; kernels that round are not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Linear(8, 4), torch.randn(5, 8)

    def losses(batch: Tensor, *, share: float, rounding: float) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(batch)
        if y.dtype == torch.bfloat16 and len(batch) == 1:
            y = y * (1 + rounding)
        per_row = y.float().square().sum(1)
        return per_row + share * per_row.detach().mean()

    with pytest.raises(CoupledExamples):
        rt.clipped_sum(model, partial(losses, share=0.01, rounding=0.0), x, max_norm=1.0)
    got = rt.clipped_sum(model, partial(losses, share=0.0, rounding=0.2), x, max_norm=1.0)
    assert 0 < oracle.norm_of(dict(got.total)) <= 5 * (1 + 1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_rows_in_half_precision_that_autocast_joins_with_the_weights_are_compared_too(share) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(5, 8)

    def losses(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(batch.to(torch.bfloat16))
        per_row = y.float().square().sum(1)
        return per_row + share * per_row.detach().mean()

    if share:
        with pytest.raises(CoupledExamples):
            rt.clipped_sum(model, losses, x, max_norm=1.0)
    else:
        total, _ = oracle.loop_clipped_sum(model, losses, x, 1.0)
        got = rt.clipped_sum(model, losses, x, max_norm=1.0)
        assert oracle.distance(dict(got.total), total) <= 0.05 * len(x)


# -- numbers at the edge of their type ------------------------------------------------------------------


def _moved(model: nn.Module, losses: Callable[[Any], Tensor], batch: Any, max_norm: float) -> float:
    """How far one unit moves the sum, in units of the bound."""
    got = rt.ClipEngine(model, max_norm=max_norm).clipped_sum(losses, batch)
    return float(oracle.norm_of({name: t.double() for name, t in got.total.items()})) / got.bound


@pytest.mark.parametrize(("length", "width"), [(1, 4), (3, 4), (3, 64)], ids=["single", "dense", "gram"])
def test_tiny_inputs_with_huge_gradients_stay_bounded(length: int, width: int) -> None:
    model = nn.Linear(width, width, bias=False)
    x, g = torch.full((1, length, width), 1e-23), torch.full((1, length, width), 1e18)
    assert _moved(model, lambda b: (model(b[0]) * b[1]).sum((1, 2)), (x, g), 1e-6) <= 1 + 1e-5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_positions_that_cancel_stay_bounded_in_either_precision(dtype: torch.dtype, seed: int) -> None:
    model = nn.Linear(64, 64, bias=False, dtype=dtype)
    x = 1e6 * draw(1, 1, 64, seed=seed).expand(1, 2, 64).to(dtype)
    g = 1e6 * draw(1, 1, 64, seed=seed + 10).to(dtype)
    residual = (1e-4 if dtype == torch.float64 else 1e-1) * draw(1, 1, 64, seed=seed + 20).to(dtype)
    batch = (x, torch.cat([g, residual - g], 1))
    assert _moved(model, lambda b: (model(b[0]) * b[1]).sum((1, 2)), batch, 1.0) <= 1 + 1e-5


class Tied(nn.Module):
    """One table, looked up and multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Tensor, h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        looked_up = (self.table(ids) * e).flatten(1).sum(1)
        return looked_up + (F.linear(h, self.table.weight) * g).flatten(1).sum(1)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_uses_of_a_tied_table_that_cancel_stay_bounded(dtype: torch.dtype, scale: float) -> None:
    model = Tied().to(dtype)
    h, g = draw(1, 1, 4).to(dtype), torch.zeros(1, 1, 10, dtype=dtype)
    g[0, 0, 3] = scale
    batch = (torch.tensor([[3]]), h, g, -h * scale * (1 + 1e-9))
    assert _moved(model, lambda b: model(*b), batch, 1e-3) <= 1 + 1e-5


class Leaks(nn.Module):
    """Every unit's hidden row takes a very small share of all the others'."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.last, self.share = nn.Linear(6, 5), nn.Linear(5, 3), share

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + self.share * h.mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-4), (torch.float64, 1e-13)], ids=str
)
def test_a_share_of_others_below_the_precision_is_mixing_too(dtype: torch.dtype, share: float) -> None:
    """Small in this batch, it would be all there is beside a unit without gradient in a later one."""
    model = Leaks(share).to(dtype)
    batch = (draw(8, 6, seed=1).to(dtype), torch.arange(8) % 3)
    with pytest.raises(CoupledExamples):
        ClipEngine(model, max_norm=1.0).clipped_sum(
            lambda b: F.cross_entropy(model(b[0]), b[1], reduction="none"), batch
        )


class Doubles(TorchFunctionMode):
    """A mode of the user's, under which some operations compute something else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return 2 * result if func in (torch.einsum, torch.div) else result


@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: torch.einsum("bi,oi->bo", x, self.layer.weight) + self.p,
        lambda self, x: torch.div(self.layer(x), self.p),
    ],
    ids=["by-units", "elementwise"],
)
def test_what_runs_again_runs_under_the_users_modes(run: Any, method: Any) -> None:
    """The engine's own operations ask no mode; a call without rule is run again as the forward ran it."""
    model, x = net(run), draw(3, 4)

    def losses(batch: Tensor) -> Tensor:
        return model(batch).square().sum(1)

    with Doubles():
        got = ClipEngine(model, max_norm=1e3, method=method).clipped_sum(losses, x).total
        params = list(model.parameters())
        want = torch.autograd.grad(losses(x).sum(), params, allow_unused=True, materialize_grads=True)
    for (name, _), grad in zip(model.named_parameters(), want, strict=True):
        torch.testing.assert_close(got[name], grad)


@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
@pytest.mark.parametrize("scale", [1.0, 1e-39, 1e-60])
@pytest.mark.parametrize("size", [1.0, 1e39, 1e60])
def test_float64_rows_under_float32_parameters_stay_bounded(size: float, scale: float, method: Any) -> None:
    """A cast of the parameter lets inputs in that float32 cannot hold; the sum is in float32."""
    model = nn.Linear(4, 3, bias=False)
    x = draw(2, 5, 4)
    x[0] *= size
    engine = ClipEngine(model, max_norm=1.0, method=method)
    total = engine.clipped_sum(lambda b: scale * F.linear(b, model.weight.double()).sum((1, 2)), x).total
    assert float(total["weight"].double().norm()) <= 2 + 1e-5
