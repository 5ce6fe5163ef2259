"""Rules for matrix products with a trainable matrix: `linear`, `matmul`, `addmm`.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): I input, O output; any leading axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._forms import Dense, Form, Outer
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved, is_constant, trainable_roles


@dataclass(frozen=True, slots=True, eq=False)
class LinearMeeting:
    """y = x W^T + b, or x W + b where `input_first`."""

    weight: Tensor
    bias: Tensor | None
    input_first: bool
    roles: frozenset[str]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`. The output is no view, so that a later in-place operation is allowed."""
        (x,) = inputs
        flat = x.reshape(-1, x.shape[-1])
        if self.input_first:
            y = flat @ self.weight if self.bias is None else torch.addmm(self.bias, flat, self.weight)
        else:
            y = F.linear(flat, self.weight, self.bias)
        shape = [*x.shape[:-1], y.shape[-1]]
        y = torch.ops.aten._unsafe_view.default(y, shape) if x.dim() != 2 else y
        return y, (x,) if "weight" in self.roles else ()

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        if not needs[0]:
            return (None,)
        weight = self.weight.to(g.dtype)
        return (g @ (weight.mT if self.input_first else weight),)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`."""
        return layout.axis < output_dim - 1

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        g_UPO = layout.positions(g, 1)
        forms: dict[str, Form] = {}
        if "weight" in self.roles:
            forms["weight"] = Outer(layout.positions(saved[0], 1), g_UPO, self.input_first)
        if "bias" in self.roles:
            forms["bias"] = Dense(g_UPO.sum(1))
        return forms


def _record(recorder: Recorder, x: Tensor, weight: Tensor, bias: Tensor | None, *, input_first: bool) -> Any:
    roles = trainable_roles(recorder, {"weight": weight, "bias": bias})
    if (
        recorder.is_trainable(x)
        or weight.dim() != 2
        or x.dim() < 2
        or (bias is not None and bias.dim() != 1)
        or not (is_constant(recorder, weight) and is_constant(recorder, bias))
    ):
        return NotImplemented
    fixed_bias = None if bias is None else bias.detach()
    meeting = LinearMeeting(weight.detach(), fixed_bias, input_first, frozenset(roles))
    return recorder.record(meeting, roles, (x,))


def linear(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.linear`, any number of leading axes."""

    def bound(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return _record(recorder, input, weight, bias, input_first=False)

    return bound(*args, **kwargs)


def addmm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.addmm(bias, x, weight)`: Hugging Face's Conv1D."""
    if kwargs or len(args) != 3:
        return NotImplemented
    bias, x, weight = args
    return _record(recorder, x, weight, bias, input_first=True)


def matmul(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x @ W`, and `W @ x` where x has a batch axis of its own."""
    if kwargs or len(args) != 2:
        return NotImplemented
    left, right = args
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return NotImplemented
    if recorder.is_trainable(right):
        return _record(recorder, left, right, None, input_first=True)
    if left.dim() == 2 and right.dim() >= 3:  # (W x)^T = x^T W^T
        return recorder.call(F.linear, right.mT, left).mT
    return NotImplemented
