"""Gradients of look-ups: rows added to a table.

Room: rules. May import torch; holds frozen records, no state.

Shape letters (this file): U unit, P position of one unit, V rows of a table, D its width.

Sources:
    [1] Li et al. 2021, arXiv:2110.05679 (many positions: the "ghost" norm)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reticent.rules._forms import Form, Method, num_bytes
from reticent.rules._rounding import (
    Doubts,
    above_rounding,
    at_least_float32,
    guarded,
    masked,
    sum_of_squares,
    wider,
)


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Unit u's gradient adds g[u, p] to row ids[u, p] of a table of shape (V, D).

    Rows may repeat. The caller has set g to zero at padding.
    """

    ids_UP: Tensor
    g_UPD: Tensor
    num_rows: int

    def methods(self) -> tuple[Method, ...]:
        """See `Form`: adding up the rows that were looked up beat a Gram matrix at every size measured."""
        own = num_bytes(self.ids_UP, self.g_UPD)
        if self.g_UPD.shape[1] == 1:
            return (Method(name="rows", flops=0.0, moved=float(own), held=own, peak=0),)
        return (Method(name="rows", flops=0.0, moved=4.0 * own, held=own, peak=own),)

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        return self.squared_norm(), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """Each unit's repeated rows are added up: no table and no (U, P, P) tensor for any V and P.

        With `doubts` by a Gram matrix, since which rows repeat depends on values.
        """
        if doubts is not None:
            return self._gram_squared_norm(doubts)
        g = at_least_float32(self.g_UPD)
        units, positions, width = g.shape
        if positions == 1 or g.numel() == 0:
            return sum_of_squares(g)
        owner_UP = torch.arange(units, device=g.device)[:, None].expand(-1, positions)
        found, place = torch.unique(owner_UP * self.num_rows + self.ids_UP, return_inverse=True)
        rows = g.new_zeros(len(found), width).index_add_(0, place.reshape(-1), g.reshape(-1, width))
        square = sum_of_squares(rows)
        square_U = square.new_zeros(units).index_add_(0, found // self.num_rows, square)
        return above_rounding(square_U, positions, self.spread(), g.dtype)

    def spread(self) -> Tensor:
        """Root of the sum of squared lengths of a unit's rows, before they are added up."""
        return torch.linalg.vector_norm(self.g_UPD.flatten(1), dim=1, dtype=torch.float64)

    def _gram_squared_norm(self, doubts: Doubts) -> Tensor:
        """sum_{p,q} 1[ids_p = ids_q] (g_p.g_q): never builds a table for each unit [1]."""

        def gram(cast: Callable[[Tensor], Tensor]) -> Tensor:
            ids, g = self.ids_UP, cast(self.g_UPD)
            return torch.where(ids[:, :, None] == ids[:, None, :], torch.bmm(g, g.mT), 0)

        if self.ids_UP.shape[1] == 1:
            return sum_of_squares(self.g_UPD, doubts)
        if self.g_UPD.dtype == torch.float64:
            return guarded(gram)
        _, positions, width = self.g_UPD.shape
        lost = positions**2 * width * torch.finfo(torch.float32).tiny  # products too small for float32
        vanishing_U = torch.where(sum_of_squares(self.g_UPD, doubts) == 0, 0.0, lost)
        return guarded(gram, vanishing_U, doubts=doubts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        dtype = wider(out, self.g_UPD)
        g = masked(self.g_UPD, keep).to(dtype) * weights.to(dtype)[:, None, None]
        out.index_add_(0, self.ids_UP.reshape(-1), g.reshape(-1, g.shape[-1]).to(out.dtype))

    def dense(self) -> Tensor:
        """See `Form`."""
        g = at_least_float32(self.g_UPD)
        num_units, _, width = g.shape
        table = g.new_zeros(num_units * self.num_rows, width)
        offset = torch.arange(num_units, device=g.device)[:, None] * self.num_rows
        table.index_add_(0, (self.ids_UP + offset).reshape(-1), g.reshape(-1, width))
        return table.view(num_units, self.num_rows, width)
