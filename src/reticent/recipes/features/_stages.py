"""The stages of a last-layer method: which statistics each releases, and what it does with them.

Room: recipes. May import torch, `reticent.{noise,bounded}` and the floors below.

A method is a row of stages. A stage releases the same statistics once or several times, each time with
fresh noise, and changes the head by nothing but what was released. Everything a stage computes after the
noise is post-processing.

Shape letters (this file): D feature of the store, E feature as prepared, K class.

Sources:
    [1] Mehta et al. 2022, arXiv:2205.02973 (one full-batch step, near-zero start).
    [2] Mehta et al. 2022, arXiv:2211.13403 (DP-LS, DP-Newton, DP-FC).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._rows import Preparation
from ._sums import (
    LossName,
    Statistic,
    class_grams,
    class_sums,
    feature_sum,
    gradient,
    gram,
    hessians,
    ridge_inverse,
)

WHITENING_FLOOR: Final = 1e-3  # of the largest eigenvalue


class Head(nn.Module):
    """A linear classifier on prepared features; every tensor in it is released, public or zero.

    Args:
        dim: D.
        num_classes: K.
        preparation: what is done to each row first; its mean and whitening are filled in by stages.
        bias: added to every output, not trained.
        centred: whether a stage releases the mean.
        whitened: whether a stage releases the covariance that whitens.
        preconditioned: whether a stage releases the covariance that steps are preconditioned with.
    """

    mean: Tensor
    whitening: Tensor
    inverse_gram: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        preparation: Preparation,
        bias: float = 0.0,
        centred: bool = False,
        whitened: bool = False,
        preconditioned: bool = False,
    ) -> None:
        super().__init__()
        num_features = preparation.num_features(dim)
        self._preparation = preparation
        self.dim: int = dim
        self.num_classes: int = num_classes
        self.bias: float = bias
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(num_classes, num_features, dtype=torch.float64))
        none = torch.zeros(0, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64) if centred else none)
        self.register_buffer("whitening", torch.eye(dim, dtype=torch.float64) if whitened else none)
        square = torch.eye(num_features, dtype=torch.float64)
        self.register_buffer("inverse_gram", square if preconditioned else none)

    @property
    def preparation(self) -> Preparation:
        """What is done to each row, with what was released so far."""
        return replace(
            self._preparation,
            mean=self.mean if len(self.mean) else None,
            whitening=self.whitening if len(self.whitening) else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, K) of prepared rows (B, E)."""
        return x @ self.weight.to(x.dtype).mT + self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What one release gave.

    Args:
        values: name -> the noised statistic, unscaled.
        noise_std: name -> standard deviation of its noise; public.
        num_examples: examples in the sum, on average: the public divisor.
    """

    values: Mapping[str, Tensor]
    noise_std: Mapping[str, float]
    num_examples: float


class Stage(Protocol):
    """Releases the same statistics `num_steps` times.

    Attributes:
        name: for messages and metrics.
        num_steps: number of releases.
        share: its part of the privacy budget, relative to the other stages'.
        sampled: whether a release may be of a random sample of the examples.
        repeatable: whether a later release makes up for one that a crash lost.
    """

    @property
    def name(self) -> str: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def share(self) -> float: ...
    @property
    def sampled(self) -> bool: ...
    @property
    def repeatable(self) -> bool: ...

    def preparation(self, head: Head) -> Preparation:
        """What is done to each row before its statistics."""
        ...

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        """What the next release adds up."""
        ...

    def apply(self, head: Head, released: Released) -> None:
        """Change the head by what was released."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """Releases the mean of the rows, which is then subtracted from each."""

    share: float
    name: str = "centre"
    num_steps: int = 1
    sampled: bool = False
    repeatable: bool = False

    def preparation(self, head: Head) -> Preparation:
        return replace(head.preparation, mean=None, whitening=None, intercept=0.0)

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        return {"sum": feature_sum(head.dim, bound=head.preparation.max_norm)}

    def apply(self, head: Head, released: Released) -> None:
        head.mean.copy_(released.values["sum"] / released.num_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whiten:
    """Releases the rows' second moments, and whitens with them.

    Eigenvalues below what the noise alone gives, or 1e-3 of the largest, are raised to it.
    """

    share: float
    name: str = "whiten"
    num_steps: int = 1
    sampled: bool = False
    repeatable: bool = False

    def preparation(self, head: Head) -> Preparation:
        return replace(head.preparation, whitening=None, intercept=0.0)

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        return {"gram": gram(head.dim, bound=head.preparation.max_norm)}

    def apply(self, head: Head, released: Released) -> None:
        moments = released.values["gram"]
        values, vectors = torch.linalg.eigh((moments + moments.mT) / 2.0)
        floor = max(_noise_floor(released.noise_std["gram"], head.dim), WHITENING_FLOOR * float(values[-1]))
        root = (values.clamp_min(floor) / released.num_examples).rsqrt()
        head.whitening.copy_((vectors * root) @ vectors.mT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Descend:
    """Clipped gradient steps with a torch optimizer: one is the single step of [1], more are DP-SGD."""

    optimizer: Optimizer
    loss: LossName
    max_norm: float
    num_steps: int
    share: float = 1.0
    name: str = "descend"
    sampled: bool = True
    repeatable: bool = True
    preconditioned: bool = False

    def preparation(self, head: Head) -> Preparation:
        return head.preparation

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        return {"gradient": gradient(head.weight, loss=self.loss, bias=head.bias, max_norm=self.max_norm)}

    def apply(self, head: Head, released: Released) -> None:
        step = released.values["gradient"] / released.num_examples
        head.weight.grad = step @ head.inverse_gram if self.preconditioned else step
        self.optimizer.step()
        head.weight.grad = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """DP-FC's first stage [2]: releases the rows' second moments G once; steps then use (G/N + reg)^-1."""

    share: float
    reg: float | None = None
    name: str = "precondition"
    num_steps: int = 1
    sampled: bool = False
    repeatable: bool = False

    def preparation(self, head: Head) -> Preparation:
        return head.preparation

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        return {"gram": gram(head.weight.shape[1], bound=head.preparation.bound)}

    def apply(self, head: Head, released: Released) -> None:
        inverse = ridge_inverse(released.values["gram"], _ridge(self.reg, released, "gram"))
        head.inverse_gram.copy_(inverse * released.num_examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares:
    """DP least squares [2]: one release of second moments and class sums, then a linear solve.

    w_c = (G + reg I)^-1 b_c, or with `class_weight` a: (A_c + a G + reg I)^-1 b_c, where G is the second
    moments of all rows, A_c of class c's, and b_c the sum of class c's. What is inverted is projected onto
    the positive semi-definite matrices before `reg` is added.
    """

    class_weight: float | None = None
    reg: float | None = None
    gram_share: float = 0.5
    share: float = 1.0
    name: str = "least-squares"
    num_steps: int = 1
    sampled: bool = False
    repeatable: bool = False

    def preparation(self, head: Head) -> Preparation:
        return head.preparation

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        dim, bound = head.weight.shape[1], head.preparation.bound
        moments = self.gram_share if self.class_weight is None else self.gram_share / 2.0
        parts = {
            "gram": gram(dim, bound=bound, share=moments),
            "sums": class_sums(head.num_classes, dim, bound=bound, share=1.0 - self.gram_share),
        }
        if self.class_weight is not None:
            parts["class_grams"] = class_grams(head.num_classes, dim, bound=bound, share=moments)
        return parts

    def apply(self, head: Head, released: Released) -> None:
        whole, sums = released.values["gram"], released.values["sums"]
        if self.class_weight is None:
            solved = sums @ ridge_inverse(whole, _ridge(self.reg, released, "gram"))
        else:
            ridge = _ridge(self.reg, released, "class_grams")
            systems = (a + self.class_weight * whole for a in released.values["class_grams"])
            pairs = zip(systems, sums, strict=True)
            solved = torch.stack([ridge_inverse(system, ridge) @ b for system, b in pairs])
        with torch.no_grad():
            head.weight.copy_(solved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Newton:
    """DP-Newton [2]: each step releases the gradient and each class's Hessian block, and solves."""

    optimizer: Optimizer
    loss: LossName
    max_norm: float
    num_steps: int
    reg: float | None = None
    gram_share: float = 0.5
    share: float = 1.0
    name: str = "newton"
    sampled: bool = False
    repeatable: bool = True

    def preparation(self, head: Head) -> Preparation:
        return head.preparation

    def statistics(self, head: Head) -> Mapping[str, Statistic]:
        return {
            "gradient": gradient(
                head.weight,
                loss=self.loss,
                bias=head.bias,
                max_norm=self.max_norm,
                share=1.0 - self.gram_share,
            ),
            "hessians": hessians(
                head.weight,
                loss=self.loss,
                bias=head.bias,
                bound=head.preparation.bound,
                share=self.gram_share,
            ),
        }

    def apply(self, head: Head, released: Released) -> None:
        ridge = _ridge(self.reg, released, "hessians")
        pairs = zip(released.values["hessians"], released.values["gradient"], strict=True)
        head.weight.grad = torch.stack([ridge_inverse(h, ridge) @ g for h, g in pairs])
        self.optimizer.step()
        head.weight.grad = None


def _ridge(reg: float | None, released: Released, part: str) -> float:
    """What is added to a noised matrix's diagonal: as given, or what its noise alone could take away.

    At least a 1e-6th of an example each, so that a system without noise can be solved.
    """
    if reg is not None:
        return reg
    noise = _noise_floor(released.noise_std[part], released.values[part].shape[-1])
    return max(noise, 1e-6 * released.num_examples)


def _noise_floor(noise_std: float, dim: int) -> float:
    """About the largest eigenvalue of symmetrised noise: N(0, std^2/2) off the diagonal, so sqrt(2 D) std."""
    return noise_std * (2.0 * dim) ** 0.5
