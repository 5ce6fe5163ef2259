"""Every form by every method: the norm is the gradient's own, never below it, and the sum is the loop's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reticent.rules import Form, Overwrites, _forms, combine
from reticent.rules._conv import ConvForm, ConvSettings
from reticent.rules._forms import Dense, Outer
from reticent.rules._gather import Gather

U, V, D = 5, 13, 6
_CONV = ConvSettings((1,), (0,), (1,), False, (0,), 1)


def _outer(positions: int, cancel: bool) -> tuple[Form, Tensor]:
    x, g = torch.randn(U, positions, D), torch.randn(U, positions, V)
    if cancel:
        x, g = torch.cat([x, x], 1), torch.cat([g, -g * (1 + 1e-6)], 1)
    wide_x, wide_g = x.double(), g.double()
    truth = torch.zeros(U, V, D, dtype=torch.float64)
    for u in range(U):
        for p in range(x.shape[1]):
            truth[u] += torch.outer(wide_g[u, p], wide_x[u, p])
    return Outer(x, g), truth


def _gather(positions: int, cancel: bool) -> tuple[Form, Tensor]:
    ids, g = torch.randint(0, V, (U, positions)), torch.randn(U, positions, D)
    if cancel:
        ids, g = torch.cat([ids, ids], 1), torch.cat([g, -g * (1 + 1e-6)], 1)
    truth = torch.zeros(U, V, D, dtype=torch.float64)
    for u in range(U):
        for p in range(ids.shape[1]):
            truth[u, ids[u, p]] += g[u, p].double()
    return Gather(ids, g, V), truth


def _tied(positions: int, cancel: bool) -> tuple[Form, Tensor]:
    outer, of_outer = _outer(positions, cancel)
    gather, of_gather = _gather(positions, cancel)
    return combine([gather, outer]), of_outer + of_gather


def _tied_by_transpose(positions: int, cancel: bool) -> tuple[Form, Tensor]:
    outer, of_outer = _outer(positions, cancel)
    gather, of_gather = _gather(positions, cancel)
    assert isinstance(outer, Outer)
    return combine([Outer(outer.g_UPO, outer.x_UPI, input_first=True), gather]), of_outer + of_gather


MAKERS = [_outer, _gather, _tied, _tied_by_transpose]


def _norms(form: Form) -> dict[str, tuple[Tensor, Form]]:
    return {"": (form.squared_norm(), form)} | {m.name: form.settle(m.name) for m in form.methods()}


@pytest.mark.parametrize("positions", [1, 2, 9, 40, 70, 101, 130, 200])  # one to four strips
@pytest.mark.parametrize("cancel", [False, True], ids=["plain", "cancelling"])
@pytest.mark.parametrize("make", MAKERS)
def test_no_method_rounds_a_norm_down_or_far_up(make: Any, cancel: bool, positions: int) -> None:
    torch.manual_seed(positions)
    form, truth = make(positions, cancel)
    want = truth.flatten(1).norm(dim=1)
    for method, (square, held) in _norms(form).items():
        got = square.sqrt()
        if isinstance(held, Dense):  # what is added is what was rounded
            assert bool((got * (1 + 4e-6) >= held.grad.double().flatten(1).norm(dim=1)).all()), method
        else:
            assert bool((got * (1 + 4e-6) >= want).all()), method  # what the engine rounds up by
        scale = 1.0 if cancel else 0.0
        assert bool((got <= want * (1 + 1e-4) + 1e-3 * scale).all()), method
        weights, out = torch.rand(U, dtype=torch.float64), torch.zeros(V, D)
        held.add_weighted(weights, None, out)
        torch.testing.assert_close(
            out.double(), torch.einsum("u,uvd->vd", weights, truth), rtol=1e-4, atol=1e-4
        )
        if isinstance(held, Overwrites):
            written = torch.full((V, D), float("nan"))
            held.write_weighted(weights, None, written)
            torch.testing.assert_close(written, out, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_a_bad_unit_stays_alone_and_can_be_left_out(make: Any) -> None:
    torch.manual_seed(0)
    form, truth = make(7, False)
    for factor in _factors(form):
        factor[1, 3, 2] = float("nan")
    keep = torch.tensor([True, False, True, True, True])
    for method, (square, held) in _norms(form).items():
        assert torch.equal(torch.isfinite(square), keep), method
        out = torch.zeros(V, D)
        held.add_weighted(keep.double(), keep, out)
        torch.testing.assert_close(out.double(), truth[keep].sum(0), rtol=1e-4, atol=1e-4)


def _factors(form: Any) -> list[Tensor]:
    if isinstance(form, Gather):
        return [form.g_UPD]
    return [form.g_UPO] if isinstance(form, Outer) else [form.gather.g_UPD, form.outer.g_UPO]


@pytest.mark.parametrize("make", MAKERS)
def test_no_units_are_no_norms(make: Any) -> None:
    form, _ = make(4, False)
    empty = combine([_first(part, 0) for part in _parts(form)])
    for method, (square, _) in _norms(empty).items():
        assert square.shape == (0,), method


def _parts(form: Any) -> list[Form]:
    return [form] if isinstance(form, Gather | Outer) else [form.gather, form.outer]


def _wide(form: Any) -> Form:
    if isinstance(form, Gather):
        return Gather(form.ids_UP, form.g_UPD.double(), form.num_rows)
    return Outer(form.x_UPI.double(), form.g_UPO.double(), form.input_first)


def _first(form: Any, units: int) -> Form:
    if isinstance(form, Gather):
        return Gather(form.ids_UP[:units], form.g_UPD[:units], form.num_rows)
    return Outer(form.x_UPI[:units], form.g_UPO[:units], form.input_first)


@pytest.mark.parametrize("make", MAKERS)
def test_a_gradient_whose_square_overflows_float32_still_has_its_norm(make: Any) -> None:
    torch.manual_seed(0)
    form, truth = make(7, False)
    for part in _parts(form):
        for factor, scale in [(part.g_UPD, 1e34)] if isinstance(part, Gather) else _both(part, 1e17):
            factor[1] *= scale
    want = truth[1].norm().item() * 1e34
    for method, (square, _) in _norms(form).items():
        assert square[1].sqrt().item() == pytest.approx(want, rel=1e-4), method
        assert square[0].sqrt().item() == pytest.approx(truth[0].norm().item(), rel=1e-4), method


def _both(outer: Any, scale: float) -> list[tuple[Tensor, float]]:
    return [(outer.x_UPI, scale), (outer.g_UPO, scale)]


@pytest.mark.parametrize("positions", [1, 2, 5, 200])
def test_no_product_of_a_huge_and_a_tiny_factor_exceeds_its_bound(positions: int) -> None:
    """Scaled down to the bound, the tiny factor is below what float32 holds well."""
    torch.manual_seed(0)
    bound, size = 1e-3, 300
    for a, b in ((1e-30, 3e37), (3e37, 1e-30), (1e-35, 3e37), (1e-12, 1e30), (1e-12, 1e17)):
        x, g = torch.rand(1, positions, size) * a, torch.rand(1, positions, size) * b
        conv = ConvForm(_CONV, x.mT, g.mT, torch.zeros(size, size, 1), 1)
        for form in (Outer(x, g), conv):
            for method in [m.name for m in form.methods()]:
                square, held = form.settle(method)
                keep = torch.isfinite(square)
                weights = torch.where(keep, bound / (square.sqrt() * (1 + 4e-6)), 0.0)  # as the engine does
                out = torch.zeros(size, size)
                held.add_weighted(weights, keep, out if form is not conv else out[:, :, None])
                assert out.double().norm() <= bound * (1 + 1e-9), (a, b, method)


def test_what_is_mapped_anew_is_dear_to_keep_and_a_gram_matrix_in_strips_is_cheap() -> None:
    def methods(positions: int, width: int) -> dict[str, Any]:
        x = torch.empty(1, 1, 1).expand(8, positions, width)
        return {m.name: m for m in Outer(x, x).methods()}

    small, large = (methods(128, width)["keep"] for width in (1000, 1100))
    assert small.held < 32 << 20 < large.held
    assert large.moved / large.held > 4 * small.moved / small.held
    one, four = (methods(positions, 64)["gram"].flops / positions**2 for positions in (31, 128))
    assert four == pytest.approx(one * 5 / 8)


@pytest.mark.parametrize("wide", ("table", "head"))
@pytest.mark.parametrize("positions", (3, 60))
def test_a_tied_head_may_be_in_another_precision_than_its_table(positions: int, wide: str) -> None:
    torch.manual_seed(0)
    gather, of_gather = _gather(positions, cancel=False)
    outer, of_outer = _outer(positions, cancel=False)
    assert isinstance(gather, Gather) and isinstance(outer, Outer)
    if wide == "table":
        gather = Gather(gather.ids_UP, gather.g_UPD.double(), V)
    else:
        outer = Outer(outer.x_UPI.double(), outer.g_UPO.double())
    truth = of_gather + of_outer
    weights = torch.rand(U, dtype=torch.float64)
    for method, (square, held) in _norms(combine([gather, outer])).items():
        torch.testing.assert_close(square.sqrt(), truth.flatten(1).norm(dim=1), rtol=1e-6, atol=0.0)
        out = torch.zeros(V, D)
        held.add_weighted(weights, None, out)
        want = torch.einsum("u,uvd->vd", weights, truth).float()
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4, msg=method)


@pytest.mark.parametrize("least", (32, 48, 96))
def test_strips_of_every_length_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setitem(_forms._STRIP, "cpu", least)
    for positions in (*range(2, 140), 197, 255, 256, 257):
        x, g = torch.randn(2, positions, 3).double(), torch.randn(2, positions, 4).double()
        want = torch.einsum("upi,upo->uio", x, g).square().sum((1, 2))
        torch.testing.assert_close(Outer(x, g).settle("gram")[0], want, rtol=1e-6, atol=0.0)


def test_a_norm_of_millions_of_entries_does_not_drift() -> None:
    """Added up in float32 alone it was 4e-5 too small: ten times what norms are rounded up by."""
    torch.manual_seed(0)
    for size in (1, 4095, 4096, 4097, 4_000_000):
        grad = torch.rand(2, size)
        want = grad.double().square().sum(1)
        assert Dense(grad).squared_norm().tolist() == pytest.approx(want.tolist(), rel=1e-6), size


@pytest.mark.parametrize("make", MAKERS)
def test_factors_beyond_float32_give_a_float32_sum_where_their_product_fits(make: Any) -> None:
    """As where a model casts a float32 parameter to float64."""
    torch.manual_seed(0)
    form, truth = make(7, False)
    form = combine([_wide(part) for part in _parts(form)])
    for factor in _factors(form):
        factor[1] *= 1e39
    truth[1] *= 1e39
    weights = 1 / form.squared_norm().sqrt()
    want = torch.einsum("u,uvd->vd", weights, truth)
    for out in (torch.zeros(V, D), torch.ones(V, D)):
        before = out.clone()
        form.add_weighted(weights, None, out)
        torch.testing.assert_close((out - before).double(), want, rtol=1e-4, atol=1e-5)
        if isinstance(form, Overwrites):
            written = torch.full((V, D), float("nan"))
            form.write_weighted(weights, None, written)
            torch.testing.assert_close(written.double(), want, rtol=1e-4, atol=1e-5)
        out = before.clone()
        Dense(form.dense()).add_weighted(weights, None, out)
        torch.testing.assert_close((out - before).double(), want, rtol=1e-4, atol=1e-5)


def test_a_tied_table_is_written_whatever_was_there() -> None:
    torch.manual_seed(0)
    gather = Gather(torch.randint(0, 5, (3, 4)), torch.randn(3, 4, 2), 5)
    tied = combine([gather, Outer(torch.randn(3, 4, 2), torch.randn(3, 4, 5))])
    assert isinstance(tied, Overwrites)
    weights, keep = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([True, False, True])
    for out in (torch.full((5, 2), torch.nan), torch.full((5, 2), torch.nan, dtype=torch.float64)):
        added = torch.zeros_like(out)
        tied.add_weighted(weights, keep, added)
        tied.write_weighted(weights, keep, out)
        torch.testing.assert_close(out, added)
