"""A clipped sum written down as one graph: a function of parameters, buffers, rows and a mask of real units.

The model runs once on tensors without values, so whatever its Python would decide by looking at
values raises, and is refused: nothing of the data can be baked into the graph. Which entries belong
to which unit is proven on the traced program itself, which may differ from what runs eagerly.

Room: clip. May import torch, `reticent.rules`, `reticent.errors`.

Shape letters (this file): U units of the physical batch, padding included; L groups.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import TreeSpec, tree_unflatten

from reticent.clip._backward import gradients_kept, graph_leaves, run_backward
from reticent.clip._capture import Capture
from reticent.clip._engine import ClipEngine, Losses
from reticent.clip._entry import Entry
from reticent.clip._graph import Graph, num_draws, trace, untraceable
from reticent.clip._groups import Group
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._held import InPlace
from reticent.clip._params import refuse_bypass, refuse_unseen
from reticent.clip._passes import FormVisitor, round_up
from reticent.clip._precision import full_float32
from reticent.clip._probe import Fingerprints, probe_weights
from reticent.clip._proven import NotProven, Proven, layouts_of, reused
from reticent.clip._sums import sum_dtype
from reticent.rules import Form, Layout
from reticent.rules._rounding import Doubts

_MAX_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """What a graph is traced for.

    Args:
        engine: the eager engine: its rules, and what it knows of optional meetings.
        model: the model.
        losses: as in `ClipEngine.clipped_sum`.
        spec: the batch's structure; its leaves are inputs of the graph.
        others: the batch's leaves that are no tensors, by position.
        num_units: U.
        one_loss: a unit's loss must be one value (the caller gave no number of units).
        groups: of parameters that are clipped together; their norms are inputs of the graph.
    """

    engine: ClipEngine
    model: nn.Module
    losses: Losses
    spec: TreeSpec
    others: Mapping[int, Any]
    num_units: int
    one_loss: bool
    groups: tuple[Group, ...]

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The batch with these tensors in it."""
        rest = iter(tensors)
        leaves = [
            self.others[i] if i in self.others else next(rest) for i in range(len(tensors) + len(self.others))
        ]
        return tree_unflatten(leaves, self.spec)


def state_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of parameters and of buffers, each tensor once."""
    return [n for n, _ in model.named_parameters()], [n for n, _ in model.named_buffers()]


def state_of(model: nn.Module) -> list[Tensor]:
    """The tensors of `state_names`, without autograd."""
    return [t.detach() for t in (*model.parameters(), *model.buffers())]


@contextmanager
def without_autocast(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Norms and sums are formed in full precision whatever surrounds the call."""
    with ExitStack() as stack:
        for device in sorted({t.device.type for t in tensors} | {"cpu"}):
            stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(full_float32(torch.device(device)))
        yield


