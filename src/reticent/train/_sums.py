"""What a step adds up over its chunks before noise: raw, private, and destroyed at the release.

Room: train. May import torch, `reticent.clip`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reticent.clip import SumsOnDemand


@dataclass(eq=False, slots=True, kw_only=True)
class Sums:
    """One logical batch's sums so far; nothing here is private.

    Args:
        total: name -> sum of clipped gradients, at least float32, of every trained parameter.
        count: units below each clipping norm that adapts, less half of all units, shape (L,), float64.
        norms: each chunk's norms, kept only to show them.
    """

    total: Mapping[str, Tensor] = field(repr=False)
    count: Tensor = field(repr=False)
    norms: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, total: Mapping[str, Tensor], *, num_norms: int) -> "Sums":
        """These, to which nothing was added, and zero counts."""
        return cls(total=total, count=torch.zeros(num_norms, dtype=torch.float64))


def destroy(sums: Sums) -> None:
    """Overwrite raw sums, so that nothing can read them after their release."""
    total = sums.total.made if isinstance(sums.total, SumsOnDemand) else sums.total
    for t in (*total.values(), sums.count, *sums.norms):
        t.fill_(torch.nan)
    sums.norms.clear()


def norm_figures(sums: Sums, bound: float, noise_multiplier: float) -> dict[str, float]:
    """How long the units' gradients were, and how the sum compares with its noise. NOT private.

    Returns:
        `clip_fraction`: share of units longer than `bound` (those that are not finite among them);
        `norm_q10`, `norm_q50`, `norm_q90`: quantiles of the norms; `signal_to_noise`: length of the clipped
        sum over the expected length of its noise. What does not exist (no unit, no noise) is left out.
    """
    figures: dict[str, float] = {}
    norms = torch.cat(sums.norms) if sums.norms else torch.empty(0, dtype=torch.float64)
    if len(norms):
        figures["clip_fraction"] = float((~(norms <= bound)).double().mean())
        finite = norms[torch.isfinite(norms)]
        ranked = finite.sort().values.tolist()
        for q in (10, 50, 90) if ranked else ():
            figures[f"norm_q{q}"] = ranked[round(q / 100 * (len(ranked) - 1))]
    size = sum(t.numel() for t in sums.total.values())
    noise = noise_multiplier * bound * math.sqrt(size)
    if noise > 0:
        square = sum(float(t.double().square().sum()) for t in sums.total.values())
        figures["signal_to_noise"] = math.sqrt(square) / noise
    return figures
