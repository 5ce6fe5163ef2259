"""The small algebra of per-example gradients: `Outer`, `Gather`, `Dense`; their sums are in `_combine`.

Wherever a parameter meets the batch, unit u's gradient has one of three forms. Forms of one
parameter add (it was used twice, or is tied), and the squared norm of the sum is exact, because
inner products between forms are: ||E + H||^2 = ||E||^2 + ||H||^2 + 2 <E, H>.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): U unit, P position of one unit, I input, O output.

Sources:
    [1] Goodfellow 2015, arXiv:1510.01799 (one position)
    [2] Li et al. 2021, arXiv:2110.05679 (many positions: the "ghost" norm)
    [3] Bu et al. 2022, arXiv:2210.00038 (weighted sums from what the first backward left)
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from reticent.rules._rounding import (
    Doubts,
    above_rounding,
    at_least_float32,
    guarded,
    masked,
    of_factor,
    sum_of_squares,
    wider,
)

_CHUNK: Final = 1 << 22
# A Gram matrix is formed in strips of rows, up to the diagonal: at least so many rows each (measured on a
# CPU; elsewhere a call costs more), and at most so many strips. Matrix products like multiples of a vector:
# 197 positions in strips of 48 take a tenth less time than in strips of 50, and 100 in 32 than in 25 a sixth.
_STRIP: Final = {"cpu": 32}
_STRIP_ELSEWHERE: Final = 96
_MAX_STRIPS: Final = 4
_TILE: Final = 16
# Larger tensors are mapped anew by a CPU's allocator each time: their pages cost as much as so many passes
# over them (measured, Linux).
_MAPPED_FROM: Final = 32 << 20
_MAPPED_PASSES: Final = 7.0


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


def passes_of_keeping(t: Tensor, size: int) -> float:
    """Passes over memory that writing `size` bytes on a tensor's device takes, and reading them twice."""
    # The second and third find most of what is smaller in caches.
    return 2.0 + (_MAPPED_PASSES if t.device.type == "cpu" and size > _MAPPED_FROM else 0.0)


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
class Overwrites(Protocol):
    """A form that can write its sum over what is there: one pass over memory less than adding to zeros."""

    def write_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """out = sum_u weights[u] * gradient_u, as `Form.add_weighted`; what `out` held is not read."""
        ...


class SomeUnits(Protocol):
    """A form that says itself what its part for some units is."""

    def of_units(self, units: slice) -> Form:
        """The same gradients, of some units."""
        ...


class Joins(Protocol):
    """A form that says itself what its sum with others is."""

    def joined(self, others: Sequence[Form]) -> Form:
        """Its sum with other gradients of the same parameter."""
        ...


# Asked of every form in every pass: `isinstance` of a runtime protocol would take twenty times as long.


def overwrites(form: object) -> TypeGuard[Overwrites]:
    """Whether a form is an `Overwrites`."""
    return hasattr(form, "write_weighted")


def says_some_units(form: object) -> TypeGuard[SomeUnits]:
    """Whether a form is a `SomeUnits`."""
    return hasattr(form, "of_units")


