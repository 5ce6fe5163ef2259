"""Whether a compiled graph gives the eager engine's sum: the compiled engine's self-check.

Room: clip. May import torch, `reticent.bounded`, `reticent.clipping`, `reticent.errors`.

Shape letters (this file): U units, L groups.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from reticent.bounded import BoundedSum
from reticent.clip._engine import _cuda_devices
from reticent.clip._groups import Group
from reticent.clip._program import Program, generator_states, run_program, set_states, units_at
from reticent.clip._sums import sum_dtype
from reticent.clipping import FlatClipping, GroupedClipping, PerLayerClipping, StepClipping
from reticent.errors import UnsupportedModel

# The compiled sum may differ from the eager one by this share of its size: sums in another order, and
# in half precision, roundings left out between fused operations.
_TOLERANCE: Final = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_TOLERANCE: Final = 5e-2
_SHORT: Final = 1e-2  # of the clipping norm: gradients below it
_ROUNDING: Final = 1e-2  # of a tolerance; in half precision:
_ROUNDING_HALF: Final = 1e-1
_SMALLEST: Final = 1e-14  # norm to clip to


def tolerance(params: Iterable[Tensor], *, half: bool) -> float:
    """The share by which sums of these parameters may differ: the loosest of their kinds."""
    return _HALF_TOLERANCE if half else max(_TOLERANCE[sum_dtype(p)] for p in params)


def agree(
    groups: Sequence[Group],
    sums: Mapping[str, Tensor],
    norm_UL: Tensor,
    eager: BoundedSum,
    within: float,
    *,
    short_L: Sequence[float] | None = None,
    half: bool = False,
) -> bool | None:
    """Whether norms and sums agree, in every group of parameters; None: too short to tell.

    Gradients that are short beside the clipping norm, as of examples that are learned by heart, are rounding:
    that they do not agree to a share of themselves says nothing against a graph. Nor does it say anything
    for one that they agree to a share of the clipping norm: almost any graph's would, and the graph also
    runs on longer gradients, and for smaller clipping norms. So in each group that the graph gives sums of,
    the longest norm must agree to a share of itself, the sum to a share of what the norms alone allow, and
    that of each parameter, which may not be zero, to a share of itself, but for what rounding leaves of its
    group's.

    Args:
        groups: of parameters, with the norms to which they were clipped.
        sums: the graph's.
        norm_UL: the graph's. Padding may follow the units.
        eager: what it should be.
        within: the share.
        short_L: below these norms a group's gradient is short; by default shares of the groups' own norms.
        half: whether something ran in half precision.
    """
    if any(name not in sums and bool(total.any()) for name, total in eager.total.items()):
        return False
    want_UL = norms_of(eager).to(norm_UL.device)
    short_L = shorts(groups) if short_L is None else short_L
    told, rounding = [], within * (_ROUNDING_HALF if half else _ROUNDING)
    for group, want_U, got_U, short in zip(groups, want_UL.T, norm_UL.T, short_L, strict=True):
        off_U = (got_U[: len(want_U)] - want_U).abs()
        off = {name: _length(sums[name] - eager.total[name]) for name in group.names if name in sums}
        scale, whole = float((group.weights(want_U) * want_U).sum()), math.hypot(*off.values())
        longest = float(want_U.max()) if len(want_U) else 0.0
        least = float((group.weights(want_U) * want_U.clamp_min(short)).sum())
        if not (whole <= within * least and _near(off_U, want_U, within, short)):
            return False
        if off:
            own = {name: _length(eager.total[name]) for name in off}
            alone = all(0.0 < own[n] and d <= within * own[n] + rounding * scale for n, d in off.items())
            norms = longest > 0 and _near(off_U, want_U, within, min(short, longest))
            told.append(alone and norms and whole <= within * scale)
    return True if told and all(told) else None


def shorts(groups: Sequence[Group]) -> list[float]:
    """Norms below which gradients are short, for each group."""
    return [_SHORT * max(group.max_norm, group.stability or 0.0) for group in groups]


def _near(off_U: Tensor, want_U: Tensor, within: float, least: float) -> bool:
    return bool((off_U <= within * want_U.clamp_min(least)).all())


def _length(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.float64))


def lowered(clipping: StepClipping, groups: Sequence[Group], norm_UL: Tensor) -> StepClipping | None:
    """The same clipping to norms at which half of these units, or more, are clipped in every group.

    Units whose gradients are short beside the longest do not count. Where hardly a unit is clipped, all
    weights are 1, and a graph that forgot them would agree. None: half are clipped as it is, or weights are
    never 1.
    """
    share = 1.0
    for i, group in enumerate(groups):
        own_U = norm_UL[:, i][torch.isfinite(norm_UL[:, i]) & (norm_UL[:, i] > 0)]
        own_U = own_U[own_U >= _SHORT * own_U.max()] if len(own_U) else own_U
        share = min(share, float(own_U.median()) / group.max_norm) if len(own_U) else share
    share /= 2.0
    if share >= 0.5 or any(group.max_norm * share < _SMALLEST for group in groups):
        return None
    match clipping:
        case FlatClipping() | PerLayerClipping():
            return replace(clipping, max_norm=clipping.max_norm * share)
        case GroupedClipping():
            return replace(clipping, max_norms=tuple((name, n * share) for name, n in clipping.max_norms))
    return None


def compare(
    program: Program,
    model: nn.Module,
    groups: Sequence[Group],
    row_tensors: Sequence[Tensor],
    eager: BoundedSum,
    run_eager: Callable[[Sequence[Tensor]], BoundedSum],
    *,
    short_L: Sequence[float],
    units: int,
    at_once: int,
) -> bool:
    """Compare a program with the eager engine; False where no unit of these rows allows it.

    Units that do not allow it give their place to one that does, for both.

    Args:
        program: what is compared; where it draws, as it was traced.
        model: the model.
        groups: of parameters that are clipped together.
        row_tensors: a chunk, padded.
        eager: the chunk's sum, without padding.
        run_eager: the eager sum of other rows, as many.
        short_L: see `agree`.
        units: of the chunk, without padding.
        at_once: with padding.

    Raises:
        UnsupportedModel[compile-self-check].
    """
    device, draws = row_tensors[0].device, program.draws
    program = replace(program, run=program.traced) if draws else program
    half = program.half
    within = tolerance([p for p in model.parameters() if p.requires_grad], half=half)
    place_U = torch.arange(at_once, device=device)
    with torch.random.fork_rng(devices=_cuda_devices(row_tensors[0])):
        states = generator_states(device)
        sums, norm_UL, finite_UL, doubt_U = run_program(program, model, groups, row_tensors, place_U < units)
        fine_U = finite_UL.all(1) & ~doubt_U
        if not draws and bool(fine_U.all()):
            return _told([agree(groups, sums, norm_UL, eager, within, short_L=short_L, half=half)], within)
        useful_U = fine_U & (place_U < units) & (norm_UL > 0).any(1)
        if not bool(useful_U.any()):
            return False
        source_U = torch.where(useful_U, place_U, int(torch.nonzero(useful_U)[0]))
        row_tensors = [units_at(t, source_U, t.shape[0] // at_once) for t in row_tensors]
        answers: list[bool | None] = []
        # Where the eager engine proves anew, it may run twice, and draw other numbers the second time.
        while not any(answers) and len(answers) < 1 + draws:
            set_states(states)
            sums, norm_UL, finite_UL, doubt_U = run_program(
                program, model, groups, row_tensors, place_U < at_once
            )
            if not bool((finite_UL.all(1) & ~doubt_U).all()):
                return False
            set_states(states)
            again = run_eager(row_tensors)
            answers.append(agree(groups, sums, norm_UL, again, within, short_L=short_L, half=half))
        return _told(answers, within)


def _told(answers: Sequence[bool | None], within: float) -> bool:
    """Whether any agrees; False where one was too short to tell.

    Raises:
        UnsupportedModel[compile-self-check]: none agrees.
    """
    if any(answers):
        return True
    if None in answers:
        return False
    raise UnsupportedModel(
        "The graph, compiled or as traced, does not give the sum or the norms of the eager engine on the "
        f"same rows, to {within}. Use ClipEngine. Either the forward is not repeatable (it draws from a "
        "generator of its own, or counts its calls), or please report it.",
        code="compile-self-check",
    )


def norms_of(done: BoundedSum) -> Tensor:
    """(U, L)."""
    return done.norms[:, None] if done.group_norms is None else done.group_norms
