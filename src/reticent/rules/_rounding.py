"""Squared norms that rounding cannot push below the truth.

Room: rules. May import torch; holds functions, no state.

Shape letters (this file): U unit.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

# Where a Gram sum cancels so much that its float32 rounding could exceed this share of the squared
# norm, the unit is computed again in float64. Below it, the bound on the rounding is added.
MAX_ROUNDING: Final = 1e-5
# Where nothing may be computed again (see `Doubts`), a bound this much too large is still fine.
MAX_DOUBT: Final = 1e-4

# Entries whose squares are added up in float32 before float64 takes over.
_RUN: Final = 1 << 12

# In a traced graph no step may depend on values, so no unit can be computed again. Whoever traces
# passes a list: norms are then rounded up by the bound, and masks (U,) of units for which that is
# coarse are added to it. Norms are never below the truth, in doubt or not; whoever gets a doubt
# computes again without a list, so that a unit is not clipped by more than it need be.
Doubts = list[Tensor]


def at_least_float32(t: Tensor) -> Tensor:
    """Half precision is raised to float32; float32 and float64 stay."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def sum_of_squares(t: Tensor, doubts: Doubts | None = None) -> Tensor:
    """(U, ..) -> (U,) in float64; 0 for no entries. With `doubts`, no branch, and never a doubt."""
    if t.numel() == 0:
        return t.new_zeros(t.shape[0], dtype=torch.float64)
    flat = at_least_float32(t).reshape(t.shape[0], -1)
    if doubts is not None:  # a compiler fuses the cast; its float32 sums would be in no particular order
        return flat.double().square().sum(1)
    square_U = _squares_of_runs(flat)
    if flat.dtype != torch.float64:  # squares of tiny entries vanish, those of huge ones overflow
        tiny = 1e-30 * flat.shape[1]
        again = torch.nonzero(~((square_U >= tiny) & (square_U < math.inf))).flatten()
        if again.numel():
            exact = torch.linalg.vector_norm(flat[again].double(), dim=1).square()
            square_U = square_U.index_copy(0, again, exact)
    return square_U


def _squares_of_runs(flat: Tensor) -> Tensor:
    """(U, n) -> (U,) float64, from runs short enough for sums in float32, which drift over millions."""
    whole = flat.shape[1] // _RUN * _RUN
    if not whole:
        return torch.linalg.vector_norm(flat, dim=1).double().square()
    runs = flat[:, :whole].unflatten(1, (-1, _RUN))
    square_U = torch.linalg.vector_norm(runs, dim=2).double().square().sum(1)
    if whole < flat.shape[1]:
        square_U = square_U + torch.linalg.vector_norm(flat[:, whole:], dim=1).double().square()
    return square_U


def of_factor(square_U: Tensor, factor: Tensor) -> Tensor:
    """Squared lengths of a factor of a product; infinite, so that the unit is left out, beyond float32.

    Scaled down to the clipping norm, such a product would have another factor below float32's smallest
    numbers, and round by more than norms are rounded up.
    """
    if factor.dtype == torch.float64:
        return square_U
    return torch.where(square_U > torch.finfo(torch.float32).max, math.inf, square_U)


def masked(t: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return t
    return torch.where(keep.view(-1, *([1] * (t.dim() - 1))), t, 0)


def wider(out: Tensor, *tensors: Tensor) -> torch.dtype:
    """What a sum is formed in: factors in float64 may be beyond float32, though their product is not."""
    dtype = out.dtype
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def guarded(
    product: Callable[[Callable[[Tensor], Tensor]], Tensor],
    vanishing_U: Tensor | None = None,
    terms: Tensor | None = None,
    doubts: Doubts | None = None,
) -> Tensor:
    """Squared norms from a sum of signed terms, never below the truth.

    Args:
        product: maps a cast to the terms of the squared norm, in two axes after U, each factor cast first.
            The cast may also select units.
        vanishing_U: what float32 terms may lack because a factor was too small for float32.
        terms: `product(at_least_float32)`, if it is there already.
        doubts: see `Doubts`.
    """
    terms = product(at_least_float32) if terms is None else terms
    total = terms.sum((1, 2), dtype=torch.float64)
    sizes = torch.linalg.vector_norm(terms.flatten(1), ord=1, dim=1).double()
    slack = 4 * torch.finfo(terms.dtype).eps * sizes * (1 + 1e-3)
    if terms.dtype == torch.float64:
        return total.clamp_min(0.0) + slack
    if vanishing_U is not None:
        slack = slack + vanishing_U
    # Comparisons with NaN are false: what float32 cannot hold is in doubt too. A unit that is not finite in
    # float64 either stays so, and is left out by the engine.
    if doubts is not None:
        doubts.append(~(slack <= MAX_DOUBT * total) | ~torch.isfinite(total))
        return total.clamp_min(0.0) + slack
    again = torch.nonzero(~(slack <= MAX_ROUNDING * total) | ~torch.isfinite(total)).flatten()
    total = total.clamp_min(0.0) + slack
    if again.numel():
        exact = product(lambda t: t[again].double())
        total = total.index_copy(0, again, exact.sum((1, 2)).clamp_min(0.0) + 1e-13 * exact.abs().sum((1, 2)))
    return total


def above_rounding(square_U: Tensor, positions: int, spread_U: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared norms, with what rounding may add to the norm when a sum over positions is formed.

    Where the positions nearly cancel, that can exceed the norm's own rounding by far. `spread_U`: the
    root of the sum of squared lengths of what is added up.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return (square_U.sqrt() + eps * math.sqrt(positions) * spread_U).square()
