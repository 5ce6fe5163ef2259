"""What a clipped sum should be: one example at a time, through plain autograd.

Shares no code with any engine. The clipping norm is the median of the norms, so about half of the
examples are clipped.

Shape letters: B examples.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.work import Work

# An engine whose sum is farther from the reference, in clipping norms, is reported as wrong. Float32
# stays far below it; a forgotten use of a parameter, or a norm off by a per mille, does not.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Name -> clipped sum, under flat clipping and (where asked for) per layer, and the norm used."""

    max_norm: float
    num_clipped: int
    flat: dict[str, Tensor]
    per_layer: dict[str, Tensor] | None

    def save(self, path: Path) -> None:
        """Write it where `load` finds it, for the CPU."""
        flat = {n: t.cpu() for n, t in self.flat.items()}
        per_layer = None if self.per_layer is None else {n: t.cpu() for n, t in self.per_layer.items()}
        torch.save(
            {
                "max_norm": self.max_norm,
                "num_clipped": self.num_clipped,
                "flat": flat,
                "per_layer": per_layer,
            },
            path,
        )

    @staticmethod
    def load(path: Path) -> "Reference":
        """Map it from a file: the tensors take no memory until they are looked at."""
        return Reference(**torch.load(path, mmap=True))

    def max_error(self, got: dict[str, Tensor], *, per_layer: bool) -> float:
        """The largest distance of a parameter's sum from what it should be, in clipping norms."""
        want = self.per_layer if per_layer else self.flat
        if want is None:
            raise ValueError("There is no reference for clipping per layer.")
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


def owners(names: list[str]) -> dict[str, list[str]]:
    """Module name -> names of the parameters it owns."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def reference(work: Work, *, per_layer: bool) -> Reference:
    """Both clipped sums of the work's batch; takes two backwards for each example."""
    params = work.trainable()
    norms = []
    for b in range(work.num_examples()):
        norms.append(_norm(list(one_gradient(work, b).values())))
    max_norm = float(f"{statistics.median(norms):.3g}")
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"The median gradient norm of this case is {max_norm}: nothing can be compared.")
    groups = owners(list(params))
    flat = {n: torch.zeros_like(p) for n, p in params.items()}
    by_layer = {n: torch.zeros_like(p) for n, p in params.items()} if per_layer else None
    for b, norm in enumerate(norms):
        grads = one_gradient(work, b)
        for name, g in grads.items():
            flat[name].add_(g, alpha=min(1.0, max_norm / norm) if norm else 1.0)
        if by_layer is None:
            continue
        for members in groups.values():
            own = _norm([grads[n] for n in members])
            share = max_norm / math.sqrt(len(groups))
            for name in members:
                by_layer[name].add_(grads[name], alpha=min(1.0, share / own) if own else 1.0)
    num_clipped = sum(n > max_norm for n in norms)
    return Reference(max_norm=max_norm, num_clipped=num_clipped, flat=flat, per_layer=by_layer)
