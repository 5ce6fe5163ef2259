"""The small algebra of per-example gradients: `Outer`, `Gather`, `Dense`, and their sums.

Wherever a parameter meets the batch, unit u's gradient has one of three forms. Forms of one
parameter add (it was used twice, or is tied), and the squared norm of the sum is exact, because
inner products between forms are: ||E + H||^2 = ||E||^2 + ||H||^2 + 2 <E, H>.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): U unit, P and Q positions of one unit, I input, O output, V rows of a
table, D its width.

Sources:
    [1] Goodfellow 2015, arXiv:1510.01799 (one position)
    [2] Li et al. 2021, arXiv:2110.05679 (many positions: the "ghost" norm)
    [3] Bu et al. 2022, arXiv:2210.00038 (weighted sums from what the first backward left)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

# Where a Gram sum cancels so much that its float32 rounding could exceed this share of the squared
# norm, the unit is computed again in float64. Below it, the bound on the rounding is added.
_MAX_ROUNDING: Final = 1e-5
# Where nothing may be computed again (see `Doubts`), a bound this much too large is still fine.
_MAX_DOUBT: Final = 1e-4
_CHUNK: Final = 1 << 22
# Positions from which half a Gram matrix is worth the smaller products (measured on CPU).
_HALVED: Final = 64

# In a traced graph no step may depend on values, so no unit can be computed again. Whoever traces
# passes a list: norms are then rounded up by the bound, and masks (U,) of units for which that is
# coarse are added to it. Norms are never below the truth, in doubt or not; whoever gets a doubt
# computes again without a list, so that a unit is not clipped by more than it need be.
Doubts = list[Tensor]


def at_least_float32(t: Tensor) -> Tensor:
    """Half precision is raised to float32; float32 and float64 stay."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to get a form's norms and then its sum, and what it costs; all give the same numbers.

    Args:
        name: "gram" (never forms a gradient), "keep" (forms each unit's gradient once, and keeps it), "drop"
            (forms it for the norm, and the sum from what made it), ...
        flops: operations beyond those of the plain summed gradient.
        moved: bytes read and written beyond those of the plain summed gradient.
        held: bytes kept between norm and sum.
        peak: bytes needed for a moment.
    """

    name: str
    flops: float
    moved: float
    held: int
    peak: int


def num_bytes(*tensors: Tensor) -> int:
    """Bytes that tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Form(Protocol):
    """Gradients of one parameter for U units, in a compressed form."""

    def methods(self) -> tuple[Method, ...]:
        """The candidates for `settle`, from shapes alone; at least one."""
        ...

    def settle(self, method: str) -> tuple[Tensor, "Form"]:
        """Squared norms as of `squared_norm`, by one of the methods, and the form to keep for the sum."""
        ...

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """Squared L2 norm of each unit's gradient, shape (U,), float64, not below the truth.

        With `doubts` (see there), no step depends on values.
        """
        ...

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """out += sum_u weights[u] * gradient_u, leaving out units where `keep` is False.

        A unit left out counts as zero even if its gradient holds NaN or infinity.
        """
        ...

    def dense(self) -> Tensor:
        """Every unit's gradient, shape (U, *parameter)."""
        ...


@runtime_checkable
class SomeUnits(Protocol):
    """A form that says itself what its part for some units is."""

    def of_units(self, units: slice) -> Form:
        """The same gradients, of some units."""
        ...


@runtime_checkable
class Joins(Protocol):
    """A form that says itself what its sum with others is."""

    def joined(self, others: Sequence[Form]) -> Form:
        """Its sum with other gradients of the same parameter."""
        ...


def _sum_of_squares(t: Tensor, doubts: Doubts | None = None) -> Tensor:
    """(U, ..) -> (U,) in float64; 0 for no entries. With `doubts`, no branch, and never a doubt."""
    if t.numel() == 0:
        return t.new_zeros(t.shape[0], dtype=torch.float64)
    flat = at_least_float32(t).reshape(t.shape[0], -1)
    if doubts is not None:  # a compiler fuses the cast; its float32 sums would be in no particular order
        return flat.double().square().sum(1)
    norm_U = torch.linalg.vector_norm(flat, dim=1).double()
    if flat.dtype != torch.float64:  # squares of tiny entries vanish; what they are multiplied by may be huge
        tiny = torch.nonzero(norm_U < 1e-15 * math.sqrt(flat.shape[1])).flatten()
        if tiny.numel():
            norm_U = norm_U.index_copy(0, tiny, torch.linalg.vector_norm(flat[tiny].double(), dim=1))
    return norm_U.square()


def _masked(t: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return t
    return torch.where(keep.view(-1, *([1] * (t.dim() - 1))), t, 0)


def _guarded(
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
    # NaN compares false: a unit that is not finite stays so, and is left out by the engine.
    if doubts is not None:
        doubts.append(slack > _MAX_DOUBT * total)
        return total.clamp_min(0.0) + slack
    again = torch.nonzero(slack > _MAX_ROUNDING * total).flatten()
    total = total.clamp_min(0.0) + slack
    if again.numel():
        exact = product(lambda t: t[again].double())
        total = total.index_copy(0, again, exact.sum((1, 2)).clamp_min(0.0) + 1e-13 * exact.abs().sum((1, 2)))
    return total


def _above_rounding(square_U: Tensor, positions: int, spread_U: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared norms, with what rounding may add to the norm when a sum over positions is formed.

    Where the positions nearly cancel, that can exceed the norm's own rounding by far. `spread_U`: the
    root of the sum of squared lengths of what is added up.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return (square_U.sqrt() + eps * math.sqrt(positions) * spread_U).square()


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """`grad[u]` is unit u's gradient itself, shape (U, *parameter)."""

    grad: Tensor

    def methods(self) -> tuple[Method, ...]:
        """See `Form`."""
        size = num_bytes(self.grad)
        return (Method(name="keep", flops=0.0, moved=2.0 * size, held=size, peak=0),)

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        return self.squared_norm(), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """See `Form`."""
        return _sum_of_squares(self.grad, doubts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        grad, w = _masked(self.grad, keep).to(out.dtype), weights.to(out.dtype)
        if out.is_contiguous():
            out.view(-1).addmv_(grad.reshape(len(w), -1).mT, w)  # one pass over the gradients
        else:
            out += torch.einsum("u,u...->...", w, grad)

    def dense(self) -> Tensor:
        """See `Form`."""
        return self.grad


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """Unit u's gradient is sum_p g[u, p] x[u, p]^T, shape (O, I), or its transpose (I, O).

    Args:
        x_UPI: layer inputs.
        g_UPO: gradients of the layer's outputs.
        input_first: the parameter is stored as (I, O), as in `x @ W` and Hugging Face's Conv1D.
    """

    x_UPI: Tensor
    g_UPO: Tensor
    input_first: bool = False

    def methods(self) -> tuple[Method, ...]:
        """See `Form`: a Gram matrix over positions, or the gradients themselves, kept or not."""
        units, positions, num_in = self.x_UPI.shape
        num_out = self.g_UPO.shape[-1]
        own, size = num_bytes(self.x_UPI, self.g_UPO), 8 if self.g_UPO.dtype == torch.float64 else 4
        if positions == 1:
            return (Method(name="gram", flops=0.0, moved=float(own), held=own, peak=0),)
        gram, full = size * units * positions**2, size * units * num_in * num_out
        chunk = size * max(1, _CHUNK // max(num_in * num_out, 1)) * num_in * num_out
        return (
            Method(
                name="gram",
                flops=2.0 * units * positions**2 * (num_in + num_out),
                moved=4.0 * gram + 2.0 * own,
                held=own,
                peak=2 * gram,
            ),
            Method(name="keep", flops=0.0, moved=3.0 * full, held=full, peak=full),
            Method(
                name="drop",
                flops=2.0 * units * positions * num_in * num_out,
                moved=2.0 * full + 2.0 * own,
                held=own,
                peak=min(chunk, full),
            ),
        )

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        if method == "keep":
            made = Dense(self.dense())
            return made.squared_norm(), made
        return self._gram_squared_norm() if method == "gram" else self._dropped_squared_norm(), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """By a Gram matrix, or materialised where that takes fewer operations."""
        by = self._dropped_squared_norm if self.is_cheaper_formed() else self._gram_squared_norm
        return by(doubts)

    def is_cheaper_formed(self) -> bool:
        """Whether forming each unit's gradient takes fewer operations than a Gram matrix."""
        _, positions, num_in = self.x_UPI.shape
        num_out = self.g_UPO.shape[-1]
        return positions > 1 and positions * (num_in + num_out) > num_in * num_out

    def _dropped_squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        size = self.x_UPI.shape[2] * self.g_UPO.shape[2]
        square_U = self._materialised_squared_norm(max(1, _CHUNK // max(size, 1)), doubts)
        if self.x_UPI.numel() == 0:
            return square_U
        return _above_rounding(square_U, self.x_UPI.shape[1], self._spread(), self.x_UPI.dtype)

    def _gram_squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """sum_{p,q} (x_p.x_q)(g_p.g_q) [2]."""
        _, positions, num_in = self.x_UPI.shape
        num_out = self.g_UPO.shape[-1]
        if positions == 1:  # [1]
            return _sum_of_squares(self.x_UPI, doubts) * _sum_of_squares(self.g_UPO, doubts)

        lengths: list[Tensor] = []  # squared, of each position's outer product: for free on the diagonals

        def gram(cast: Callable[[Tensor], Tensor]) -> Tensor:
            x, g = cast(self.x_UPI), cast(self.g_UPO)
            cut = (positions + 1) // 2 if positions >= _HALVED else positions
            blocks, diagonals = [], []
            for rows in (slice(None, cut), slice(cut, None)) if cut < positions else (slice(None),):
                xx, gg = torch.bmm(x[:, rows], x[:, rows].mT), torch.bmm(g[:, rows], g[:, rows].mT)
                diagonals.append([t.diagonal(dim1=1, dim2=2).clone() for t in (xx, gg)])
                blocks.append(xx.mul_(gg).flatten(1))
            if cut < positions:  # a Gram matrix is symmetric: one block of it stands for two
                xx = torch.bmm(x[:, :cut], x[:, cut:].mT)
                blocks.append(xx.mul_(torch.bmm(g[:, :cut], g[:, cut:].mT)).mul_(2.0).flatten(1))
            if not lengths:
                lengths.extend(torch.cat(parts, 1) for parts in zip(*diagonals, strict=True))
            return torch.cat(blocks, 1)[:, None] if len(blocks) > 1 else blocks[0][:, None]

        terms = gram(at_least_float32)
        x_UP, g_UP = (t.double().clamp_min(0.0) for t in lengths)
        vanishing_U = None
        if terms.dtype != torch.float64:
            tiny = torch.finfo(torch.float32).tiny
            x_U, g_U = ((t + n * tiny).sum(1) for t, n in ((x_UP, num_in), (g_UP, num_out)))
            vanishing_U = positions * tiny * (num_in * g_U + num_out * x_U)
            if doubts is not None:  # where a factor is exactly zero every term is, and nothing is in doubt
                zero_U = (_sum_of_squares(self.x_UPI, doubts) == 0) | (
                    _sum_of_squares(self.g_UPO, doubts) == 0
                )
                vanishing_U = torch.where(zero_U, 0.0, vanishing_U)
        square_U = _guarded(gram, vanishing_U, terms, doubts)
        return _above_rounding(square_U, positions, (x_UP * g_UP).sum(1).sqrt(), terms.dtype)

    def _spread(self) -> Tensor:
        """Root of the sum of squared lengths of a unit's outer products, before they are added up."""
        x, g = at_least_float32(self.x_UPI), at_least_float32(self.g_UPO)
        length_UP = torch.linalg.vector_norm(x, dim=2) * torch.linalg.vector_norm(g, dim=2)
        return torch.linalg.vector_norm(length_UP, dim=1).double()

    def _materialised_squared_norm(self, chunk: int, doubts: Doubts | None) -> Tensor:
        x, g = at_least_float32(self.x_UPI), at_least_float32(self.g_UPO)
        parts = [
            _sum_of_squares(torch.bmm(gc.mT, xc), doubts)
            for xc, gc in zip(x.split(chunk), g.split(chunk), strict=True)
        ]
        return torch.cat(parts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        x, g = _masked(self.x_UPI, keep).to(out.dtype), _masked(self.g_UPO, keep).to(out.dtype)
        w = weights.to(out.dtype)[:, None, None]
        if x.shape[-1] <= g.shape[-1]:
            x = x * w
        else:
            g = g * w
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        if self.input_first:
            out.addmm_(x.mT, g)
        else:
            out.addmm_(g.mT, x)

    def dense(self) -> Tensor:
        """See `Form`."""
        x, g = at_least_float32(self.x_UPI), at_least_float32(self.g_UPO)
        return torch.bmm(x.mT, g) if self.input_first else torch.bmm(g.mT, x)

    def transposed(self) -> "Outer":
        """The same gradients, of the transposed parameter."""
        return Outer(self.x_UPI, self.g_UPO, not self.input_first)


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
            return _sum_of_squares(g)
        owner_UP = torch.arange(units, device=g.device)[:, None].expand(-1, positions)
        found, place = torch.unique(owner_UP * self.num_rows + self.ids_UP, return_inverse=True)
        rows = g.new_zeros(len(found), width).index_add_(0, place.reshape(-1), g.reshape(-1, width))
        square = _sum_of_squares(rows)
        square_U = square.new_zeros(units).index_add_(0, found // self.num_rows, square)
        return _above_rounding(square_U, positions, self._spread(), g.dtype)

    def _spread(self) -> Tensor:
        """Root of the sum of squared lengths of a unit's rows, before they are added up."""
        return torch.linalg.vector_norm(at_least_float32(self.g_UPD).flatten(1), dim=1).double()

    def _gram_squared_norm(self, doubts: Doubts) -> Tensor:
        """sum_{p,q} 1[ids_p = ids_q] (g_p.g_q): never builds a table for each unit [2]."""

        def gram(cast: Callable[[Tensor], Tensor]) -> Tensor:
            ids, g = self.ids_UP, cast(self.g_UPD)
            return torch.where(ids[:, :, None] == ids[:, None, :], torch.bmm(g, g.mT), 0)

        if self.ids_UP.shape[1] == 1:
            return _sum_of_squares(self.g_UPD, doubts)
        if self.g_UPD.dtype == torch.float64:
            return _guarded(gram)
        _, positions, width = self.g_UPD.shape
        lost = positions**2 * width * torch.finfo(torch.float32).tiny  # products too small for float32
        vanishing_U = torch.where(_sum_of_squares(self.g_UPD, doubts) == 0, 0.0, lost)
        return _guarded(gram, vanishing_U, doubts=doubts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        g = _masked(self.g_UPD, keep).to(out.dtype) * weights.to(out.dtype)[:, None, None]
        out.index_add_(0, self.ids_UP.reshape(-1), g.reshape(-1, g.shape[-1]))

    def dense(self) -> Tensor:
        """See `Form`."""
        g = at_least_float32(self.g_UPD)
        num_units, _, width = g.shape
        table = g.new_zeros(num_units * self.num_rows, width)
        offset = torch.arange(num_units, device=g.device)[:, None] * self.num_rows
        table.index_add_(0, (self.ids_UP + offset).reshape(-1), g.reshape(-1, width))
        return table.view(num_units, self.num_rows, width)


@dataclass(frozen=True, slots=True, eq=False)
class _Tied:
    """A table looked up and multiplied with: `Gather` plus `Outer` of one (V, D) parameter."""

    gather: Gather
    outer: Outer

    def methods(self) -> tuple[Method, ...]:
        """See `Form`: the factors are kept; a table for each unit is formed a few units at a time."""
        (rows,) = self.gather.methods()
        terms = self.gather.ids_UP.shape[1] * self.outer.x_UPI.numel() // max(self.outer.x_UPI.shape[2], 1)
        size = 8 if self.gather.g_UPD.dtype == torch.float64 else 4
        found = []
        for own in self.outer.methods():
            if own.name == "keep":
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
        square_U = torch.cat([_sum_of_squares(part.dense()) for part in parts])  # one of them at a time
        spread_U = (self.gather._spread().square() + self.outer._spread().square()).sqrt()
        positions = self.gather.ids_UP.shape[1] + self.outer.x_UPI.shape[1]
        return _above_rounding(square_U, positions, spread_U, self.gather.g_UPD.dtype)

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
        in_doubt_U = slack > (_MAX_ROUNDING if doubts is None else _MAX_DOUBT) * total
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
        self.gather.add_weighted(weights, keep, out)
        self.outer.add_weighted(weights, keep, out)

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
    if isinstance(form, SomeUnits):
        return form.of_units(units)
    if isinstance(form, Outer):
        return Outer(form.x_UPI[units], form.g_UPO[units], form.input_first)
    if isinstance(form, Gather):
        return Gather(form.ids_UP[units], form.g_UPD[units], form.num_rows)
    return Dense(form.dense()[units])


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
        if isinstance(form, Joins):
            return form.joined([*forms[:i], *forms[i + 1 :]])
    outers = [f for f in forms if isinstance(f, Outer)]
    gathers = [f for f in forms if isinstance(f, Gather)]
    if len(outers) + len(gathers) == len(forms):
        if not gathers:
            return _joined_outers(outers)
        if not outers:
            return _joined_gathers(gathers)
        return _Tied(_joined_gathers(gathers), _joined_outers(outers))
    total = forms[0].dense()
    for form in forms[1:]:
        total = total + form.dense()
    return Dense(total)