def joins(form: object) -> TypeGuard[Joins]:
    """Whether a form is a `Joins`."""
    return hasattr(form, "joined")


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
        return sum_of_squares(self.grad, doubts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        dtype = wider(out, self.grad)
        grad, w = masked(self.grad, keep).to(dtype), weights.to(dtype)
        if dtype == out.dtype and out.is_contiguous():
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
        formed = sum((stop - start) * stop for start, stop in self._strips()) / max(positions**2, 1)
        return (
            Method(
                name="gram",
                flops=2.0 * units * positions**2 * (num_in + num_out) * formed,
                moved=4.0 * gram + 2.0 * own,
                held=own,
                peak=int(4 * formed * gram),  # two matrices, and a copy in float64
            ),
            Method(
                name="keep",
                flops=0.0,
                moved=passes_of_keeping(self.x_UPI, full) * full,
                held=full,
                peak=full,
            ),
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

    def settle_gram(self, input_gram: Sequence[Tensor]) -> tuple[Tensor, Form]:
        """`settle("gram")`, with what `input_gram` gives, of this form or of another with the same input."""
        return self._gram_squared_norm(input_gram=input_gram), self

    def input_gram(self) -> tuple[Tensor, ...]:
        """Inner products of a unit's inputs, a strip of rows at a time, (U, rows, positions so far).

        Not to be written to: matrices that multiply one input, as queries' and keys' do, share it.
        """
        return tuple(self._gram_strips(at_least_float32(self.x_UPI)))

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
        return above_rounding(square_U, self.x_UPI.shape[1], self.spread(), self.x_UPI.dtype)

    def _gram_squared_norm(
        self, doubts: Doubts | None = None, input_gram: Sequence[Tensor] | None = None
    ) -> Tensor:
        """sum_{p,q} (x_p.x_q)(g_p.g_q) [2]."""
        _, positions, num_in = self.x_UPI.shape
        num_out = self.g_UPO.shape[-1]
        if positions == 0:
            return self.x_UPI.new_zeros(len(self.x_UPI), dtype=torch.float64)
        if positions == 1:  # [1]
            x_U, g_U = (of_factor(sum_of_squares(t, doubts), t) for t in (self.x_UPI, self.g_UPO))
            return x_U * g_U

        lengths: list[Tensor] = []  # squared, of each position's outer product: for free on the diagonals

        def gram(cast: Callable[[Tensor], Tensor], input_gram: Sequence[Tensor] | None = None) -> Tensor:
            x, g = cast(self.x_UPI), cast(self.g_UPO)
            if x.dtype != g.dtype:  # as precise as the less precise: its terms are looked at again
                x, g = x.float(), g.float()
            of_x = self._gram_strips(x) if input_gram is None else input_gram
            strips, diagonals = [], []
            for xx, gg in zip(of_x, self._gram_strips(g), strict=True):
                start = gg.shape[2] - gg.shape[1]  # what lies left of a strip's block stands for two
                diagonals.append([t.diagonal(start, dim1=1, dim2=2).clone() for t in (xx, gg)])
                gg.mul_(xx)[:, :, :start].mul_(2.0)
                strips.append(gg.flatten(1))
            if not lengths:
                lengths.extend(torch.cat(parts, 1) for parts in zip(*diagonals, strict=True))
            return torch.cat(strips, 1)[:, None] if len(strips) > 1 else strips[0][:, None]

        terms = gram(at_least_float32, input_gram)
        x_UP, g_UP = (t.double().clamp_min(0.0) for t in lengths)
        vanishing_U = None
        if terms.dtype != torch.float64:
            tiny = torch.finfo(torch.float32).tiny
            x_U, g_U = ((t + n * tiny).sum(1) for t, n in ((x_UP, num_in), (g_UP, num_out)))
            vanishing_U = positions * tiny * (num_in * g_U + num_out * x_U)
            if doubts is not None:  # where a factor is exactly zero every term is, and nothing is in doubt
                zero_U = (sum_of_squares(self.x_UPI, doubts) == 0) | (sum_of_squares(self.g_UPO, doubts) == 0)
                vanishing_U = torch.where(zero_U, 0.0, vanishing_U)
        square_U = guarded(gram, vanishing_U, terms, doubts)
        return above_rounding(square_U, positions, (x_UP * g_UP).sum(1).sqrt(), terms.dtype)

    def _strips(self) -> list[tuple[int, int]]:
        """Which rows of a Gram matrix are formed together."""
        positions = self.x_UPI.shape[1]
        least = _STRIP.get(self.x_UPI.device.type, _STRIP_ELSEWHERE)
        num = max(1, min(_MAX_STRIPS, positions // least))
        size = round(positions / num / _TILE) * _TILE
        cuts = [*(i * size for i in range(num)), positions]
        return list(itertools.pairwise(cuts))

    def _gram_strips(self, t_UPF: Tensor) -> Iterator[Tensor]:
        """Inner products of positions, up to the diagonal's block: (U, rows, positions so far) each."""
        for start, stop in self._strips():
            yield torch.bmm(t_UPF[:, start:stop], t_UPF[:, :stop].mT)

    def spread(self) -> Tensor:
        """Root of the sum of squared lengths of a unit's outer products, before they are added up."""
        x_UP, g_UP = self._lengths()
        return torch.linalg.vector_norm(x_UP * g_UP, dim=1)

    def _lengths(self) -> tuple[Tensor, Tensor]:
        """Of each position's input and gradient, (U, P) float64."""
        x_UP, g_UP = (
            of_factor(torch.linalg.vector_norm(t, dim=2, dtype=torch.float64).square(), t).sqrt()
            for t in (self.x_UPI, self.g_UPO)
        )
        return x_UP, g_UP

    def _materialised_squared_norm(self, chunk: int, doubts: Doubts | None) -> Tensor:
        x, g = at_least_float32(self.x_UPI), at_least_float32(self.g_UPO)
        parts = [
            sum_of_squares(torch.bmm(gc.mT, xc), doubts)
            for xc, gc in zip(x.split(chunk), g.split(chunk), strict=True)
        ]
        return torch.cat(parts)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        self._put_weighted(weights, keep, out, beta=1.0)

    def write_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Overwrites`."""
        self._put_weighted(weights, keep, out, beta=0.0)

    def _put_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor, *, beta: float) -> None:
        """out = beta * out + sum; with beta 0, what `out` held is not read."""
        dtype = wider(out, self.x_UPI, self.g_UPO)
        if dtype != out.dtype:
            wide = torch.zeros_like(out, dtype=dtype) if beta == 0.0 else out.to(dtype)
            self._put_weighted(weights, keep, wide, beta=beta)
            out.copy_(wide)
            return
        x, g = masked(self.x_UPI, keep).to(dtype), masked(self.g_UPO, keep).to(dtype)
        w = weights.to(out.dtype)[:, None, None]
        if x.shape[-1] <= g.shape[-1]:
            x = x * w
        else:
            g = g * w
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        if self.input_first:
            out.addmm_(x.mT, g, beta=beta)
        else:
            out.addmm_(g.mT, x, beta=beta)

    def dense(self) -> Tensor:
        """See `Form`."""
        x, g = at_least_float32(self.x_UPI), at_least_float32(self.g_UPO)
        return torch.bmm(x.mT, g) if self.input_first else torch.bmm(g.mT, x)

    def transposed(self) -> "Outer":
        """The same gradients, of the transposed parameter."""
        return Outer(self.x_UPI, self.g_UPO, not self.input_first)
