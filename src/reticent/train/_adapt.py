"""Clipping norms that follow a quantile of the units' norms, from a noised count [1].

Room: train. May import torch, `reticent.{plan,noise}` and the floors below.

Shape letters (this file): U units, L clipping norms (1, or one for each module).

Let b_ul = 1 if unit u's norm in group l was at most C_l, else 0. A step counts s_l = sum_u (b_ul - 1/2) over
the units that were drawn. Adding or removing a unit changes every s_l by exactly 1/2, so the vector by
sqrt(L)/2; without the 1/2 taken off it would be up to sqrt(L), twice as much [1]. Noised, and
divided by the *expected* batch size B, plus 1/2, it estimates the share gamma_l of units below C_l:

    E[s_l / B + 1/2] = E[n] / B (gamma_l - 1/2) + 1/2 = gamma_l

because a Poisson batch has n = B units on average. The realised n, which is private, is never used. An empty
batch gives 1/2 and noise.

Sources:
    [1] Andrew et al. 2019, arXiv:1905.03871.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reticent.bounded import BoundedSum
from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    Clipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
    StepClipping,
    groups,
)
from reticent.dist import ALONE, Ranks
from reticent.errors import CheckpointError, StepError
from reticent.noise import NoiseSource
from reticent.plan import PlannedStep

_COUNT = "count"


class ClipNorms:
    """What each step of a run is clipped by: the plan's clipping, or norms that move from step to step.

    Args:
        clipping: the plan's.
        sizes: name -> number of elements of every trainable parameter.
    """

    def __init__(self, clipping: Clipping, sizes: Mapping[str, int]) -> None:
        self._clipping, self._sizes = clipping, dict(sizes)
        self._adaptive = clipping if isinstance(clipping, AdaptiveClipping) else None
        self.values = () if self._adaptive is None else first_norms(self._adaptive, sizes)
        self._known = self._adaptive is None  # norms that adapt are known when `restore` has been called

    @property
    def adapt(self) -> bool:
        """Whether the norms move."""
        return self._adaptive is not None

    def now(self) -> StepClipping:
        """What the next step's sum is clipped by."""
        if isinstance(self._clipping, AdaptiveClipping):
            return clipping_at(self._clipping, self.values, self._sizes)
        return self._clipping

    def restore(self, norms: Sequence[float]) -> None:
        """Go on with the norms of a checkpoint, or with the first ones in a run without any step.

        Raises:
            CheckpointError[checkpoint-mismatch]: another number of norms, or some outside the limits.
        """
        low, high = (self._adaptive.min_norm, self._adaptive.max_norm) if self._adaptive else (0.0, 0.0)
        if len(norms) != len(self.values) or not all(low <= norm <= high for norm in norms):
            raise CheckpointError(
                f"The checkpoint holds {len(norms)} clipping norms; this plan and model have "
                f"{len(self.values)}, from {low:g} to {high:g}. Resume with the plan and the model that the "
                "run began with.",
                code="checkpoint-mismatch",
            )
        self.values = tuple(float(norm) for norm in norms)
        self._known = True

    def require_known(self, num_steps: int) -> None:
        """Refuse to go on from the first norms where steps have moved them.

        Raises:
            StepError[clip-norms]: the run was resumed and `restore` was not called.
        """
        if not self._known:
            raise StepError(
                f"The ledger holds {num_steps} steps, and the clipping norms they arrived at are not here: "
                "going on from the first ones would forget what the counts have paid for. Call "
                "private.restore_clip_norms(norms) with the clip_norms of your checkpoint (if every update "
                "was lost, with private.clip_norms).",
                code="clip-norms",
            )

    def count(self, added: BoundedSum, num_units: int) -> Tensor:
        """Units of a chunk below the norms, less half of all, shape (L,).

        Raises:
            StepError[engine-mismatch]: the engine did not give one norm for each unit (and group).
        """
        several = len(self.values) > 1  # one group's norms are the units'
        group_norms_UL = added.group_norms if several else None
        shape = None if group_norms_UL is None else tuple(group_norms_UL.shape)
        if added.norms.shape != (num_units,) or (several and shape != (num_units, len(self.values))):
            raise StepError(
                "Adaptive clipping counts units by their norms, and the engine did not give one norm for "
                "each (and for each group, if per_layer). Give PrivateStep an engine that does.",
                code="engine-mismatch",
            )
        return count_below(added.norms, group_norms_UL, self.values)

    def clipped(self, added: BoundedSum) -> Tensor:
        """1 for each unit of a chunk of which anything was clipped, else 0; see `anything_clipped`."""
        return anything_clipped(added, self.now(), self._sizes)

    def release(self, count_L: Tensor, plan: PlannedStep, source: NoiseSource, ranks: Ranks = ALONE) -> None:
        """Noise the count of a step whose ledger entry is durable, and move the norms by it."""
        assert self._adaptive is not None and plan.count_noise_multiplier is not None
        noised = ranks.add_noise(
            bounded_count(count_L), noise_multiplier=plan.count_noise_multiplier, source=source
        )
        self.values = next_norms(
            self._adaptive, self.values, noised[_COUNT], expected_batch_size=plan.expected_batch_size
        )


