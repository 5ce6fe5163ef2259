"""Which entries of a tensor belong to which privacy unit.

Room: rules. May import torch; holds functions and one frozen record, no state.

Shape letters (this file): U unit, P positions of one unit, n size of the unit axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Entry `i` along `axis` belongs to unit `(i // inner) % num_units`.

    Args:
        axis: the axis that carries the units.
        num_units: U.
        inner: consecutive entries of one unit before the next unit's; None means "as many as there
            are", n / U: units are contiguous blocks, the ordinary case (one row each, or a flattened
            (B * T) axis, or k augmentations of each example). 1 means units alternate, as in a
            flattened (T * B) axis.
    """

    axis: int
    num_units: int
    inner: int | None = None

    def fits(self, size: int) -> bool:
        """Whether an axis of this size can carry the units."""
        if self.num_units == 0 or size % self.num_units:
            return False
        return self.inner is None or (size // self.num_units) % self.inner == 0

    def _split(self, size: int) -> tuple[int, int]:
        inner = size // self.num_units if self.inner is None else self.inner
        return size // (self.num_units * inner), inner

    def owner(self, size: int, device: torch.device) -> Tensor:
        """Unit of each entry along the axis, shape (n,)."""
        _, inner = self._split(size)
        return (torch.arange(size, device=device) // inner) % self.num_units

    def units_first(self, t: Tensor) -> Tensor:
        """(.., n, ..) -> (U, .., n / U, ..): a new leading unit axis; the old one holds its rows."""
        axis = self.axis % t.dim()
        outer, inner = self._split(t.shape[axis])
        if axis == 0 and outer == 1:  # the ordinary case
            return t.reshape(self.num_units, inner, *t.shape[1:])
        t = t.reshape(*t.shape[:axis], outer, self.num_units, inner, *t.shape[axis + 1 :])
        t = t.movedim(axis + 1, 0)  # (U, .., outer, inner, ..)
        return t.reshape(self.num_units, *t.shape[1 : axis + 1], outer * inner, *t.shape[axis + 3 :])

    def positions(self, t: Tensor, num_features: int) -> Tensor:
        """(.., n, .., *features) -> (U, P, *features): all but the last axes become positions."""
        t = self.units_first(t)
        features = t.shape[t.dim() - num_features :]
        positions = 1
        for size in t.shape[1 : t.dim() - num_features]:
            positions *= size
        return t.reshape(t.shape[0], positions, *features)

    def take(self, t: Tensor, unit: int) -> Tensor:
        """The entries of one unit, shape (.., n / U, ..)."""
        size = t.shape[self.axis]
        if self.inner is None:
            rows = size // self.num_units
            return t.narrow(self.axis, unit * rows, rows)
        return t.index_select(self.axis, torch.nonzero(self.owner(size, t.device) == unit).flatten())
