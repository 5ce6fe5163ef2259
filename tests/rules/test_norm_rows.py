"""Group normalisation: each row's gradients of scale and shift, whatever the memory looks like."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules import Layout
from reticent.rules._norm import GroupNormMeeting


def oracle(x: Tensor, g: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """One row at a time, by autograd, in float64."""
    scales, shifts = [], []
    for row, grad in zip(x.double(), g.double(), strict=True):
        weight, bias = (
            make(len(row), dtype=torch.float64).requires_grad_() for make in (torch.ones, torch.zeros)
        )
        F.group_norm(row[None], groups, weight, bias).backward(grad[None])
        scales.append(weight.grad)
        shifts.append(bias.grad)
    return torch.stack(scales), torch.stack(shifts)


def spread_out(g: Tensor, kind: str) -> Tensor:
    """The same numbers, or as many, in another memory format."""
    if kind == "channels last":
        return g.movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "expanded":
        return g[:1, :, :1].expand(g.shape)
    return g


@pytest.mark.parametrize("kind", ("plain", "channels last", "expanded"))
@pytest.mark.parametrize("mean", (0.0, 3.0, 1e3), ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize("shape", ((4, 6, 5), (1, 4, 3), (4, 6, 1), (3, 32, 8, 8), (2, 4, 3, 2, 2)), ids=str)
def test_rows_are_exact(shape: tuple[int, ...], dtype: torch.dtype, mean: float, kind: str) -> None:
    made = torch.Generator().manual_seed(0)
    x, g = ((torch.randn(shape, generator=made) + shift).to(dtype) for shift in (mean, 0.0))
    g = spread_out(g, kind)
    weight = torch.ones(shape[1], dtype=dtype)
    meeting = GroupNormMeeting(2, weight, weight, 1e-5, frozenset({"weight", "bias"}))
    _, saved = meeting.forward(x)
    forms = meeting.forms(saved, g, Layout(0, shape[0]))
    scale, shift = oracle(x, g, 2)
    # Of float32 inputs, the mean itself is only known to their rounding.
    tolerance = 1e-11 * max(mean, 1) if dtype == torch.float64 else 2e-6 * (1 + mean / 2)
    for name, want in (("weight", scale), ("bias", shift)):
        got = forms[name].dense().double()
        size = float(g.double().abs().flatten(1).sum(1).max())
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * size)


def test_a_bad_row_stays_alone() -> None:
    x, g = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    want = oracle(x[[0, 2]], g[[0, 2]], 2)[0]
    for bad in (float("nan"), float("inf")):
        x[1, 2, 3] = bad
        meeting = GroupNormMeeting(2, torch.ones(4), torch.zeros(4), 1e-5, frozenset({"weight"}))
        _, saved = meeting.forward(x)
        got = meeting.forms(saved, g, Layout(0, 3))["weight"].dense()
        assert not bool(got[1].isfinite().all())
        torch.testing.assert_close(got[[0, 2]].double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("roles", (("weight", "bias"), ("weight",), ("bias",)), ids="+".join)
@pytest.mark.parametrize("kind", ("plain", "channels last", "expanded"))
@pytest.mark.parametrize("mean", (0.0, 1e3), ids=str)
@pytest.mark.parametrize("shape", ((4, 6, 5), (1, 4, 3), (3, 32, 8, 8), (2, 4, 3, 2, 2)), ids=str)
def test_rows_come_with_the_gradient_of_the_input(
    shape: tuple[int, ...], mean: float, kind: str, roles: tuple[str, ...]
) -> None:
    made = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=made, dtype=torch.float64) + shift for shift in (mean, 0.0))
    g = spread_out(g, kind)
    weight = torch.randn(shape[1], generator=made, dtype=torch.float64) if "weight" in roles else None
    meeting = GroupNormMeeting(2, weight, torch.zeros(shape[1]).double(), 1e-5, frozenset(roles))
    _, saved = meeting.forward(x)
    gx, *rows = meeting.backward(saved, g, (True,))
    assert (not rows) == (mean > 100)  # where means are large they are subtracted first
    leaf = x.clone().requires_grad_()
    F.group_norm(leaf, 2, weight).backward(g)
    tolerance = 1e-11 * max(mean, 1) * float(g.abs().flatten(1).sum(1).max())
    torch.testing.assert_close(gx, leaf.grad, rtol=0, atol=tolerance)
    forms = meeting.forms(saved + tuple(t for t in rows if t is not None), g, Layout(0, shape[0]))
    assert set(forms) == set(roles)
    for role, want in zip(("weight", "bias"), oracle(x, g, 2), strict=True):
        if role in roles:
            torch.testing.assert_close(forms[role].dense(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_rows_are_added_up_in_float32(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(0)
    x, g = (torch.randn(3, 8, 400, generator=made).to(dtype) for _ in range(2))
    meeting = GroupNormMeeting(2, torch.ones(8, dtype=dtype), None, 1e-5, frozenset({"weight"}))
    _, saved = meeting.forward(x)
    _, *rows = meeting.backward(saved, g, (True,))
    got = meeting.forms(saved + tuple(t for t in rows if t is not None), g, Layout(0, 3))["weight"].dense()
    assert got.dtype == torch.float32
