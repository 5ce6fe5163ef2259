"""Gaussian noise on a bounded sum.

Room: noise. May import torch, `reticent.bounded`, `reticent.errors`; holds functions only.

Sources:
    [1] Dwork, Roth 2014, "The algorithmic foundations of differential privacy", appendix A.
    [2] Mironov 2012, "On significance of the least significant bits for differential privacy".
"""

import math
from typing import Final

import torch
from torch import Tensor

from reticent.bounded import BoundedSum
from reticent.errors import ConfigError
from reticent.noise.source import NoiseSource

_BLOCK: Final = 1 << 20  # coordinates noised at a time: 16 MiB of float64 temporaries
_GRID_BITS: Final = 28  # a standard deviation is 2**28 to 2**29 steps of the grid
_SMALLEST_GRID: Final = 2.0**-1000


def add_noise(bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource) -> dict[str, Tensor]:
    """Add N(0, (noise_multiplier * bound)^2) to every coordinate of every tensor of the sum.

    Args:
        bounded: the sum, with its bound C on one unit's influence; it is not changed.
        noise_multiplier: noise standard deviation over C, no unit; finite, >= 0.
        source: where the standard normals come from; each is used for one coordinate.

    Returns:
        name -> new tensor of the same shape on the same device; float64 where the total is
        float64, float32 otherwise (half precision is promoted, never noised as it is).

    Guarantee:
        With m = noise_multiplier and a private source, the result is one Gaussian mechanism of
        noise multiplier m over the whole sum [1]: all its tensors together are as private as
        m says, once. The noise is drawn and added in float64; then the result is rounded to multiples
        of a power of two near 2^-28 standard deviations, and cast to its dtype. Both are
        post-processing. The grid is far coarser than the floats that sum and noise are made of, so that
        no released value is out of reach of a neighbouring sum: its low bits do not tell which sum it
        came from [2]. The law is that of float64 normals on this grid, not of a discrete Gaussian.

        | input | result |
        |---|---|
        | `noise_multiplier` 0 | copies of the sum, nothing drawn: no privacy |
        | a tensor without elements | the same, nothing drawn |
        | a total that is inf or NaN | stays so: noise cannot hide it (the clipped sum is finite) |

    Raises:
        ConfigError[noise-multiplier]: not a finite number >= 0.
        ConfigError[noise-bound]: the bound, or the standard deviation, is not finite and positive.
        ConfigError[noise-dtype]: a total is not a real floating-point tensor.

    Cost: 8 bytes of keystream and one float64 normal a coordinate; temporaries do not grow with
    the tensors.
    """
    std = _noise_std(noise_multiplier, bounded.bound)
    return {name: _noised(name, total, std, source) for name, total in bounded.total.items()}


def _noise_std(noise_multiplier: float, bound: float) -> float:
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ConfigError(
            f"noise_multiplier must be a finite number >= 0, got {noise_multiplier!r}.",
            code="noise-multiplier",
        )
    std = noise_multiplier * bound
    # A product that overflows, or underflows to 0 (no noise at all), is refused with the bound.
    fits = math.isfinite(std) and (std > 0 or noise_multiplier == 0)
    if not (math.isfinite(bound) and bound > 0 and fits):
        raise ConfigError(
            f"The noise's standard deviation is noise_multiplier * bound = {noise_multiplier!r} * "
            f"{bound!r} and must be finite and positive. A clipped sum's bound is its max_norm.",
            code="noise-bound",
        )
    return std


def _noised(name: str, total: Tensor, std: float, source: NoiseSource) -> Tensor:
    if not total.is_floating_point():
        raise ConfigError(
            f"The sum for '{name}' has dtype {total.dtype}; noise needs real floating-point sums.",
            code="noise-dtype",
        )
    dtype = torch.promote_types(total.dtype, torch.float32)
    out = torch.empty(total.shape, dtype=dtype, device=total.device).copy_(total.detach())
    if std == 0.0:
        return out
    grid = max(2.0 ** (math.frexp(std)[1] - _GRID_BITS), _SMALLEST_GRID)
    for block in out.view(-1).split(_BLOCK):
        z = source.normal(block.shape, dtype=torch.float64, device=block.device)
        y = z.mul_(std).add_(block)
        block.copy_(y.div_(grid).round_().mul_(grid))  # exact but for the rounding: grid is a power of two
    return out
