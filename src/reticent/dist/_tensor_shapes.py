"""What a rank would hold and send under tensor parallel, from shapes alone; and whether a model can be cut.

Room: dist. May import torch and `reticent.errors`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reticent.errors import ConfigError

from ._tensor_layers import apply_cuts, plan_cuts, plan_pairs


def required_cuts(model: nn.Module, size: int) -> dict[nn.Module, int]:
    """How a model is cut into `size` slices.

    Raises:
        ConfigError[tensor-parallel]: less than half of the parameters are in layers that can be cut.
    """
    cuts = plan_cuts(model, size)
    cut = {id(m._parameters["weight"]): m._parameters["weight"] for m in cuts}
    in_slices = sum(p.numel() for p in cut.values() if p is not None)
    number = sum(p.numel() for p in model.parameters())
    if 2 * in_slices < number:
        raise ConfigError(
            f"Only {in_slices} of the model's {number} parameters are in layers that tensor parallel "
            f"can cut into {size} equal slices (nn.Linear, transformers' Conv1D, nn.Embedding). "
            "Each rank would repeat the rest. Use parallel=ddp, or fsdp2 (reticent.dist.Shards) if the "
            "model does not fit, or another number of ranks.",
            code="tensor-parallel",
        )
    return cuts


class _OnPaper:
    """Ranks that nobody is: tensors of the right shape, and the bytes that a rank would send for them.

    A ring of N ranks is counted: each sends (N - 1) / N of what all have at the end, twice for a sum.
    """

    def __init__(self, size: int) -> None:
        self.rank, self.size, self.sent = 0, size, 0.0

    def all_sum(self, x: Tensor) -> Tensor:
        self.sent += 2.0 * x.nbytes * (self.size - 1) / self.size
        return torch.zeros_like(x)

    def all_gather(self, x: Tensor) -> Tensor:
        self.sent += float(x.nbytes * (self.size - 1))
        return x.new_zeros((self.size, *x.shape))


@dataclass(frozen=True, slots=True, eq=False)
class SlicedShapes:
    """A model of shapes, cut as `TensorParallel.shard` would cut it.

    Args:
        whole: names of parameters that every rank has whole.
        ranks: on paper.
    """

    whole: frozenset[str]
    ranks: Any

    def sent(self, act: Callable[[], Tensor]) -> float:
        """Bytes that a rank sends in the forward and the backward of what `act` returns."""
        before = self.ranks.sent
        act().sum().backward()
        return self.ranks.sent - before


def sliced_shapes(model: nn.Module, size: int) -> SlicedShapes:
    """Cut a model into `size` slices, in place; no process group is needed, and its numbers are wrong.

    Raises:
        ConfigError[tensor-parallel]: see `required_cuts`.
    """
    ranks, cuts = _OnPaper(size), required_cuts(model, size)
    before = dict(model.named_parameters())

    def part(p: Tensor, axis: int) -> Tensor:
        return p.narrow(axis, 0, p.shape[axis] // size).clone()

    apply_cuts(cuts, plan_pairs(model, cuts, size), ranks, part)
    whole = {name for name, p in model.named_parameters() if p is before[name]}
    return SlicedShapes(frozenset(whole), ranks)
