"""Rules for a trainable value that multiplies a tensor, or is added to it, by broadcasting.

Scales of RMS normalisation and LayerScale, biases, position embeddings. Without these rules such an
operation is replayed, which keeps all its arguments; a scale needs the tensor alone, a shift nothing.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): U unit, P positions of one unit, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reticent.rules._forms import Dense, Form
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved, is_constant
from reticent.rules._replay import Rows, broadcast_form
from reticent.rules._rounding import at_least_float32


@dataclass(frozen=True, slots=True, eq=False)
class ScaleMeeting:
    """y = x * w, of x's shape."""

    weight: Tensor

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        (x,) = inputs
        return x * self.weight, (x,)

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        return ((g * self.weight).to(saved[0].dtype),) if needs[0] else (None,)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`: an axis of the weight may carry the units, each of which then has its own part."""
        return True

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form | Rows]:
        """See `Meeting`."""
        (x,) = saved
        return {"weight": broadcast_form(at_least_float32(g) * x, self.weight.shape, layout)}


@dataclass(frozen=True, slots=True, eq=False)
class ShiftMeeting:
    """y = x + w, of x's shape."""

    weight: Tensor

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        (x,) = inputs
        return x + self.weight, ()

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        return (g,) if needs[0] else (None,)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting` and `ScaleMeeting`."""
        return True

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form | Rows]:
        """See `Meeting`."""
        g = at_least_float32(g)
        if self.weight.dim() == 1 and layout.axis < g.dim() - 1 and self.weight.shape[0] == g.shape[-1]:
            return {"weight": Dense(layout.positions(g, 1).sum(1))}
        return {"weight": broadcast_form(g, self.weight.shape, layout)}


def _operands(recorder: Recorder, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """(x, w): w trainable and broadcast to x's shape, both real; None: not that case."""
    if len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
        return None
    left, right = args
    x, w = (left, right) if recorder.is_trainable(right) else (right, left)
    if recorder.is_trainable(x) or not (x.is_floating_point() and is_constant(recorder, w)):
        return None
    if x.dim() < w.dim() or torch.broadcast_shapes(x.shape, w.shape) != x.shape:
        return None
    return x, w


def scale(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x * w` in either order."""
    found = None if kwargs else _operands(recorder, args)
    if found is None:
        return NotImplemented
    x, w = found
    return recorder.record(ScaleMeeting(w.detach()), {"weight": w}, (x,))


def shift(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`x + w` in either order."""
    found = None if kwargs else _operands(recorder, args)
    if found is None:
        return NotImplemented
    x, w = found
    return recorder.record(ShiftMeeting(w.detach()), {"weight": w}, (x,))