def first_norms(clipping: AdaptiveClipping, sizes: Mapping[str, int]) -> tuple[float, ...]:
    """The norms of the first step, shape (L,)."""
    if not clipping.per_layer:
        return (float(clipping.initial_max_norm),)
    split = groups(PerLayerClipping(max_norm=clipping.initial_max_norm), sizes)
    return tuple(_inside(clipping, group.max_norm) for group in split)


def clipping_at(clipping: AdaptiveClipping, norms: Sequence[float], sizes: Mapping[str, int]) -> StepClipping:
    """What a step's sum is clipped by, given the norms of that step, shape (L,)."""
    if not clipping.per_layer:
        return FlatClipping(max_norm=norms[0])
    split = groups(PerLayerClipping(max_norm=clipping.initial_max_norm), sizes)
    return GroupedClipping(
        max_norms=tuple((group.pattern, norm) for group, norm in zip(split, norms, strict=True))
    )


def count_below(norms_U: Tensor, group_norms_UL: Tensor | None, max_norms: Sequence[float]) -> Tensor:
    """s_l = sum_u (b_ul - 1/2), shape (L,), float64, exact; a unit that is not finite is below nothing.

    Guarantee:
        One unit changes each entry by exactly 1/2, and the whole by sqrt(L)/2.
    """
    norms_UL = norms_U.unsqueeze(1) if group_norms_UL is None else group_norms_UL
    limits_L = torch.tensor(max_norms, dtype=torch.float64, device=norms_UL.device)
    below_UL = (norms_UL.double() <= limits_L) & torch.isfinite(norms_U).unsqueeze(1)
    return (below_UL.double() - 0.5).sum(0).cpu()


def anything_clipped(added: BoundedSum, clipping: StepClipping, sizes: Mapping[str, int]) -> Tensor:
    """1 for each unit whose weight was below 1 in some group, else 0; (U,), float64.

    A unit that is not finite was left out: it counts as clipped. NaN where the norms of groups are unknown.
    """
    stability = 0.0
    match clipping:
        case PerLayerClipping() | GroupedClipping():
            limits = [group.max_norm for group in groups(clipping, sizes)]
        case AutomaticClipping():
            limits, stability = [clipping.max_norm], clipping.stability
        case FlatClipping():
            limits = [clipping.max_norm]
    norms_UL = added.norms.unsqueeze(1) if len(limits) == 1 else added.group_norms
    if norms_UL is None:
        return torch.full((len(added.norms),), math.nan, dtype=torch.float64)
    limits_L = torch.tensor(limits, dtype=torch.float64, device=norms_UL.device)
    return (~(norms_UL.detach().double() + stability <= limits_L)).any(1).double().cpu()


def bounded_count(count_L: Tensor) -> BoundedSum:
    """The count with its sensitivity, sqrt(L)/2."""
    bound = 0.5 * math.sqrt(len(count_L))
    return BoundedSum(total={_COUNT: count_L}, bound=bound, norms=torch.empty(0))


def next_norms(
    clipping: AdaptiveClipping, norms: Sequence[float], noised_L: Tensor, *, expected_batch_size: float
) -> tuple[float, ...]:
    """The norms of the next step: C exp(-learning_rate (share - target)), inside the clipping's limits."""
    shares = (noised_L.double() / expected_batch_size + 0.5).tolist()
    return tuple(
        _inside(clipping, math.exp(_moved(clipping, math.log(norm), share)))
        for norm, share in zip(norms, shares, strict=True)
    )


def _moved(clipping: AdaptiveClipping, log_norm: float, share: float) -> float:
    moved = log_norm - clipping.learning_rate * (share - clipping.target_quantile)
    return min(max(moved, -100.0), 100.0)  # exp stays finite, far outside the limits of any norm


def _inside(clipping: AdaptiveClipping, norm: float) -> float:
    return min(max(norm, clipping.min_norm), clipping.max_norm)
