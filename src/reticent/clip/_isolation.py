"""Compares units alone with the same units in a batch: the guard against coupled examples.

A loss divided by a count of the batch, a statistic taken of raw inputs, or one cut off from the
gradient, leaves no trace in gradients; it does in values.

Room: clip. May import torch, `reticent.bounded`, `reticent.errors`.

Shape letters (this file): U units compared.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from reticent.bounded import BoundedSum
from reticent.clip._batch import num_rows, rows, varied_rows
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._quiet import Quiet
from reticent.errors import CoupledExamples, UnsupportedModel

if TYPE_CHECKING:
    from reticent.clip._engine import ClipEngine

_TOLERANCE: Final = {torch.float64: 1e-7, torch.float32: 1e-3}
_HALF_TOLERANCE: Final = 5e-2


def check(
    engine: "ClipEngine",
    model: nn.Module,
    losses: Callable[..., Tensor],
    batch: Any,
    num_units: int | None,
    max_units: int,
) -> None:
    """See `ClipEngine.check`."""
    size = num_rows(batch)
    units = size if num_units is None else num_units
    if units < 2 or size % units:
        return
    k = size // units
    few = varied_rows(batch, at_most=max_units, num_units=units)
    units = min(units, max_units)
    several = None if num_units is None else units
    held = engine.held
    params = {name: p for name, p in held.parameters().items() if p.requires_grad}
    before = State(held, params)
    with Quiet() as quiet:
        loss = losses(few)
        check_losses(loss, units * k if num_units is None else None)
        checked_units(loss.shape[0], units)
        before.refuse_changes(params)
        loss_in = loss.detach().reshape(units, -1).sum(1)
        del loss  # and its graph
        alone = [rows(few, u * k, (u + 1) * k) for u in range(units)]
        loss_alone = torch.stack([losses(one).detach().sum() for one in alone])
        tolerance = _HALF_TOLERANCE if quiet.half else _tolerance(loss_in)
        if not _near(loss_in, loss_alone, tolerance):
            again = losses(few).detach().reshape(units, -1).sum(1)
            raise _coupled(model, losses, few, alone[0], k, random=not _near(loss_in, again, 0.0))
        together = engine.clipped_sum(losses, few, num_units=several, out=held.zeros(params))
        loop = type(engine)(model, clipping=engine.clipping, method="loop", held=held)
        with held.same_rows.plainly() if held.same_rows is not None else nullcontext():
            looped = loop.clipped_sum(losses, few, num_units=several, out=held.zeros(params))
    # Every process has added the same units.
    if held.same_rows is not None:
        held.same_rows.refuse_different(together.total, params, tolerance)
    _compare(together, looped, tolerance, times=held.num_adding)


def _tolerance(loss: Tensor) -> float:
    return _TOLERANCE.get(loss.dtype, _HALF_TOLERANCE)


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal to a share of their size; what is not finite in one must not be in the other."""
    good = torch.isfinite(a)
    if not torch.equal(good, torch.isfinite(b)):
        return False
    a, b = a[good].double(), b[good].double()
    scale = torch.maximum(a.abs(), b.abs())
    return bool(
        ((a - b).abs() <= tolerance * scale + 1e-3 * tolerance * (scale.mean() if len(scale) else 0)).all()
    )


def _compare(got: BoundedSum, want: BoundedSum, tolerance: float, *, times: float) -> None:
    finite = torch.isfinite(want.norms)
    scale = torch.where(finite, want.norms, 0).clamp_max(want.bound).sum().clamp_min(1e-30)
    wrong = [
        name
        for name in want.total
        if float((got.total[name] / times - want.total[name]).double().norm()) > tolerance * float(scale)
        or not bool(torch.isfinite(got.total[name]).all())
    ]
    if wrong or not _near(got.norms.cpu(), want.norms.cpu(), tolerance):
        raise UnsupportedModel(
            f"The engine's clipped gradients are not those of plain autograd, one example at a time, for "
            f"{wrong}. Examples influence each other in a way that their losses do not show, or an operation "
            "has a wrong rule: use method='loop', and please report it. (If several processes hold parts of "
            "the model: they may have been given different rows.)",
            code="self-check",
        )


def _coupled(
    model: nn.Module, losses: Callable[..., Tensor], few: Any, one: Any, k: int, *, random: bool
) -> CoupledExamples:
    if random:
        return CoupledExamples(
            "The same examples give other losses when run twice, with dropout and random draws silenced. "
            "Examples can then not be compared; make the forward repeatable, or use ClipEngine without check "
            "and own that examples stay apart.",
            code="random-forward",
        )
    name = _first_difference(model, losses, few, one, k)
    where = (
        f"module '{name}' gives an example other values" if name is not None else "the loss has other values"
    )
    return CoupledExamples(
        f"An example's loss depends on the other examples of its batch: {where} in a batch than alone. "
        "Divide the loss by that example's own counts, not the batch's, and use layers that treat each "
        "example alone.",
        code="loss-mixes-examples",
    )


def _first_difference(
    model: nn.Module, losses: Callable[..., Tensor], few: Any, one: Any, k: int
) -> str | None:
    """The first module, in order of completion, whose output for the first unit differs."""
    names = {id(m): n or type(m).__name__ for n, m in model.named_modules()}

    def outputs(batch: Any) -> list[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in names and isinstance(output, Tensor):
                seen.append((names[id(module)], output.detach()))

        handle = register_module_forward_hook(hook)
        try:
            with torch.no_grad():
                losses(batch)
        finally:
            handle.remove()
        return seen

    for (name, many), (same, single) in zip(outputs(few), outputs(one), strict=False):
        if name != same or many.dim() != single.dim() or not many.is_floating_point():
            continue
        axes = [a for a in range(many.dim()) if many.shape[a] != single.shape[a]]
        if len(axes) == 1:
            part = many.narrow(axes[0], 0, single.shape[axes[0]])
            if not _near(part.flatten(), single.flatten(), 10 * _tolerance(many)):
                return name
    return None