def prove(setting: Setting, inputs: Sequence[Tensor]) -> tuple[Proven, int] | None:
    """Prove, on the traced forward and backward, which entries belong to which unit.

    Args:
        setting: what is traced.
        inputs: state, then the rows of a real batch (padded).

    Returns:
        A layout for every meeting, and the hash of the operations it holds for; None where this batch
        proves too little (every gradient of an output is zero, say): try again on another.

    Raises:
        CoupledExamples[gradient-mixes-examples]: units mix.
        UnsupportedModel: see `trace`.
    """
    engine, units = setting.engine, setting.num_units
    half = any(p.dtype == torch.float16 for p in setting.model.parameters())
    weights_U = probe_weights(units, half=half).to(inputs[0].device)
    for _ in range(_MAX_TRIES):
        box: list[tuple[Capture, tuple[_Gradients, _Gradients]]] = []

        def body(tensors: Sequence[Tensor], box: list[Any] = box) -> tuple[Tensor, ...]:
            *state_and_rows, weights_U = tensors
            with _captured(setting, state_and_rows) as (capture, _, loss_R):
                ones, scaled = _Gradients(), _Gradients()
                capture.begin_backward(ones)
                run_backward(loss_R, torch.ones_like(loss_R), retain_graph=True)
                capture.begin_backward(scaled)
                weights_R = weights_U.to(loss_R).repeat_interleave(loss_R.shape[0] // units)
                run_backward(loss_R, weights_R, retain_graph=False)
            box.append((capture, (ones, scaled)))
            return (*ones.grads, *scaled.grads)

        graph = trace(body, [*inputs, weights_U], setting.model)
        capture, passes = box[0]
        if units == 1:  # every entry is the one unit's
            return {}, capture.trace
        with torch.no_grad(), without_autocast(inputs):
            grads = iter(graph.module(*inputs, weights_U, *graph.constants))
        seed = int.from_bytes(os.urandom(7), "little")
        ones, scaled = Fingerprints(units, seed), Fingerprints(units, seed)
        with torch.no_grad():
            for prints, traced in zip((ones, scaled), passes, strict=True):
                for entry, index in traced.places:
                    prints.visit(entry, index, (), next(grads))  # the real one
        proven: Proven = {}
        try:
            layouts_of(capture, ones, scaled, weights_U, proven, has_batch=True)
        except NotProven as again:
            engine.proofs.not_meetings |= again.not_meetings
            continue
        return (proven, capture.trace) if all(proven.get(key) for key in ones.prints) else None
    return None


class _Gradients:
    """Visitor: keeps the gradients, and where each belongs, in the order in which they come."""

    def __init__(self) -> None:
        self.places: list[tuple[Entry, int]] = []
        self.grads: list[Tensor] = []

    def visit(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """See `Visitor`."""
        self.places.append((entry, index))
        self.grads.append(g)


class _Whole:
    """Consumer: keeps each parameter's gradient."""

    whole = True

    def __init__(self) -> None:
        self.forms: dict[str, Form] = {}

    def take(self, name: str, form: Form) -> None:
        """See `Consumer`."""
        self.forms[name] = form


def trace_sum(
    setting: Setting, proof: tuple[Proven, int], inputs: Sequence[Tensor]
) -> tuple[Graph, list[str]]:
    """The clipped sum as a graph.

    Args:
        setting: what is traced.
        proof: from `prove`.
        inputs: state, rows, then the mask of real units, shape (U,), bool, and C, shape (), float64.

    Returns:
        The graph, and the names of the parameters that received a gradient. Its outputs: the clipped
        sum for each of these names; for each unit and group, shape (U, L), its norm, float64, rounded up,
        and whether norm and loss are finite; and for each unit, shape (U,), whether a norm was rounded up
        by so much that it was left out of the sums. The sums mean something only if all is finite,
        padding too.
    """
    names: list[str] = []
    proven, operations = proof
    units = setting.num_units

    def layout_of(entry: Entry, index: int, g: Tensor) -> Layout:
        return Layout(0, 1) if units == 1 else reused(proven.get(entry.key, {}), units, g.shape)

    def body(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        *state_and_rows, real_U, max_norm_L = tensors
        with _captured(setting, state_and_rows) as (capture, params, loss_R):
            if capture.trace != operations:
                raise untraceable("the operations it runs are not the same twice")
            kept = _Whole()
            visitor = FormVisitor(capture.entries, capture.leaves, layout_of, kept, last=True)
            capture.begin_backward(visitor)
            try:
                run_backward(loss_R, torch.ones_like(loss_R), retain_graph=False)
                with torch.no_grad(), capture.stage.pause(loss_R.device), without_autocast(tensors):
                    visitor.finish()
                    names[:] = kept.forms
                    return _clipped(setting.groups, kept.forms, params, loss_R, real_U, max_norm_L)
            except NotProven as error:
                raise untraceable("its backward runs operations that it did not run before") from error

    graph = trace(body, inputs, setting.model)
    return graph, names


def _clipped(
    groups: Sequence[Group],
    forms: dict[str, Form],
    params: Mapping[str, Tensor],
    loss_R: Tensor,
    real_U: Tensor,
    max_norm_L: Tensor,
) -> tuple[Tensor, ...]:
    """The outputs of the graph; see `trace_sum`. Empties `forms`."""
    doubts: Doubts = []
    slack = round_up({sum_dtype(p) for p in params.values()})
    zero_U = torch.zeros(real_U.shape, dtype=torch.float64, device=real_U.device)
    norms = []
    for group in groups:
        square_U = zero_U
        for name in group.names:
            if name in forms:
                square_U = square_U + forms[name].squared_norm(doubts)
        norms.append(square_U.sqrt() * (1 + slack))
    norm_UL = torch.stack(norms, 1)
    finite_U = torch.isfinite(loss_R.detach().reshape(len(real_U), -1)).all(1)
    finite_UL = finite_U[:, None] & torch.isfinite(norm_UL)
    doubt_U = torch.zeros_like(real_U)
    for more_U in doubts:
        doubt_U = doubt_U | more_U
    # What is left out has weight zero; a unit that is not finite needs another run without it.
    weights = {
        name: torch.where(real_U & ~doubt_U, group.weights(norm_U, max_norm_L[i]), 0.0)
        for i, (group, norm_U) in enumerate(zip(groups, norms, strict=True))
        for name in group.names
    }
    sums = []
    for name in list(forms):
        out = torch.zeros_like(params[name], dtype=sum_dtype(params[name]), requires_grad=False)
        forms.pop(name).add_weighted(weights[name], None, out)
        sums.append(out)
    return (*sums, norm_UL, finite_UL, doubt_U)


@contextmanager
def _captured(
    setting: Setting, tensors: Sequence[Tensor]
) -> Iterator[tuple[Capture, dict[str, Tensor], Tensor]]:
    """The forward of the model with `tensors` as state and rows: capture, trainable parameters, losses.

    Backward passes run inside.
    """
    model = setting.model
    param_names, buffer_names = state_names(model)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    own = {id(p): n for n, p in model.named_parameters()}
    params = [t.detach().requires_grad_(n in trains) for n, t in zip(param_names, tensors, strict=False)]
    rest = tensors[len(params) :]
    state = dict(zip(param_names, params, strict=True)) | dict(zip(buffer_names, rest, strict=False))
    row_tensors = rest[len(buffer_names) :]
    batch, versions = setting.batch(row_tensors), [t._version for t in row_tensors]
    with torch.enable_grad(), _reparametrize_module(model, state, tie_weights=True, stack_weights=True):
        trained: Any = {n: p for n, p in zip(param_names, params, strict=True) if n in trains}
        before = State(InPlace(model), trained)
        capture = Capture(trained, model.modules(), setting.engine._rules, setting.engine.proofs.not_meetings)
        with capture:
            loss_R = setting.losses(batch)
        if [t._version for t in row_tensors] != versions:  # a graph may run again on the same rows
            raise untraceable("it writes into the rows it is given")
        units = setting.num_units
        check_losses(loss_R, units if setting.one_loss else None)
        checked_units(loss_R.shape[0], units)
        before.refuse_changes(trained)
        leaves = graph_leaves(loss_R)
        refuse_bypass(leaves, capture, trained)
        missed = {id(leaf) for leaf in leaves} & own.keys()
        if missed:
            used = sorted(own[i] for i in missed)
            raise untraceable(f"it keeps {used} in a list, dict or closure of its own and uses them there")
        drawn = num_draws()
        with capture, torch.autograd.set_multithreading_enabled(False), gradients_kept(leaves):
            yield capture, trained, loss_R
            if num_draws() > drawn:
                raise untraceable(
                    "its backward draws random numbers (a checkpointed part with dropout), and a graph "
                    "cannot draw the same ones when it runs that part again; leave out checkpointing, or "
                    "dropout, there"
                )
            refuse_unseen(capture)
        before.refuse_changes(trained)
