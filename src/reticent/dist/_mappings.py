"""What crosses ranks in forward and backward under tensor parallel: four mappings, two undo two [1].

    mapping     forward                             backward
    copied      the same                            sum over ranks
    summed      sum over ranks                      the same
    gathered    every rank's last axis, joined      this rank's part of the last axis
    split       this rank's part of the last axis   every rank's last axis, joined

Each is one function to a torch function mode: what records a forward sees what went in and what came out.

Room: dist. May import torch.

Sources:
    [1] Shoeybi et al. 2019, arXiv:1909.08053, section 3 (f and g are `copied` and `summed`).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


class Over(Protocol):
    """What the mappings need of the ranks."""

    @property
    def rank(self) -> int:
        """This one's number."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's tensor."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor, shape (size, *shape)."""
        ...


Crossing = Callable[[Tensor, Over], Tensor]


def copied(x: Tensor, over: Over) -> Tensor:
    """A tensor that all ranks have, for each to use in its own way."""
    return _cross(copied, x, over, _same, _sum)


def summed(x: Tensor, over: Over) -> Tensor:
    """The sum of every rank's tensor."""
    return _cross(summed, x, over, _sum, _same)


def gathered(x: Tensor, over: Over) -> Tensor:
    """Every rank's tensor, joined along the last axis in the ranks' order."""
    return _cross(gathered, x, over, _join, _cut)


def split(x: Tensor, over: Over) -> Tensor:
    """This rank's part of the last axis of a tensor that all ranks have; their number divides its size."""
    return _cross(split, x, over, _cut, _join)


def _cross(called: Any, x: Tensor, over: Over, forth: Crossing, back: Crossing) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(called, (x,), x, over)
    return _Cross.apply(x, over, forth, back)


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, over: Over, forth: Crossing, back: Crossing) -> Tensor:
        ctx.over, ctx.back = over, back
        return forth(x, over)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return ctx.back(grads[0], ctx.over), None, None, None


def _same(x: Tensor, over: Over) -> Tensor:
    return x.view_as(x)


def _sum(x: Tensor, over: Over) -> Tensor:
    return over.all_sum(x)


def _join(x: Tensor, over: Over) -> Tensor:
    return over.all_gather(x).movedim(0, -2).flatten(-2)


def _cut(x: Tensor, over: Over) -> Tensor:
    width = x.shape[-1] // over.size
    return x.narrow(-1, over.rank * width, width).contiguous()
