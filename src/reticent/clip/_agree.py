"""Whether a compiled graph gives the eager engine's sum: the compiled engine's self-check.

Room: clip. May import torch, `reticent.bounded`, `reticent.errors`.

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
from reticent.errors import UnsupportedModel

# The compiled sum may differ from the eager one by this share of its size: sums in another order, and
# in half precision, roundings left out between fused operations.
_TOLERANCE: Final = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_TOLERANCE: Final = 5e-2
_SHORT: Final = 1e-2  # of the clipping norm


def tolerance(params: Iterable[Tensor], *, half: bool) -> float:
    """The share by which sums of these parameters may differ: the loosest of their kinds."""
    return _HALF_TOLERANCE if half else max(_TOLERANCE[sum_dtype(p)] for p in params)


def agree(
    groups: Sequence[Group], sums: Mapping[str, Tensor], norm_UL: Tensor, eager: BoundedSum, within: float
) -> bool | None:
    """Whether norms agree, and the sums to a share of what the norms allow; None: too short to tell.

    Gradients that are short beside the clipping norm, as of examples that are learned by heart, are rounding:
    that they do not agree to a share of themselves says nothing against a graph. Nor does it say anything
    for one that they agree to a share of the clipping norm: almost any graph's would, and the graph also
    runs on longer gradients, and for smaller clipping norms. So in each group the longest norm must agree to
    a share of itself, and the sum to a share of what the norms alone allow.

    Padding may follow the units.
    """
    if any(name not in sums and bool(total.any()) for name, total in eager.total.items()):
        return False
    want_UL = norms_of(eager).to(norm_UL.device)
    parts = [group.weights(want_U) * want_U for group, want_U in zip(groups, want_UL.T, strict=True)]
    limits_L = torch.tensor([group.max_norm for group in groups], dtype=want_UL.dtype, device=want_UL.device)
    scale = float(torch.linalg.vector_norm(torch.stack(parts), dim=0).sum())
    short = _SHORT * len(want_UL) * float(torch.linalg.vector_norm(limits_L))
    square = sum(float((t - eager.total[name]).double().square().sum()) for name, t in sums.items())
    off, off_UL = math.sqrt(square), (norm_UL[: len(want_UL)] - want_UL).abs()

    def near(scale: float, least_L: Tensor) -> bool:
        norms = bool((off_UL <= within * torch.maximum(want_UL, least_L)).all())
        return norms and off <= within * scale

    if not near(max(scale, short), _SHORT * limits_L):
        return False
    told = near(scale, torch.minimum(_SHORT * limits_L, want_UL.amax(0)))
    return True if told and bool((want_UL > 0).any()) else None


def compare(
    program: Program,
    model: nn.Module,
    groups: Sequence[Group],
    row_tensors: Sequence[Tensor],
    eager: BoundedSum,
    run_eager: Callable[[Sequence[Tensor]], BoundedSum],
    *,
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
        units: of the chunk, without padding.
        at_once: with padding.

    Raises:
        UnsupportedModel[compile-self-check].
    """
    device, draws = row_tensors[0].device, program.draws
    program = replace(program, run=program.traced) if draws else program
    within = tolerance([p for p in model.parameters() if p.requires_grad], half=program.half)
    place_U = torch.arange(at_once, device=device)
    with torch.random.fork_rng(devices=_cuda_devices(row_tensors[0])):
        states = generator_states(device)
        sums, norm_UL, finite_UL, doubt_U = run_program(program, model, groups, row_tensors, place_U < units)
        fine_U = finite_UL.all(1) & ~doubt_U
        if not draws and bool(fine_U.all()):
            return _told([agree(groups, sums, norm_UL, eager, within)], within)
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
            answers.append(agree(groups, sums, norm_UL, run_eager(row_tensors), within))
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
