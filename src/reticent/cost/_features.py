"""What a physical batch asks of a device: operations, bytes and calls, from shapes alone.

Room: cost. May import torch, `reticent.train`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from reticent.train import PeakMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Of one physical batch.

    Args:
        operations: floating-point, three times those of the forward pass.
        bytes: that the forward pass holds at its end, with what it needs for the backward.
        calls: of torch operations in the forward pass.
        num_units: privacy units in the batch.
    """

    operations: float
    bytes: int
    calls: int
    num_units: int


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            if args[0].dtype == torch.bool:
                return True  # is every position of the mask there? The longest rows are asked about.
        return func(*args, **(kwargs or {}))


def features_of(losses: Callable[[], Tensor], *, num_units: int) -> Features:
    """Count one forward pass; on the meta device it takes neither memory nor time.

    There a question whose answer is one truth value, as whether a mask is all ones, is answered by yes.

    Args:
        losses: runs the model on one physical batch; returns its losses.
        num_units: how many units are in it.
    """
    with FlopCounterMode(display=False) as counter, PeakMemory() as peak, _Calls() as calls:
        losses()
    return Features(
        operations=3.0 * counter.get_total_flops(),
        bytes=peak.bytes,
        calls=calls.number,
        num_units=num_units,
    )


def shapes_alone() -> AbstractContextManager[Any]:
    """A block in which questions to the meta device are answered as in `features_of`."""
    return _Calls()


def on_meta(value: Any) -> Any:
    """Tensors, alone or in tuples, lists and dicts, without their numbers."""
    return tree_map_only(Tensor, lambda t: t.to("meta"), value)
