"""Sums over examples in closed form, each with the bound on what one example adds to it.

Room: recipes. May import torch, `reticent.bounded` and `reticent.errors`.

A last layer needs no per-example gradient: that of `W x` is the outer product r x^T of the loss's
gradient r in the outputs and the features x, its norm is |r| |x|, and the clipped sum over a block is
one matrix product [1].

Shape letters (this file): B row of a block, D feature as prepared, K class.

Sources:
    [1] Goodfellow 2015, arXiv:1510.01799.
    [2] Mehta et al. 2022, arXiv:2211.13403 (the statistics of DP-LS, DP-Newton and DP-FC).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reticent.bounded import BoundedSum

from ._rows import Block

LossName = Literal["softmax", "sigmoid"]
_SOFTMAX_CURVATURE: Final = math.sqrt(4.0 / 27.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistic:
    """A sum over examples.

    Args:
        shape: its shape.
        bound: L2 norm that one example's term never exceeds.
        add: adds a block's terms to a float64 total of that shape, in place; the block's `x` is float64 too.
        share: weight of this statistic in a release of several (see `sum_of`).
    """

    shape: tuple[int, ...]
    bound: float
    add: Callable[[Tensor, Block], None]
    share: float = 1.0


def sum_of(blocks: Iterable[Block], statistics: Mapping[str, Statistic]) -> BoundedSum:
    """Several statistics in one pass, scaled so that they are one vector with bound 1.

    A statistic of share s is scaled to bound sqrt(s / sum of shares): with the noise multiplier m of the
    whole, its own is m / sqrt(s / sum of shares), and 1/m^2 is the sum over the parts.

    Everything is computed in float64: one row less changes which rows share a block, and sums of a block
    in float32 would then be rounded otherwise, for each block, beyond what the row itself adds.

    Returns:
        The scaled totals, float64. `norms` is empty: terms are not kept.

    Guarantee:
        Adding or removing one example moves `total` by at most 1 over all parts together, to rounding:
        that of its own row in float32, and of the sum in float64.
    """
    totals = {name: torch.zeros(s.shape, dtype=torch.float64) for name, s in statistics.items()}
    for narrow in blocks:
        block = replace(narrow, x=narrow.x.double())
        for name, statistic in statistics.items():
            statistic.add(totals[name], block)
    for name, factor in _factors(statistics).items():
        totals[name].mul_(factor)
    return BoundedSum(total=totals, bound=1.0, norms=torch.empty(0))


def rows_of_a_block(statistics: Mapping[str, Statistic], at_least: int) -> int:
    """Rows to read at a time: `at_least` so many, and D for sums of x x^T.

    Each block's product is added to a float64 total; for D x D entries that is cheap beside the product
    only if the block has about D rows.
    """
    squares = (s.shape[-1] for s in statistics.values() if len(s.shape) > 1 and s.shape[-2] == s.shape[-1])
    return max(at_least, *squares, 1)


def unscaled(noised: Mapping[str, Tensor], statistics: Mapping[str, Statistic]) -> dict[str, Tensor]:
    """Undo the scaling of `sum_of`, after the noise."""
    return {name: noised[name] / factor for name, factor in _factors(statistics).items()}


def part_noise_std(statistics: Mapping[str, Statistic], noise_multiplier: float) -> dict[str, float]:
    """Standard deviation of the noise on each coordinate of each statistic, once unscaled."""
    return {name: noise_multiplier / factor for name, factor in _factors(statistics).items()}


def _factors(statistics: Mapping[str, Statistic]) -> dict[str, float]:
    whole = sum(s.share for s in statistics.values())
    return {name: math.sqrt(s.share / whole) / s.bound for name, s in statistics.items()}


def feature_sum(dim: int, *, bound: float) -> Statistic:
    """Sum of x, shape (D,)."""

    def add(total: Tensor, block: Block) -> None:
        total.add_(block.x.sum(0, dtype=torch.float64))

    return Statistic(shape=(dim,), bound=bound, add=add)


def gram(dim: int, *, bound: float, share: float = 1.0) -> Statistic:
    """Sum of x x^T, shape (D, D); `bound` is that of |x|."""

    def add(total: Tensor, block: Block) -> None:
        total.add_(block.x.mT @ block.x)

    return Statistic(shape=(dim, dim), bound=bound**2, add=add, share=share)


def class_sums(num_classes: int, dim: int, *, bound: float, share: float = 1.0) -> Statistic:
    """For each class, the sum of its x, shape (K, D). An example is in one class: the bound is |x|'s."""

    def add(total: Tensor, block: Block) -> None:
        total.add_(F.one_hot(block.y, num_classes).to(block.x.dtype).mT @ block.x)

    return Statistic(shape=(num_classes, dim), bound=bound, add=add, share=share)


