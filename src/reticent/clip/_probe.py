"""Proves which entries of each recorded output belong to which unit, from gradients alone.

Two backward passes over one forward: one with every unit's loss weighted 1, one with unit u's loss
weighted s[u], a power of two. Backward is linear in these weights, and scaling by a power of two
commutes with rounding: an entry that only unit u's loss depends on has exactly s[u] times its first
gradient. If units mix anywhere downstream, no assignment of entries to units fits.

Room: clip. May import torch, `reticent.rules`.

Shape letters (this file): U unit.
"""

import os
from typing import Final

import torch
from torch import Tensor

from reticent.rules import Layout

_TOLERANCE: Final = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
}
_HALF_TOLERANCE: Final = 1e-3
_MAX_INNER: Final = 16


def probe_weights(num_units: int, *, half: bool = False) -> Tensor:
    """A power of two for each unit, distinct for up to 64 units (16 where float16 has no more range).

    Beyond, weights repeat: two units that mix with each other alone are missed if theirs are equal,
    with probability 1/64.

    Returns:
        Shape (U,), float64, in random order.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
    span = 16 if half else 64
    rounds = [torch.randperm(span, generator=generator) for _ in range(0, num_units, span)]
    return torch.pow(2.0, (torch.cat(rounds)[:num_units] - span // 2).double())


def _candidates(shape: torch.Size, num_units: int) -> list[Layout]:
    found = []
    for axis, size in enumerate(shape):
        if size == 0 or size % num_units:
            continue
        rows = size // num_units
        found.append(Layout(axis, num_units))
        inners = [i for i in range(1, rows) if rows % i == 0]
        found += [Layout(axis, num_units, i) for i in inners[:_MAX_INNER]]
    return found


def _holds(layout: Layout, ones: Tensor, scaled: Tensor, weights: Tensor, tolerance: float) -> bool:
    size = ones.shape[layout.axis]
    shape = [1] * ones.dim()
    shape[layout.axis] = size
    owner = layout.owner(size, ones.device)
    recovered = scaled / weights.to(ones.device, ones.real.dtype)[owner].view(shape)
    both_bad = ~torch.isfinite(recovered) & ~torch.isfinite(ones)
    error = torch.where(both_bad, 0, recovered - ones)
    expected = torch.where(both_bad, 0, ones)

    def per_unit(t: Tensor) -> Tensor:
        return layout.units_first(t).flatten(1).abs().double().norm(dim=1)

    norm = per_unit(expected)
    return bool((per_unit(error) <= tolerance * norm + 1e-3 * tolerance * norm.max()).all())


def prove_layout(ones: Tensor, scaled: Tensor, weights: Tensor) -> tuple[Layout | None, bool]:
    """The layout that explains both gradients of one output.

    Args:
        ones: gradient with every loss weighted 1.
        scaled: gradient with unit u's loss weighted `weights[u]`.
        weights: shape (U,), U >= 2.

    Returns:
        The layout (None if units mix, or lie in no regular way), and whether it is the only one
        that fits: where every gradient is zero any would, and nothing is proven.
    """
    tolerance = _TOLERANCE.get(ones.dtype, _HALF_TOLERANCE)
    fitting = [
        layout
        for layout in _candidates(ones.shape, weights.shape[0])
        if _holds(layout, ones, scaled, weights, tolerance)
    ]
    if not fitting:
        return None, True
    return fitting[0], len(fitting) == 1
