"""Whether a compiled graph gives the eager engine's sum: the compiled engine's self-check.

Room: clip. May import torch, `reticent.bounded`, `reticent.errors`.

Shape letters (this file): U units, L groups.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from reticent.bounded import BoundedSum
from reticent.clip._groups import Group
from reticent.clip._sums import sum_dtype
from reticent.errors import UnsupportedModel

# The compiled sum may differ from the eager one by this share of its size: sums in another order, and
# in half precision, roundings left out between fused operations.
_TOLERANCE: Final = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_TOLERANCE: Final = 5e-2
_SHORT: Final = 1e-2  # of the clipping norm


def tolerance(param: Tensor, *, half: bool) -> float:
    """The share by which sums of a parameter's kind may differ."""
    return _HALF_TOLERANCE if half else _TOLERANCE[sum_dtype(param)]


def agree(
    groups: Sequence[Group], sums: Mapping[str, Tensor], norm_UL: Tensor, eager: BoundedSum, within: float
) -> bool:
    """Whether norms agree, and the sums to a share of what the norms allow. Padding may follow the units.

    Gradients that are short beside the clipping norm, as of examples that are learned by heart, are rounding:
    they need not agree to a share of themselves.
    """
    want_UL = norms_of(eager).to(norm_UL.device)
    parts = [group.weights(want_U) * want_U for group, want_U in zip(groups, want_UL.T, strict=True)]
    limits_L = torch.tensor([group.max_norm for group in groups], dtype=want_UL.dtype, device=want_UL.device)
    scale = float(torch.linalg.vector_norm(torch.stack(parts), dim=0).sum())
    scale = max(scale, _SHORT * len(want_UL) * float(torch.linalg.vector_norm(limits_L)))
    square = sum(float((sums[name] - eager.total[name]).double().square().sum()) for name in sums)
    gap_UL = (norm_UL[: len(want_UL)] - want_UL).abs()
    near = bool((gap_UL <= within * torch.maximum(want_UL, _SHORT * limits_L)).all())
    return near and math.sqrt(square) <= within * scale


def another_sum(within: float) -> UnsupportedModel:
    return UnsupportedModel(
        "The compiled graph does not give the sum or the norms of the eager engine on the same rows, "
        f"to {within}. Use ClipEngine, and please report it.",
        code="compile-self-check",
    )


def norms_of(done: BoundedSum) -> Tensor:
    """(U, L)."""
    return done.norms[:, None] if done.group_norms is None else done.group_norms
