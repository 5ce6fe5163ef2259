"""Proves which entries of each recorded output belong to which unit, from gradients alone.

Two backward passes over one forward: one with every unit's loss weighted 1, one with unit u's loss
weighted s[u], a power of two. Backward is linear in these weights, and scaling by a power of two
commutes with rounding: an entry that only unit u's loss depends on has exactly s[u] times its first
gradient. If units mix anywhere downstream, no assignment of entries to units fits.

No gradient is kept for the comparison: each index along each axis that may carry the units keeps a
few random projections of its slice, the same in both passes. A slice that changed otherwise than by
its unit's weight has other projections too, but for a chance that the operating system's entropy
makes negligible; and the size of projections stands for the size of the slice.

Room: clip. May import torch, `reticent.rules`.

Shape letters (this file): U unit, n size of an axis, K projections.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from reticent.clip._entry import Entry, Key
from reticent.rules import Layout

_TOLERANCE: Final = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
}
_HALF_TOLERANCE: Final = 1e-3
# Near the smallest floats a product is no longer rounded relative to its size, or becomes 0 at once:
# gradients of examples that are fitted all but exactly are compared no closer than this, and below it they
# show nothing. The smallest clipping norm is 1e-15: what so passes unseen is 1e-14 of it, times an input.
_NOTHING: Final = {
    dtype: torch.finfo(dtype).tiny * 2.0**30 for dtype in (torch.bfloat16, torch.float32, torch.float64)
} | {torch.float16: 0.0}  # it has no such range
_MAX_INNER: Final = 16
_NUM_PROJECTIONS: Final = 4


def probe_weights(num_units: int, *, half: bool = False) -> Tensor:
    """A power of two for each unit, distinct for up to 64 units (16 where float16 has no more range).

    Beyond, weights repeat: two units that mix with each other alone are missed if theirs are equal,
    with probability 1/64.

    From 2^-8 up: of a unit that is fitted all but exactly, smaller ones would leave nothing.

    Returns:
        Shape (U,), float64, in random order.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
    span = 16 if half else 64
    rounds = [torch.randperm(span, generator=generator) for _ in range(0, num_units, span)]
    return torch.pow(2.0, (torch.cat(rounds)[:num_units] - 8).double())


@dataclass(frozen=True, slots=True, eq=False)
class Print:
    """What is kept of one gradient along one axis.

    Args:
        projections: of each index's slice, (n, K).
        bad: entries of each index's slice that are not finite, and count as zero in `projections`,
            (n,); None where all are finite.
    """

    projections: Tensor
    bad: Tensor | None

    def __add__(self, other: "Print") -> "Print":
        if self.bad is None or other.bad is None:
            bad = other.bad if self.bad is None else self.bad
        else:
            bad = self.bad + other.bad
        return Print(self.projections + other.projections, bad)


