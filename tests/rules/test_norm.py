"""Layer normalisation with long units takes another path; both give the gradients of autograd."""

import pytest
import torch
from torch import nn

from reticent.rules import Layout
from reticent.rules._norm import _FUSED_FROM, LayerNormMeeting


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("positions", [3, _FUSED_FROM // 64])
def test_layer_norm_forms_are_those_of_one_example_at_a_time(positions: int, axis: int) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(2, 3, positions, 64) + 5, torch.randn(2, 3, positions, 64)
    layer = nn.LayerNorm(64)
    meeting = LayerNormMeeting(
        (64,), layer.weight.detach(), layer.bias.detach(), 1e-5, frozenset(("weight", "bias"))
    )
    y, saved = meeting.forward(x)
    forms = meeting.forms(saved, g, Layout(axis, x.shape[axis]))
    wide = nn.LayerNorm(64).double()
    for unit in range(x.shape[axis]):
        wide.zero_grad()
        wide(x.select(axis, unit).double()).backward(g.select(axis, unit).double())
        for role in ("weight", "bias"):
            want = getattr(wide, role).grad
            got = forms[role].dense()[unit].double()
            assert (got - want).norm() <= 2e-6 * want.norm() * positions**0.5, role
    assert y.shape == x.shape
