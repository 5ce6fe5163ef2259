"""What a step adds up over its chunks before noise: raw, private, and destroyed at the release.

Room: train. May import torch, `reticent.clip`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        clipped: which of each chunk's units were clipped, 1 or 0; alike.
    """

    total: Mapping[str, Tensor] = field(repr=False)
    count: Tensor = field(repr=False)
    norms: list[Tensor] = field(default_factory=list, repr=False)
    clipped: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, total: Mapping[str, Tensor], *, num_norms: int) -> "Sums":
        """These, to which nothing was added, and zero counts."""
        return cls(total=total, count=torch.zeros(num_norms, dtype=torch.float64))


def destroy(sums: Sums) -> None:
    """Overwrite raw sums, so that nothing can read them after their release."""
    total = sums.total.made if isinstance(sums.total, SumsOnDemand) else sums.total
    for t in (*total.values(), sums.count, *sums.norms, *sums.clipped):
        t.fill_(torch.nan)
    sums.norms.clear()
    sums.clipped.clear()


def norm_figures(
    sums: Sums, noised: Mapping[str, Tensor], bound: float, noise_multiplier: float
) -> dict[str, Any]:
    """How long the units' gradients were, and how the sum compares with its noise. NOT private.

    Returns:
        `clip_fraction`: share of units of which anything was clipped, in some group where groups are clipped
        apart (those that are not finite among them; left out if an engine does not say);
        `norm_q10`, `norm_q50`, `norm_q90`: quantiles of the norms; `signal_to_noise`: length of the clipped
        sum over the expected length of its noise, `signal_to_noise_by_parameter` name -> the same of one
        parameter; `cosine`: of the angle between the clipped sum before and after noise. What does not exist
        (no unit, no noise, a sum of zeros) is left out.
    """
    figures: dict[str, Any] = {}
    norms = torch.cat(sums.norms) if sums.norms else torch.empty(0, dtype=torch.float64)
    if len(norms):
        clipped = float(torch.cat(sums.clipped).mean())
        if not math.isnan(clipped):
            figures["clip_fraction"] = clipped
        finite = norms[torch.isfinite(norms)]
        ranked = finite.sort().values.tolist()
        for q in (10, 50, 90) if ranked else ():
            figures[f"norm_q{q}"] = ranked[round(q / 100 * (len(ranked) - 1))]
    deviation = noise_multiplier * bound
    if deviation > 0:
        lengths = {name: float(t.double().norm()) for name, t in sums.total.items()}
        sizes = {name: t.numel() for name, t in sums.total.items()}
        length = math.hypot(*lengths.values())
        figures["signal_to_noise"] = length / (deviation * math.sqrt(sum(sizes.values())))
        figures["signal_to_noise_by_parameter"] = {
            name: lengths[name] / (deviation * math.sqrt(n)) for name, n in sizes.items() if n
        }
        inner = sum(float((t.double() * noised[name].double()).sum()) for name, t in sums.total.items())
        product = length * math.hypot(*(float(noised[name].double().norm()) for name in sizes))
        if product > 0:
            figures["cosine"] = inner / product
    return figures