class Fingerprints:
    """Visits one backward pass and keeps the prints of every gradient.

    Args:
        num_units: U, at least 2.
        seed: of the projections; the two passes that are compared share it.
    """

    def __init__(self, num_units: int, seed: int) -> None:
        self.prints: dict[Key, dict[int, dict[int, Print]]] = {}
        self.dtypes: dict[Key, torch.dtype] = {}
        self.shapes: dict[Key, dict[int, torch.Size]] = {}
        self.entries: dict[Key, Entry] = {}
        self._num_units = num_units
        self._seed = seed

    def not_finite(self) -> bool:
        """Whether some gradient held what is no finite number."""
        kept = (made for of in self.prints.values() for by_axis in of.values() for made in by_axis.values())
        return any(made.bad is not None and bool(made.bad.any()) for made in kept)

    def visit(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """See `Visitor`."""
        self.entries.setdefault(entry.key, entry)
        self.dtypes[entry.key] = g.dtype
        self.shapes.setdefault(entry.key, {})[index] = g.shape
        found = self.prints.setdefault(entry.key, {}).setdefault(index, {})
        for axis, size in enumerate(g.shape):
            if size and size % self._num_units == 0:
                made = self._print(g, axis)
                found[axis] = found[axis] + made if axis in found else made

    def _print(self, g: Tensor, axis: int) -> Print:
        if g.numel() == 0:  # no positions: nothing to tell units by, and nothing that mixes
            dtype = torch.float64 if g.real.dtype == torch.float64 else torch.float32
            return Print(g.new_zeros(g.shape[axis], _NUM_PROJECTIONS, dtype=dtype), None)
        made = self._project(g, axis)
        if bool(torch.isfinite(made).all()):
            return Print(made, None)
        good = torch.isfinite(g)
        others = [a for a in range(g.dim()) if a != axis]
        bad = (~good).sum(others) if others else (~good).long()
        return Print(self._project(torch.where(good, g, 0), axis), bad)

    def _directions(self, size: int, axis: int, like: Tensor) -> Tensor:
        """(size, K): the same in every pass."""
        # NumPy's, since torch's draws may be silenced around us
        draws = np.random.default_rng((self._seed, axis, size)).standard_normal((size, _NUM_PROJECTIONS))
        dtype = torch.float64 if like.real.dtype == torch.float64 else torch.float32
        return torch.from_numpy(draws).to(like.device, dtype)

    def _project(self, g: Tensor, axis: int) -> Tensor:
        """(n, K): products of each slice with K random directions of rank one."""
        g = torch.view_as_real(g).movedim(-1, axis + 1) if g.is_complex() else g
        wide = g if g.dtype == torch.float64 else g.float()
        lead = math.prod(g.shape[:axis])
        if axis == g.dim() - 1:
            z = wide.new_ones(1, _NUM_PROJECTIONS)
            for a, size in enumerate(g.shape[:axis]):
                z = (z[:, None] * self._directions(size, a, wide)[None]).flatten(0, 1)
            return wide.reshape(lead, -1).mT @ z
        last = g.dim() - 1
        t = wide.reshape(-1, g.shape[last]) @ self._directions(g.shape[last], last, wide)
        for a in range(last - 1, axis, -1):
            t = (t.reshape(-1, g.shape[a], _NUM_PROJECTIONS) * self._directions(g.shape[a], a, wide)).sum(1)
        t = t.reshape(lead, g.shape[axis], _NUM_PROJECTIONS)
        for a in range(axis - 1, -1, -1):
            z = self._directions(g.shape[a], a, wide)
            t = (t.reshape(-1, g.shape[a], *t.shape[1:]) * z[:, None, :]).sum(1)
        return t.reshape(g.shape[axis], _NUM_PROJECTIONS)


class Unseen:
    """Visits a backward pass that other processes need, and looks at nothing."""

    def visit(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """See `Visitor`."""


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


def _holds(layout: Layout, ones: Print, scaled: Print, weights: Tensor, tolerance: float) -> bool:
    if (ones.bad is None) != (scaled.bad is None):
        return False
    if ones.bad is not None and scaled.bad is not None and not torch.equal(ones.bad, scaled.bad):
        return False
    expected = ones.projections.double()
    along = replace(layout, axis=0)  # projections have the indices first
    owner = along.owner(len(expected), expected.device)
    recovered = scaled.projections.double() / weights.to(owner.device)[owner][:, None]

    def per_unit(t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(along.units_first(t).flatten(1), dim=1)

    allowed = tolerance * per_unit(expected) + _NOTHING[ones.projections.dtype]
    return bool((per_unit(recovered - expected) <= allowed).all())


def prove_layout(
    shape: torch.Size, dtype: torch.dtype, ones: dict[int, Print], scaled: dict[int, Print], weights: Tensor
) -> tuple[Layout | None, bool]:
    """The layout that explains both gradients of one output.

    Args:
        shape: of the output.
        dtype: of its gradients.
        ones: axis -> print of the gradient with every loss weighted 1.
        scaled: axis -> print of the gradient with unit u's loss weighted `weights[u]`.
        weights: shape (U,), U >= 2.

    Returns:
        The layout (None if units mix, or lie in no regular way), and whether it is the only one
        that fits. Where every gradient is zero, or all but zero, any would: nothing is proven.
        Nor is it where a gradient is not finite.
    """
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    fitting = [
        layout
        for layout in _candidates(shape, weights.shape[0])
        if _holds(layout, ones[layout.axis], scaled[layout.axis], weights, tolerance)
    ]
    if not fitting:
        return None, True
    finite = all(p.bad is None for p in ones.values())
    projections = ones[fitting[0].axis].projections
    seen = bool((projections.abs() > _NOTHING[projections.dtype]).any())
    return fitting[0], len(fitting) == 1 and finite and seen
