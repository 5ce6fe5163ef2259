"""What a clipped sum should be: one example at a time, through plain autograd.

Shares no code with any engine. The clipping norm is the median of the norms, so about half of the
examples are clipped.

Shape letters: B examples.
"""

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from benchmarks.work import Work

# An engine whose sum is farther from the reference, in clipping norms, is reported as wrong. Float32
# stays far below it; a forgotten use of a parameter, or a norm off by a per mille, does not.
TOLERANCE = 1e-3

# How gradients are clipped: all parameters together, each module's by itself, each block's (see `blocks`), or
# all together to about the same length.
Kind = Literal["flat", "per_layer", "grouped", "automatic"]
STABILITY: Final = 0.01  # of automatic clipping, absolute


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Kind of clipping -> name -> clipped sum, and the norm used."""

    max_norm: float
    num_clipped: int
    sums: dict[Kind, dict[str, Tensor]]

    def save(self, path: Path) -> None:
        """Write it where `load` finds it, for the CPU."""
        sums = {kind: {n: t.cpu() for n, t in total.items()} for kind, total in self.sums.items()}
        torch.save({"max_norm": self.max_norm, "num_clipped": self.num_clipped, "sums": sums}, path)

    @staticmethod
    def load(path: Path) -> "Reference":
        """Map it from a file: the tensors take no memory until they are looked at."""
        return Reference(**torch.load(path, mmap=True))

    def max_error(self, got: dict[str, Tensor], kind: Kind = "flat") -> float:
        """The largest distance of a parameter's sum from what it should be, in clipping norms."""
        if kind not in self.sums:
            raise ValueError(f"There is no reference for clipping {kind}.")
        want = self.sums[kind]
        if missing := want.keys() - got.keys():
            raise ValueError(f"no sum for {sorted(missing)[0]} and {len(missing) - 1} other parameters")
        worst = 0.0
        for name, tensor in want.items():
            error = float((got[name].detach().cpu() - tensor).norm()) / self.max_norm
            worst = max(worst, math.inf if math.isnan(error) else error)
        return worst


def one_gradient(work: Work, index: int) -> dict[str, Tensor]:
    """One example's gradient; zeros for a parameter its loss does not depend on."""
    params = work.trainable()
    loss = work.losses(work.rows(index, index + 1)).sum()
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g.detach()
        for (n, p), g in zip(params.items(), grads, strict=True)
    }


def owners(names: Collection[str]) -> dict[str, list[str]]:
    """Module name -> names of the parameters it owns."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def blocks(names: Collection[str]) -> dict[str, list[str]]:
    """Block -> names of its parameters: up to the first number in a name; "" for what is in no block."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
        found.setdefault(".".join(parts[: first + 1]), []).append(name)
    return found


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _weights(kind: Kind, grads: dict[str, Tensor], max_norm: float) -> dict[str, float]:
    """Parameter -> what one example's gradient of it is multiplied with."""
    match kind:
        case "per_layer":
            groups = owners(grads.keys())
        case "grouped":
            groups = blocks(grads.keys())
        case _:
            groups = {"": [*grads]}
    share, found = max_norm / math.sqrt(len(groups)), dict[str, float]()
    for members in groups.values():
        norm = _norm([grads[n] for n in members])
        if kind == "automatic":
            weight = share / (norm + STABILITY)
        else:
            weight = min(1.0, share / norm) if norm else 1.0
        found |= dict.fromkeys(members, weight)
    return found


def reference(work: Work, kinds: Collection[Kind] = ("flat",)) -> Reference:
    """The clipped sums of the work's batch; takes two backwards for each example."""
    params = work.trainable()
    norms = []
    for b in range(work.num_examples()):
        norms.append(_norm(list(one_gradient(work, b).values())))
    max_norm = float(f"{statistics.median(norms):.3g}")
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"The median gradient norm of this case is {max_norm}: nothing can be compared.")
    sums = {kind: {n: torch.zeros_like(p) for n, p in params.items()} for kind in kinds}
    for b in range(work.num_examples()):
        grads = one_gradient(work, b)
        for kind, total in sums.items():
            weights = _weights(kind, grads, max_norm)
            for name, g in grads.items():
                total[name].add_(g, alpha=weights[name])
    return Reference(max_norm=max_norm, num_clipped=sum(n > max_norm for n in norms), sums=sums)
