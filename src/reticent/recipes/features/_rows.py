"""Rows of features as a last layer sees them: read in blocks, and of bounded norm.

Room: recipes. May import torch, numpy and `reticent.errors`.

Shape letters (this file): N example, B row of a block, D feature, E feature after preparation (D, or
D + 1 with an intercept).
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ._store import Split

BLOCK_BYTES: Final = 1 << 22  # of one block in float32
_EPS: Final = torch.finfo(torch.float32).eps
_TINY: Final = torch.finfo(torch.float32).tiny
_SAFE: Final = (1e-30, 1e30)  # factors that float32 holds with all its bits


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some prepared rows.

    Args:
        x: features (B, E), float32; a row that was not finite is all zeros.
        norms: (B,) float64, each at least its row's L2 norm.
        y: labels (B,).
        counts: (B,) float64: 1, or 0 for a row that was not finite and so takes no part in anything.
    """

    x: Tensor
    norms: Tensor
    y: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preparation:
    """What is done to each row before anything is computed from it; it reads that row alone.

    In this order: bound the norm; subtract `mean` and bound it again; multiply with `whitening` and
    bound it again; append `intercept`.

    Args:
        scaling: "normalise" gives every row norm `max_norm`; "clip" scales down the longer ones.
        max_norm: bound on a row's L2 norm, before the intercept.
        mean: (D,), subtracted; public or released with noise. None for nothing.
        whitening: (D, D), likewise.
        intercept: constant appended as one more feature; 0 for none.

    Guarantee:
        Every prepared row has norm at most `bound`, whatever the row held: rows with NaN or infinity
        count as absent, norms are never rounded down, values up to float32's largest are allowed.
    """

    scaling: Literal["normalise", "clip"] = "normalise"
    max_norm: float = 1.0
    mean: Tensor | None = None
    whitening: Tensor | None = None
    intercept: float = 0.0

    @property
    def bound(self) -> float:
        """Bound on a prepared row's L2 norm."""
        return math.hypot(self.max_norm, self.intercept)

    def num_features(self, dim: int) -> int:
        """E."""
        return dim + (self.intercept != 0.0)

    def apply(self, x_BD: Float32[Tensor, "B D"], y_B: Int64[Tensor, " B"]) -> Block:
        """Prepare rows; `x_BD` may be changed in place."""
        x, norms, counts = self._bounded(x_BD)
        if self.mean is not None:
            x, norms, seen = self._bounded(x - self.mean.to(x.dtype))
            counts = counts * seen
        if self.whitening is not None:
            x, norms, seen = self._bounded(x @ self.whitening.to(x.dtype))
            counts = counts * seen
        if self.intercept:
            x = torch.cat([x, torch.full((len(x), 1), self.intercept, dtype=x.dtype)], dim=1)
            norms = torch.hypot(norms, torch.full_like(norms, self.intercept))
        absent = counts == 0.0
        if absent.any():  # an absent row less the mean, or with an intercept, is not zero
            x, norms = x.masked_fill(absent[:, None], 0.0), norms.masked_fill(absent, 0.0)
        return Block(x, norms, y_B, counts)

    def _bounded(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of norm at most `max_norm`, at least their norms, and 1 for each row that counts.

        The slack of `upper_norms` covers the rounding of the product too.
        """
        norms = upper_norms(x_BD)
        counts = torch.isfinite(norms)
        if not counts.all():  # never by multiplying: 0 * inf is NaN
            x_BD = torch.where(counts[:, None], x_BD, torch.zeros((), dtype=x_BD.dtype))
            norms = torch.where(counts, norms, torch.zeros((), dtype=norms.dtype))
        factor = self.max_norm / norms.clamp_min(math.sqrt(_TINY))
        if self.scaling == "clip":
            factor = factor.clamp_max(1.0)
        norms = norms * factor
        outside = (factor < _SAFE[0]) | (factor > _SAFE[1])
        if outside.any():  # float32 would round such a factor to few bits, to zero or to infinity
            x_BD[outside] = (x_BD[outside].double() * factor[outside, None]).to(x_BD.dtype)
            factor = factor.masked_fill(outside, 1.0)
        return x_BD.mul_(factor.to(x_BD.dtype)[:, None]), norms, counts.double()


def upper_norms(x_BD: Float32[Tensor, "B D"]) -> Tensor:
    """Each row's L2 norm in float64, never rounded down; infinite or NaN only if the row is not finite.

    Computed in float32 and raised by that sum's worst rounding error; rows whose squares overflow or
    could underflow are computed in float64.
    """
    norms = torch.linalg.vector_norm(x_BD, dim=1).double()
    outside = ~((norms > 1e-15) & (norms < 1e18))
    if outside.any():
        norms[outside] = torch.linalg.vector_norm(x_BD[outside].double(), dim=1)
    return norms.mul_(1.0 + (x_BD.shape[1] + 8) * _EPS)


def raw_blocks(
    split: Split, *, block_rows: int, indices: np.ndarray | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, D) float32 and labels (B,), `block_rows` at a time, in order.

    The pages of a mapped file are let go after each block, so that reading a million rows holds no
    more memory than reading ten thousand. All blocks share one piece of memory, as fresh pages cost more
    than the copy: a block's features are overwritten by the next one.

    Args:
        split: rows.
        block_rows: rows at a time, at least 1.
        indices: sorted rows to take; all by default.
    """
    num_rows = len(split) if indices is None else len(indices)
    shape = (min(block_rows, num_rows), split.x.shape[1])
    x_BD, stored_BD = torch.empty(shape), np.empty(shape, dtype=split.x.dtype)
    for start in range(0, num_rows, block_rows):
        stop = min(start + block_rows, num_rows)
        rows = slice(start, stop) if indices is None else indices[start:stop]
        stored = stored_BD[: stop - start]
        np.copyto(stored, split.x[rows])  # a copy: a mapped page is not ours to change
        _let_go(split.x)
        yield x_BD[: stop - start].copy_(torch.from_numpy(stored)), torch.from_numpy(np.array(split.y[rows]))


def block_rows(dim: int) -> int:
    """Rows of a block of some 4 MiB."""
    return max(1, BLOCK_BYTES // (4 * max(dim, 1)))


def _let_go(mapped: np.ndarray) -> None:
    held = getattr(mapped, "_mmap", None)
    if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
