"""The clip engine: capture, prove, norms, weights, sums.

Room: clip. May import torch, `reticent.rules`, `reticent.bounded`, `reticent.clipping`, `reticent.errors`.

Shape letters (this file): U privacy units, R rows of the batch (U times k), L groups.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133 (per-example clipping).
    [2] Bu et al. 2022, arXiv:2210.00038 (one backward: norms, then sums from what it left).
    [3] Li et al. 2021, arXiv:2110.05679 (two backwards: norms, then sums).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from reticent.bounded import BoundedSum
from reticent.clip import _isolation
from reticent.clip._backward import gradients_kept, graph_leaves, plain_gradients, run_backward
from reticent.clip._batch import digest, num_rows, rows
from reticent.clip._capture import Capture
from reticent.clip._entry import Entry, Key
from reticent.clip._explain import Explanation
from reticent.clip._groups import Group, resolve
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._held import Held, InPlace, Scattered
from reticent.clip._loop import loop_norms
from reticent.clip._params import refuse_bypass, refuse_unseen, trainable
from reticent.clip._passes import (
    Clip,
    Consumer,
    FormVisitor,
    GroupNorms,
    LayoutOf,
    Norms,
    Sums,
    ready,
    round_up,
)
from reticent.clip._planner import PlannedAnew, Planner, Planning
from reticent.clip._probe import Fingerprints, Unseen, probe_weights
from reticent.clip._proven import NotProven, Proofs, Proven, layouts_of, reused
from reticent.clip._refuse import refuse_unsupported
from reticent.clip._sums import SumsOnDemand, sum_dtype
from reticent.clipping import FlatClipping, StepClipping, sensitivity
from reticent.errors import ConfigError, CoupledExamples, UnsupportedModel
from reticent.rules import BUILTIN, Layout, OpRule

Losses = Callable[..., Tensor]
Method = Literal["book-keeping", "ghost", "loop"]
METHODS: Final = ("book-keeping", "ghost", "loop")


def _cuda_devices(like: Tensor) -> list[int]:
    return [like.device.index or 0] if like.device.type == "cuda" else []


def _one_clipping(max_norm: float | None, clipping: StepClipping | None) -> StepClipping:
    if clipping is not None and max_norm is None:
        return clipping
    if max_norm is not None and clipping is None:
        return FlatClipping(max_norm=max_norm)
    raise ConfigError(
        f"Give exactly one of max_norm (for flat clipping) and clipping, got max_norm={max_norm!r} and "
        f"clipping={clipping!r}.",
        code="clipping",
    )


class ClipEngine:
    """Clips each unit's gradient to one norm over all parameters, and sums: for one model, many steps.

    Nothing is hung on the model; between calls the engine keeps only where in the model's recorded
    operations the units lie (no data). Two engines on one model do not know of each other.

    Args:
        model: any module. Its mode, its gradients and its parameters are left as they are.
        max_norm: short for `clipping=FlatClipping(max_norm=...)`.
        clipping: how one unit's influence is bounded; see `reticent.clipping`. With more than one group
            of parameters (per layer, say), each is clipped inside the backward, and kept until its last
            gradient has come: nothing for one layer, more for groups of several layers, and for a table
            that is used at both ends of the model.
        method: "book-keeping" takes one forward and one backward for all units, and keeps what the
            sums need until the norms are known [2]. "ghost" keeps nothing, and runs the backward
            twice [3]: less memory, more time. "loop" runs each unit alone through plain autograd:
            slow, and exact for any model that runs on a batch of one, so it is the way out for
            operations that the others refuse.
        rules: operation -> rule; see `reticent.rules`.
        memory_budget: bytes that may be kept at once between norms and sums; see `Planner`. Nothing is
            kept by "ghost" and "loop", which need none.
        planning: "estimate" picks each layer's method from shapes; "measure" times the candidates once.
        held: how this process holds the model; by default all of it. Where parameters are held apart,
            every process must make every call, with as many rows; "ghost" is then refused, and "loop" is
            for rows that all processes have alike.

    Raises:
        ConfigError[clip-norm]: `max_norm` is not a finite positive number.
        ConfigError[clipping]: not exactly one of `max_norm` and `clipping`, or an unknown record.
        ConfigError[clip-groups]: the groups do not fit the model's parameters.
        ConfigError[clip-method]: unknown method.
        ConfigError[planning, memory-budget]: see `Planner`.
        UnsupportedModel: the model holds a layer refused by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_norm: float | None = None,
        clipping: StepClipping | None = None,
        method: Method = "book-keeping",
        rules: Mapping[Callable[..., Any], OpRule] = BUILTIN,
        memory_budget: int | None = None,
        planning: Planning = "estimate",
        held: Held | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"method must be one of {METHODS}, got {method!r}.", code="clip-method")
        self.clipping: StepClipping = _one_clipping(max_norm, clipping)
        self.method = method
        self._model = model
        self.held: Held = InPlace(model) if held is None else held
        if self.held.apart and method == "ghost":
            raise ConfigError(
                "method='ghost' needs the whole model in one process, and its parameters are sharded. Use "
                "method='book-keeping', or train with parallel=ddp.",
                code="clip-method",
            )
        self._rules = rules
        self._planner = Planner(memory_budget=memory_budget, planning=planning)
        self.proofs: Proofs = Proofs()
        self._resolved: tuple[StepClipping, tuple[tuple[str, int], ...], tuple[Group, ...]] | None = None
        self._groups(self.clipping, trainable(self.held))
        refuse_unsupported(model)

    def clipped_sum(
        self,
        losses: Losses,
        batch: Any = None,
        *,
        num_units: int | None = None,
        out: Mapping[str, Tensor] | None = None,
        clipping: StepClipping | None = None,
        counts: bool = True,
    ) -> BoundedSum:
        """Scale each unit's gradient down as `clipping` says, then add them.

        Args:
            losses: runs the model and returns losses, shape (R,): one for each unit, or k for each
                unit in contiguous rows, whose sum is then the unit's loss. Called as
                `losses(batch)`, or `losses()` if `batch` is None.
            batch: a tree of tensors, example axis first. R may be 0.
            num_units: U, if a unit has more than one row; None: every loss is a unit.
            out: name -> tensor to add to, from an earlier call on other units of the same sum. If this
                raises, it may hold a part of this call's units, and must be thrown away.
            clipping: in place of the engine's, for this call.
            counts: if False, no unit is added, as if none were finite: the pass runs for other processes that
                hold parts of the model.

        Returns:
            Sum over units, its bound, and the units' norms, shape (U,), float64 (over all parameters;
            with several groups also of each, (U, L)).

        Guarantee:
            Adding or removing one unit moves `total` by at most `bound` (L2, all parameters
            together, to float32 rounding). A unit whose loss or gradient is not finite counts as
            zero. Every use of every trainable parameter is in the norm, or this raises before
            anything is returned. Whether a unit's loss depends on other units is checked here as
            far as gradients show it; see `check` for the rest.

        Raises:
            ConfigError[loss-shape]: not one loss for each unit.
            CoupledExamples[gradient-mixes-examples]: a unit's loss depends on other units' rows.
            UnsupportedModel: a parameter is used in a way whose per-unit gradient is not known.
        """
        refuse_unsupported(self._model)
        if self.held.same_rows is not None:
            self.held.same_rows.require_same(digest(batch))
        params = trainable(self.held)
        clipping = self.clipping if clipping is None else clipping
        groups = self._groups(clipping, params)
        total = SumsOnDemand(params) if out is None else out
        if batch is not None and num_rows(batch) == 0:
            norms = torch.zeros(0, len(groups), dtype=torch.float64)
        elif self.method == "loop":
            norms = loop_norms(self.held, params, groups, losses, batch, num_units, total)
        else:
            norms = self._book_keep(_Work(params, groups, losses, batch, num_units, total, counts))
        return BoundedSum(
            total={name: total[name] for name in params} if out is None else out,
            bound=sensitivity(clipping),
            norms=torch.linalg.vector_norm(norms, dim=1) if len(groups) > 1 else norms[:, 0],
            group_norms=norms if len(groups) > 1 else None,
        )

    def check(self, losses: Losses, batch: Any, *, num_units: int | None = None, max_units: int = 4) -> None:
        """Compare a few units alone with the same units in a batch: losses, then gradients.

        The model runs with its random draws silenced. Units alone go through plain autograd, which
        shares no code with the engine, so this also checks the engine on this very model.

        Args:
            losses: as in `clipped_sum`.
            batch: a tree of tensors; `max_units` of its units are used, such as differ. With fewer than
                two units nothing can be compared.
            num_units: as in `clipped_sum`.
            max_units: how many units are run alone.

        Raises:
            CoupledExamples[loss-mixes-examples]: a unit's loss alone is not its loss in the batch.
            CoupledExamples[random-forward]: the model draws random numbers in a way that cannot be
                silenced, so nothing can be compared.
            UnsupportedModel[self-check]: the engine's clipped sum is not that of plain autograd.
        """
        try:
            _isolation.check(self, self._model, losses, batch, num_units, max_units)
        finally:
            self.proofs.forget()  # with random draws silenced, less may have met

    def explain(self) -> Explanation:
        """How each parameter is clipped, as of the last sum: a table when printed.

        Returns:
            Rows with layer, form, shapes, method, why, time and memory. Nothing before the first sum.
        """
        return Explanation(tuple(self._planner.layers()))

    def _groups(self, clipping: StepClipping, params: Mapping[str, nn.Parameter]) -> tuple[Group, ...]:
        """`resolve`, and the last answer again while nothing that it depends on changes."""
        sizes = tuple(self.held.sizes(params).items())
        last = self._resolved
        if last is None or last[0] != clipping or last[1] != sizes:
            last = self._resolved = (clipping, sizes, resolve(clipping, dict(sizes)))
        return last[2]

    # -- book-keeping ------------------------------------------------------------------------------

    def _book_keep(self, work: "_Work") -> Tensor:
        force = False
        for _ in range(8):
            try:
                return self._book_keep_once(work, force)
            except NotProven as again:
                if work.touched:  # or, held apart, other processes may have gone on
                    break
                self.proofs.not_meetings |= again.not_meetings
                force = True
            except PlannedAnew as again:
                if work.touched:
                    raise ConfigError(
                        "What was planned for other shapes exceeds memory_budget with these, and other "
                        "processes have gone on. Raise memory_budget, or leave it out.",
                        code="memory-budget",
                    ) from again
        raise UnsupportedModel(
            "The model does not run the same operations twice, so its gradients cannot be assigned to "
            "examples. Use method='loop'.",
            code="unstable-forward",
        )

    def _book_keep_once(self, work: "_Work", force: bool) -> Tensor:
        held = self.held
        before = State(held, work.params)
        everything = held.parameters().values() if held.apart else None
        names = {module: name for name, module in self._model.named_modules()}
        capture = Capture(work.params, names, self._rules, self.proofs.not_meetings, everything)
        loss_R, units = self._forward(capture, work, names)
        if units == 0:
            return torch.zeros(0, len(work.groups), dtype=torch.float64)
        before.refuse_changes(work.params)
        context = (capture.trace, loss_R.shape[0] // units, work.num_rows // units)
        proven = self.proofs.of(context)
        probe = units > 1 and (force or self.proofs.needed(context, capture.entries, units))
        probe = held.any_rank(probe)
        if held.apart and len(work.groups) > 1 and not work.norms_only:
            held.require_order(ready(work.groups, capture.entries))
        leaves = graph_leaves(loss_R)
        refuse_bypass(leaves, capture, work.params, apart=held.apart)
        norms = GroupNorms(
            work.groups,
            torch.isfinite(loss_R.detach().reshape(units, -1)).all(1) & work.counts,
            round_up({sum_dtype(p) for p in work.params.values()}),
            held.same_rows,
        )
        with capture, torch.autograd.set_multithreading_enabled(False), gradients_kept(leaves):
            found = self._prove_alike(capture, loss_R, units, proven, work) if probe else None
            refuse_unseen(capture)  # before anything is added

            def layout_of(entry: Entry, index: int, g: Tensor) -> Layout:
                if units == 1:
                    return Layout(0, 1)
                if found is None:
                    return reused(proven.get(entry.key, {}), units, g.shape)
                layout = found.get(entry.key, {}).get(index)
                if layout is None:
                    raise NotProven
                return layout

            self._clip(capture, loss_R, layout_of, norms, work)
            refuse_unseen(capture)
        before.refuse_changes(work.params)
        all_norms = norms.all_norms()
        if units > 1:
            self.proofs.used(context)
        if not work.norms_only:
            finite_U = torch.isfinite(all_norms).all(1)
            self.refuse_spreading(work.losses, work.batch, finite_U if work.counts else finite_U | True)
        return all_norms

    def refuse_spreading(self, losses: Losses, batch: Any, finite_U: Tensor) -> None:
        """Refuse a unit that is not finite in its batch, and is alone: zeros do not keep infinities apart."""
        bad = torch.nonzero(~finite_U).flatten().tolist()
        if batch is None or len(finite_U) == 1:
            bad = []
        more = self.held.any_rank(bool(bad))
        if not more:
            return
        with torch.random.fork_rng(devices=_cuda_devices(finite_U)):
            while more:
                unit = bad.pop(0) if bad else None  # None: other processes need a pass
                if self._is_finite_alone(losses, batch, len(finite_U), unit or 0) and unit is not None:
                    raise CoupledExamples(
                        "An example's gradient is not finite in its batch, and is finite alone: another "
                        "example's infinity or NaN reaches it, through a product with zero (packed "
                        "sequences, masks that multiply). Keep examples apart by torch.where, or by an axis "
                        "of their own.",
                        code="gradient-mixes-examples",
                    )
                more = self.held.any_rank(bool(bad))

    def _is_finite_alone(self, losses: Losses, batch: Any, units: int, unit: int) -> bool:
        """Whether a unit's gradient is finite when the unit runs alone."""
        k = num_rows(batch) // units
        alone = rows(batch, unit * k, (unit + 1) * k)
        params = trainable(self.held)
        groups = self._groups(self.clipping, params)
        if self.held.apart:  # plain autograd would add the gradients of the processes' units
            work = _Work(params, groups, losses, alone, 1, {}, counts=True, norms_only=True)
            return bool(torch.isfinite(self._book_keep(work)).all())
        loss = losses(alone)
        grads = plain_gradients(loss, list(params.values()))
        found = (loss, *(g for g in grads if g is not None))
        return all(bool(torch.isfinite(t).all()) for t in found)

    def _forward(self, capture: Capture, work: "_Work", names: Mapping[nn.Module, str]) -> tuple[Tensor, int]:

        def on_module(module: nn.Module, args: Any, output: Any) -> None:
            if module in names and all(child is None for child in module._modules.values()):
                capture.events.append(names[module] or type(module).__name__)

        hook = register_module_forward_hook(on_module)
        batch, num_units = work.batch, work.num_units
        try:
            with capture:
                loss_R = work.losses() if batch is None else work.losses(batch)
        finally:
            hook.remove()
        check_losses(loss_R, None if batch is None or num_units is not None else work.num_rows)
        if batch is not None and num_units is not None:
            checked_units(work.num_rows, num_units)
        size = loss_R.shape[0]
        return loss_R, size if num_units is None else checked_units(size, num_units)

    def _clip(
        self, capture: Capture, loss_R: Tensor, layout_of: LayoutOf, norms: GroupNorms, work: "_Work"
    ) -> None:
        """One backward that clips; two, where norms come first."""
        work.touched |= self.held.apart
        planner, ones = self._planner, torch.ones_like(loss_R)
        planner.begin()
        waiting = planner.wait if planner.limited else None

        def run(consumer: Consumer, *, last: bool) -> None:
            visitor = FormVisitor(
                capture.entries,
                capture.leaves,
                layout_of,
                consumer,
                last=last,
                apart=self.held.apart,
                waiting=waiting if isinstance(consumer, Clip) else None,
            )
            if isinstance(consumer, Clip):
                consumer.expect(visitor.uses)
            capture.begin_backward(visitor, planner.forget_inputs)
            try:
                run_backward(loss_R, ones, retain_graph=not last)
                with torch.no_grad(), capture.stage.pause(loss_R.device):
                    visitor.finish()
                    if isinstance(consumer, Clip | Sums):
                        consumer.finish()
            finally:
                planner.forget_inputs()
                work.touched |= isinstance(consumer, Clip | Sums) and consumer.has_added

        if work.norms_only:
            run(Norms(norms, planner, work.params), last=True)
        elif self.method == "ghost":
            with torch.random.fork_rng(devices=_cuda_devices(loss_R)):  # what runs again draws alike in both
                run(Norms(norms, planner, work.params), last=False)
            if capture.half:
                norms.expect_other_digits()
            run(Sums(norms, work.total, planner, work.params), last=True)
        else:
            run(Clip(norms, work.total, planner, work.params), last=True)
        planner.end()

    # -- proofs ------------------------------------------------------------------------------------

    def _prove_alike(
        self, capture: Capture, loss_R: Tensor, units: int, proven: Proven, work: "_Work"
    ) -> dict[Key, dict[int, Layout | None]] | None:
        """`_prove`, and again for all processes if one of them needs it; nothing to prove for one unit."""
        found, again = None, None
        if units == 1:  # the others' passes gather parameters from this process
            for _ in range(2):
                capture.begin_backward(Unseen())
                run_backward(loss_R, torch.ones_like(loss_R), retain_graph=True)
        else:
            try:
                found = self._prove(capture, loss_R, units, proven, work)
            except NotProven as e:
                again = e
        if self.held.any_rank(again is not None):
            raise again or NotProven
        return found

    def _prove(
        self, capture: Capture, loss_R: Tensor, units: int, proven: Proven, work: "_Work"
    ) -> dict[Key, dict[int, Layout | None]]:
        """Two backward passes: the layout of every output that receives a gradient."""
        seed = int.from_bytes(os.urandom(7), "little")
        ones, scaled = Fingerprints(units, seed), Fingerprints(units, seed)
        capture.begin_backward(ones)
        run_backward(loss_R, torch.ones_like(loss_R), retain_graph=True)
        half = torch.float16 in {*ones.dtypes.values(), *(p.dtype for p in work.params.values())}
        weights_U = probe_weights(units, half=half)
        if self.held.same_rows is not None:  # one backward through all processes
            weights_U = self.held.same_rows.agreed(weights_U)
        capture.begin_backward(scaled)
        weights_R = weights_U.to(loss_R).repeat_interleave(loss_R.shape[0] // units)
        run_backward(loss_R, weights_R, retain_graph=True)
        return layouts_of(capture, ones, scaled, weights_U, proven, has_batch=work.batch is not None)


@dataclass(slots=True, eq=False)
class _Work:
    """One call: what to run, and what to add to. `touched`: something may have been added."""

    params: Mapping[str, nn.Parameter]
    groups: tuple[Group, ...]
    losses: Losses
    batch: Any
    num_units: int | None
    total: Mapping[str, Tensor] | Scattered
    counts: bool
    norms_only: bool = False
    touched: bool = False

    @property
    def num_rows(self) -> int:
        return 0 if self.batch is None else num_rows(self.batch)


def clipped_sum(
    model: nn.Module,
    losses: Losses,
    batch: Any = None,
    *,
    max_norm: float | None = None,
    clipping: StepClipping | None = None,
    num_units: int | None = None,
    method: Method = "book-keeping",
    rules: Mapping[Callable[..., Any], OpRule] = BUILTIN,
) -> BoundedSum:
    """The sum of each example's clipped gradient, for any model as it is.

    Args:
        model: any module; left untouched.
        losses: a callable that runs the model and returns per-unit losses, shape (B,). Called as
            `losses(batch)` if `batch` is given, else as `losses()`. If it returns k losses for each
            of `num_units` units, in contiguous rows, a unit's loss is their sum.
        batch: a tree of tensors, example axis first. With it, a few examples are also run alone,
            and compared. Without it, only what gradients show can be checked: a batch statistic
            taken of raw inputs, or cut off from the gradient, passes unseen. Prefer giving it.
        max_norm: clipping norm C of flat clipping, in loss units per weight unit; finite, > 0.
        clipping: any other way to clip, in place of `max_norm`; see `reticent.clipping`.
        num_units: U, where a unit has more than one row (augmentations, users); rows of a unit are
            contiguous.
        method: see `ClipEngine`.
        rules: see `ClipEngine`.

    Returns:
        `total`: parameter name -> tensor of its shape, float32, or float64 if the model is, for
        every trainable parameter; `bound`; `norms`: (B,), float64, before clipping, infinite
        for a unit that is not finite and so counts as zero. None of it is private.

    Guarantee:
        Adding or removing one unit moves `total` by at most `bound` (L2, all parameters together,
        to float32 rounding), or this raises.

    Raises:
        ConfigError, CoupledExamples, UnsupportedModel: as `ClipEngine.clipped_sum` and
            `ClipEngine.check`.

    Sources:
        Abadi et al. 2016, arXiv:1607.00133; Bu et al. 2022, arXiv:2210.00038.
    """
    engine = ClipEngine(model, max_norm=max_norm, clipping=clipping, method=method, rules=rules)
    if batch is not None:
        engine.check(losses, batch, num_units=num_units)
    return engine.clipped_sum(losses, batch, num_units=num_units)
