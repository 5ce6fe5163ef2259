"""Sums of one parameter's forms: it was used twice, or is tied.

The squared norm of a sum is exact, because inner products between forms are:
||E + H||^2 = ||E||^2 + ||H||^2 + 2 <E, H>.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): U unit, P and Q positions of one unit, V rows of a table, D its width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from reticent.rules._forms import Dense, Form, Method, Outer, joins, says_some_units
from reticent.rules._gather import Gather
from reticent.rules._rounding import (
    MAX_DOUBT,
    MAX_ROUNDING,
    Doubts,
    above_rounding,
    at_least_float32,
    sum_of_squares,
)

_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class _Tied:
    """A table looked up and multiplied with: `Gather` plus `Outer` of one (V, D) parameter."""

    gather: Gather
    outer: Outer

    def methods(self) -> tuple[Method, ...]:
        """See `Form`: the factors are kept, or a table for each unit, or these are formed a few at a time."""
        (rows,) = self.gather.methods()
        terms = self.gather.ids_UP.shape[1] * self.outer.x_UPI.numel() // max(self.outer.x_UPI.shape[2], 1)
        size = 8 if self.gather.g_UPD.dtype == torch.float64 else 4
        found = []
        for own in self.outer.methods():
            if own.name == "keep":  # one table for each unit, in place of all that it is made of
                found.append(replace(own, moved=own.moved + rows.moved, peak=own.peak + rows.peak))
                continue
            gram = own.name == "gram"
            found.append(
                Method(
                    name=own.name,
                    flops=own.flops + (2.0 * terms * self.gather.g_UPD.shape[2] if gram else 0.0),
                    moved=own.moved + rows.moved + (4.0 * size * terms if gram else 0.0),
                    held=own.held + rows.held,
                    peak=own.peak + rows.peak,
                )
            )
        return tuple(found)

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        if method == "keep":
            made = Dense(self.dense())
            return made.squared_norm(), made
        return self._dropped_squared_norm() if method == "drop" else self._gram_squared_norm(), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """From inner products, or from tables where those take fewer operations."""
        if doubts is not None:
            return self._gram_squared_norm(doubts)
        return self._dropped_squared_norm() if self.outer.is_cheaper_formed() else self._gram_squared_norm()

    def _dropped_squared_norm(self) -> Tensor:
        """Each unit's table itself, of a few units at a time: nothing cancels."""
        units, width = self.gather.ids_UP.shape[0], self.gather.g_UPD.shape[2]
        step = max(1, _CHUNK // max(self.gather.num_rows * width, 1))
        parts = [self.of_units(slice(i, i + step)) for i in range(0, max(units, 1), step)]
        square_U = torch.cat([sum_of_squares(part.dense()) for part in parts])  # one of them at a time
        spread_U = (self.gather.spread().square() + self.outer.spread().square()).sqrt()
        positions = self.gather.ids_UP.shape[1] + self.outer.x_UPI.shape[1]
        return above_rounding(square_U, positions, spread_U, self.gather.g_UPD.dtype)

    def of_units(self, units: Tensor | slice) -> "_Tied":
        """The same gradients, of some units."""
        gather, outer = self.gather, self.outer
        return _Tied(
            Gather(gather.ids_UP[units], gather.g_UPD[units], gather.num_rows),
            Outer(outer.x_UPI[units], outer.g_UPO[units], outer.input_first),
        )

    def _double(self) -> "_Tied":
        gather, outer = self.gather, self.outer
        return _Tied(
            Gather(gather.ids_UP, gather.g_UPD.double(), gather.num_rows),
            Outer(outer.x_UPI.double(), outer.g_UPO.double(), outer.input_first),
        )

    def _cross(self) -> tuple[Tensor, Tensor]:
        """<E, H> = sum_{p,q} g^H_q[ids_p] (x^H_q . g^E_p) for each unit, and the sum of absolute terms."""
        factors = (self.gather.ids_UP.long(), self.gather.g_UPD, self._table_inputs(), self._table_outputs())
        terms = factors[0].shape[1] * factors[2].shape[1]
        sums, sizes = [], []
        for ids, e, h, g in zip(*(t.split(max(1, _CHUNK // max(terms, 1))) for t in factors), strict=True):
            picked = torch.gather(g, 2, ids[:, None, :].expand(-1, g.shape[1], -1))
            inner = torch.bmm(at_least_float32(h), at_least_float32(e).mT)
            terms_UQP = inner.mul_(at_least_float32(picked))
            sums.append(terms_UQP.sum((1, 2), dtype=torch.float64))
            sizes.append(torch.linalg.vector_norm(terms_UQP.flatten(1), ord=1, dim=1).double() * (1 + 1e-3))
        return torch.cat(sums), torch.cat(sizes)

    def _gram_squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """||E||^2 + ||H||^2 + 2 <E, H>."""
        own = self.gather.squared_norm(doubts) + self.outer.squared_norm(doubts)
        cross_U, size_U = self._cross()
        dtype = at_least_float32(self.gather.g_UPD).dtype
        eps = torch.finfo(dtype).eps
        total = own + 2 * cross_U
        slack = 8 * eps * (own + size_U)
        if dtype == torch.float64:
            return total.clamp_min(0.0) + slack
        allowed = MAX_ROUNDING if doubts is None else MAX_DOUBT
        in_doubt_U = ~(slack <= allowed * total) | ~torch.isfinite(total)
        total = total.clamp_min(0.0) + slack
        if doubts is not None:
            doubts.append(in_doubt_U)
        elif (again := torch.nonzero(in_doubt_U).flatten()).numel():
            total = total.index_copy(0, again, self.of_units(again)._double()._gram_squared_norm())
        return (total.sqrt() + 2 * eps * own.sqrt()).square()  # what rounding may leave where both cancel

    def _table_inputs(self) -> Tensor:
        return self.outer.g_UPO if self.outer.input_first else self.outer.x_UPI

    def _table_outputs(self) -> Tensor:
        return self.outer.x_UPI if self.outer.input_first else self.outer.g_UPO

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        self.outer.add_weighted(weights, keep, out)
        self.gather.add_weighted(weights, keep, out)

    def write_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Overwrites`."""
        self.outer.write_weighted(weights, keep, out)
        self.gather.add_weighted(weights, keep, out)

    def dense(self) -> Tensor:
        """See `Form`."""
        table, width = self.outer.dense(), self.gather.g_UPD.shape[2]
        offset = torch.arange(table.shape[0], device=table.device)[:, None] * self.gather.num_rows
        rows = at_least_float32(self.gather.g_UPD).reshape(-1, width)
        table.view(-1, width).index_add_(0, (self.gather.ids_UP + offset).reshape(-1), rows)
        return table


def _joined_outers(forms: Sequence[Outer]) -> Outer:
    first = forms[0]
    if len(forms) == 1:
        return first
    xs = [f.x_UPI if f.input_first == first.input_first else f.g_UPO for f in forms]
    gs = [f.g_UPO if f.input_first == first.input_first else f.x_UPI for f in forms]
    return Outer(torch.cat(xs, 1), torch.cat(gs, 1), first.input_first)


def _joined_gathers(forms: Sequence[Gather]) -> Gather:
    if len(forms) == 1:
        return forms[0]
    ids, grads = torch.cat([f.ids_UP for f in forms], 1), torch.cat([f.g_UPD for f in forms], 1)
    return Gather(ids, grads, forms[0].num_rows)


def of_units(form: Form, units: slice) -> Form:
    """A form's gradients of some units."""
    if says_some_units(form):
        return form.of_units(units)
    if isinstance(form, Outer):
        return Outer(form.x_UPI[units], form.g_UPO[units], form.input_first)
    if isinstance(form, Gather):
        return Gather(form.ids_UP[units], form.g_UPD[units], form.num_rows)
    return Dense(form.dense()[units])


def _tied(gather: Gather, outer: Outer) -> _Tied:
    """Both as one form; in float64 where one of them is (a head in another precision than its table)."""
    tied = _Tied(gather, outer)
    dtypes = {at_least_float32(t).dtype for t in (gather.g_UPD, outer.x_UPI, outer.g_UPO)}
    return tied if len(dtypes) == 1 else tied._double()


def combine(forms: Sequence[Form]) -> Form:
    """The sum of one parameter's forms, as one form with an exact norm.

    Args:
        forms: at least one; all of the same parameter and units.

    Returns:
        A form; `Outer`s are joined along positions, `Gather`s likewise, one of each keeps its
        factors; every other mixture is materialised.
    """
    if len(forms) == 1:
        return forms[0]
    for i, form in enumerate(forms):
        if joins(form):
            return form.joined([*forms[:i], *forms[i + 1 :]])
    outers = [f for f in forms if isinstance(f, Outer)]
    gathers = [f for f in forms if isinstance(f, Gather)]
    if len(outers) + len(gathers) == len(forms):
        if not gathers:
            return _joined_outers(outers)
        if not outers:
            return _joined_gathers(gathers)
        return _tied(_joined_gathers(gathers), _joined_outers(outers))
    total = forms[0].dense()
    for form in forms[1:]:
        total = total + form.dense()
    return Dense(total)