def class_grams(num_classes: int, dim: int, *, bound: float, share: float = 1.0) -> Statistic:
    """For each class, the sum of x x^T over it, shape (K, D, D)."""

    def add(total: Tensor, block: Block) -> None:
        for label in block.y.unique().tolist():
            x = block.x[block.y == label]
            total[label].add_(x.mT @ x)

    return Statistic(shape=(num_classes, dim, dim), bound=bound**2, add=add, share=share)


def gradient(
    weight: Tensor, *, loss: LossName, bias: float, max_norm: float, share: float = 1.0
) -> Statistic:
    """Sum of the loss's gradients in `weight` (K, D), each clipped to norm `max_norm`.

    Args:
        weight: (K, D).
        loss: see `residuals`.
        bias: added to every output; not trained.
        max_norm: clipping norm.
        share: as for `Statistic`.
    """
    seen = weight.detach().double()

    def add(total: Tensor, block: Block) -> None:
        r = residuals(block.x @ seen.mT + bias, block.y, loss)
        norms = _upper(torch.linalg.vector_norm(r, dim=1).double(), r.shape[1]) * block.norms
        counts = torch.isfinite(norms) & (block.counts > 0)
        factor = (max_norm / norms).clamp_max(1.0).to(r.dtype)  # 1 where the norm is 0
        weighted = torch.where(counts[:, None], r * factor[:, None], torch.zeros((), dtype=r.dtype))
        total.add_(weighted.mT @ block.x)

    return Statistic(shape=tuple(weight.shape), bound=max_norm, add=add, share=share)


def hessians(weight: Tensor, *, loss: LossName, bias: float, bound: float, share: float = 1.0) -> Statistic:
    """For each class, the sum of h x x^T with h the loss's second derivative in that class's output.

    The terms of one example are h_1 x x^T .. h_K x x^T: their norm is |h| |x|^2, and |h| is at most
    sqrt(K)/4 / K for sigmoid, sqrt(4/27) for softmax (sum p^2 (1-p)^2 <= max p (1-p)^2 = 4/27).

    Args:
        weight: (K, D).
        loss: see `residuals`.
        bias: added to every output.
        bound: that of |x|.
        share: as for `Statistic`.
    """
    seen = weight.detach().double()
    num_classes, dim = weight.shape

    def add(total: Tensor, block: Block) -> None:
        p = _probabilities(block.x @ seen.mT + bias, loss)
        h = p * (1.0 - p) / (num_classes if loss == "sigmoid" else 1)
        h = torch.where(torch.isfinite(h), h, torch.zeros((), dtype=h.dtype))
        for label in range(num_classes):
            total[label].add_((block.x * h[:, label, None]).mT @ block.x)

    return Statistic(
        shape=(num_classes, dim, dim),
        bound=curvature_bound(loss, num_classes) * bound**2,
        add=add,
        share=share,
    )


def curvature_bound(loss: LossName, num_classes: int) -> float:
    """Bound on |h| of `hessians`."""
    return _SOFTMAX_CURVATURE if loss == "softmax" else math.sqrt(num_classes) / 4.0 / num_classes


def residuals(z_BK: Tensor, y_B: Tensor, loss: LossName) -> Tensor:
    """Gradient of each example's loss in its outputs, shape (B, K).

    "softmax": cross-entropy. "sigmoid": one binary cross-entropy a class, averaged over the classes.
    """
    r = _probabilities(z_BK, loss) - F.one_hot(y_B, z_BK.shape[1]).to(z_BK.dtype)
    return r / z_BK.shape[1] if loss == "sigmoid" else r


def losses(z_BK: Tensor, y_B: Tensor, loss: LossName) -> Tensor:
    """Each example's loss, shape (B,)."""
    if loss == "softmax":
        return F.cross_entropy(z_BK, y_B, reduction="none")
    target = F.one_hot(y_B, z_BK.shape[1]).to(z_BK.dtype)
    return F.binary_cross_entropy_with_logits(z_BK, target, reduction="none").mean(1)


def ridge_inverse(matrix: Tensor, ridge: float) -> Tensor:
    """(P + ridge I)^-1, where P is the positive semi-definite matrix nearest to `matrix`; shape (D, D).

    Noise makes a symmetric positive matrix neither; P is its symmetric part with negative eigenvalues
    set to zero. Directions that are zero in all but rounding are left out, as in a pseudo-inverse.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2.0)
    values = values.clamp_min(0.0) + ridge
    least = values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > least, 1.0 / values, torch.zeros((), dtype=values.dtype))
    return (vectors * inverse) @ vectors.mT


def _probabilities(z_BK: Tensor, loss: LossName) -> Tensor:
    return z_BK.softmax(1) if loss == "softmax" else z_BK.sigmoid()


def _upper(norms: Tensor, num_terms: int) -> Tensor:
    return norms * (1.0 + (num_terms + 8) * torch.finfo(torch.float32).eps)
