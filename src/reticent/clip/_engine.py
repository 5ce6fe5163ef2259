"""The clip engine: capture, prove, norms, weights, sums.

Room: clip. May import torch, `reticent.rules`, `reticent.bounded`, `reticent.errors`.

Shape letters (this file): U privacy units, R rows of the batch (U times k).

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133 (per-example clipping).
    [2] Bu et al. 2022, arXiv:2210.00038 (one backward: norms, then sums from what it left).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.module import register_module_forward_hook

from reticent.bounded import BoundedSum
from reticent.clip import _isolation
from reticent.clip._batch import num_rows, rows
from reticent.clip._capture import CallKind, Capture, Entry
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._probe import probe_weights, prove_layout
from reticent.clip._pull import pull_back
from reticent.clip._refuse import refuse_unsupported
from reticent.errors import ConfigError, CoupledExamples, UnsupportedModel
from reticent.records import FlatClipping
from reticent.rules import BUILTIN, Dense, Form, Layout, OpRule, combine
from reticent.rules._replay import Rows, elementwise_forms, expansion_forms, unit_by_unit_forms

Key = tuple[str, str, int]
# Proven layouts: meeting -> entries of one unit along the axis -> layout; 0: however many there are.
Proven = dict[Key, dict[int, Layout]]
Losses = Callable[..., Tensor]
_MAX_CONTEXTS = 256
# Norms are rounded up by this share, above the rounding of a float32 backward.
_ROUND_UP = {torch.float64: 1e-13, torch.float32: 4e-6}


class _NotProven(Exception):
    """An optional meeting is none, or a meeting appeared that has not been proven: run again."""

    def __init__(self, not_meetings: frozenset[Key] = frozenset()) -> None:
        super().__init__()
        self.not_meetings = not_meetings


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter that requires a gradient; one name for a shared one.

    Raises:
        ConfigError[nothing-to-train]: there is none.
        UnsupportedModel[complex-parameter]: one is not real.
        UnsupportedModel[parameter-hook]: one has a gradient hook.
    """
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise ConfigError(
            "The model has no parameter with requires_grad=True. Unfreeze what should be trained.",
            code="nothing-to-train",
        )
    for name, p in params.items():
        if p._backward_hooks:
            raise UnsupportedModel(
                f"Parameter '{name}' has a gradient hook, which would not run on per-example gradients. "
                "Remove it, or apply what it does to the optimizer's gradient.",
                code="parameter-hook",
            )
        if not p.is_floating_point():
            raise UnsupportedModel(
                f"Parameter '{name}' is {p.dtype}: only real parameters are supported. Store real and "
                "imaginary parts as a real parameter, and use torch.view_as_complex in the forward.",
                code="complex-parameter",
            )
    return params


def sum_dtype(param: Tensor) -> torch.dtype:
    """Clipped sums are kept in float32, or float64 if the parameter is."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


class ClipEngine:
    """Clips each unit's gradient to one norm over all parameters, and sums: for one model, many steps.

    Nothing is hung on the model; between calls the engine keeps only where in the model's recorded
    operations the units lie (no data). Two engines on one model do not know of each other.

    Args:
        model: any module. Its mode, its gradients and its parameters are left as they are.
        max_norm: clipping norm C, in loss units per weight unit; finite, > 0.
        method: "book-keeping" takes one forward and one backward for all units; "loop" runs each
            unit alone through plain autograd: slow, and exact for any model that runs on a batch of
            one, so it is the way out for operations that the other refuses.
        rules: operation -> rule, for "book-keeping"; see `reticent.rules`.

    Raises:
        ConfigError[clip-norm]: `max_norm` is not a finite positive number.
        ConfigError[clip-method]: unknown method.
        UnsupportedModel: the model holds a layer refused by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_norm: float,
        method: Literal["book-keeping", "loop"] = "book-keeping",
        rules: Mapping[Callable[..., Any], OpRule] = BUILTIN,
    ) -> None:
        if method not in ("book-keeping", "loop"):
            raise ConfigError(f"method must be 'book-keeping' or 'loop', got {method!r}.", code="clip-method")
        self.max_norm = FlatClipping(max_norm=max_norm).max_norm
        self.method = method
        self._model = model
        self._rules = rules
        self._layouts: dict[tuple[int, ...], Proven] = {}
        self._not_meetings: frozenset[Key] = frozenset()
        trainable(model)
        refuse_unsupported(model)

    def clipped_sum(
        self,
        losses: Losses,
        batch: Any = None,
        *,
        num_units: int | None = None,
        out: dict[str, Tensor] | None = None,
    ) -> BoundedSum:
        """Scale each unit's gradient to L2 norm at most `max_norm`, then add them.

        Args:
            losses: runs the model and returns losses, shape (R,): one for each unit, or k for each
                unit in contiguous rows, whose sum is then the unit's loss. Called as
                `losses(batch)`, or `losses()` if `batch` is None.
            batch: a tree of tensors, example axis first. R may be 0.
            num_units: U, if a unit has more than one row; None: every loss is a unit.
            out: name -> tensor to add to, from an earlier call on other units of the same sum.

        Returns:
            Sum over units, its bound C, and the units' norms, shape (U,), float64.

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
        params = trainable(self._model)
        total = (
            {n: torch.zeros_like(p, dtype=sum_dtype(p)) for n, p in params.items()} if out is None else out
        )
        if batch is not None and num_rows(batch) == 0:
            return BoundedSum(total=total, bound=self.max_norm, norms=torch.zeros(0, dtype=torch.float64))
        if self.method == "loop":
            norms = self._loop(params, losses, batch, num_units, total)
        else:
            norms = self._book_keep(params, losses, batch, num_units, total)
        return BoundedSum(total=total, bound=self.max_norm, norms=norms)

    def check(self, losses: Losses, batch: Any, *, num_units: int | None = None, max_units: int = 4) -> None:
        """Compare a few units alone with the same units in a batch: losses, then gradients.

        The model runs with its random draws silenced. Units alone go through plain autograd, which
        shares no code with the engine, so this also checks the engine on this very model.

        Args:
            losses: as in `clipped_sum`.
            batch: a tree of tensors; its first `max_units` units are used. With fewer than two
                units nothing can be compared.
            num_units: as in `clipped_sum`.
            max_units: how many units are run alone.

        Raises:
            CoupledExamples[loss-mixes-examples]: a unit's loss alone is not its loss in the batch.
            CoupledExamples[random-forward]: the model draws random numbers in a way that cannot be
                silenced, so nothing can be compared.
            UnsupportedModel[self-check]: the engine's clipped sum is not that of plain autograd.
        """
        _isolation.check(self, self._model, losses, batch, num_units, max_units)

    # -- one unit at a time ------------------------------------------------------------------------

    def _loop(
        self,
        params: Mapping[str, nn.Parameter],
        losses: Losses,
        batch: Any,
        num_units: int | None,
        total: dict[str, Tensor],
    ) -> Tensor:
        if batch is None:
            raise ConfigError("method='loop' needs `batch`, to run each unit alone.", code="loop-needs-batch")
        size = num_rows(batch)
        units = size if num_units is None else checked_units(size, num_units)
        norms = []
        before = State(self._model, params)
        for unit in range(units):
            k = size // units
            loss = losses(rows(batch, unit * k, (unit + 1) * k))
            check_losses(loss, k if num_units is None else None)
            grads = _plain_gradients(loss, list(params.values()))
            norms.append(self._add_one(params, grads, bool(torch.isfinite(loss).all()), total))
        before.refuse_changes(self._model, params)
        return torch.tensor(norms, dtype=torch.float64)

    def _add_one(
        self,
        params: Mapping[str, nn.Parameter],
        grads: Sequence[Tensor | None],
        finite: bool,
        total: dict[str, Tensor],
    ) -> float:
        square = sum(float(g.double().square().sum()) for g in grads if g is not None)
        norm = math.sqrt(square) if finite and math.isfinite(square) else math.inf
        if math.isfinite(norm):
            weight = min(1.0, self.max_norm / norm) if norm > 0 else 1.0
            for name, grad in zip(params, grads, strict=True):
                if grad is not None:
                    total[name].add_(grad.to(total[name].dtype), alpha=weight)
        return norm

    # -- book-keeping ------------------------------------------------------------------------------

    def _book_keep(
        self,
        params: Mapping[str, nn.Parameter],
        losses: Losses,
        batch: Any,
        num_units: int | None,
        total: dict[str, Tensor],
    ) -> Tensor:
        force = False
        for _ in range(8):
            try:
                return self._book_keep_once(params, losses, batch, num_units, total, force)
            except _NotProven as again:
                self._not_meetings |= again.not_meetings
                force = True
        raise UnsupportedModel(
            "The model does not run the same operations twice, so its gradients cannot be assigned to "
            "examples. Use method='loop'.",
            code="unstable-forward",
        )

    def _book_keep_once(
        self,
        params: Mapping[str, nn.Parameter],
        losses: Losses,
        batch: Any,
        num_units: int | None,
        total: dict[str, Tensor],
        force: bool,
    ) -> Tensor:
        before = State(self._model, params)
        capture = Capture(params, self._model, self._rules, self._not_meetings)
        names = {id(m): n for n, m in self._model.named_modules()}

        def on_module(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in names and not any(True for _ in module.children()):
                capture.events.append(names[id(module)] or type(module).__name__)

        hook = register_module_forward_hook(on_module)
        try:
            with capture:
                loss_R = losses() if batch is None else losses(batch)
        finally:
            hook.remove()
        check_losses(loss_R, None if batch is None or num_units is not None else num_rows(batch))
        if batch is not None and num_units is not None:
            checked_units(num_rows(batch), num_units)
        units = loss_R.shape[0] if num_units is None else checked_units(loss_R.shape[0], num_units)
        if units == 0:
            return torch.zeros(0, dtype=torch.float64)
        before.refuse_changes(self._model, params)
        # Proofs hold for the same operations in the same order, on as many rows a unit.
        batch_rows = 0 if batch is None else num_rows(batch)
        context = (capture.trace, loss_R.shape[0] // units, batch_rows // units)
        if context not in self._layouts and len(self._layouts) >= _MAX_CONTEXTS:
            self._layouts.clear()
        proven = self._layouts.setdefault(context, {})
        probe = units > 1 and (force or any(entry.key not in proven for entry in capture.entries))
        weights_U = self._backward(capture, loss_R, units, probe, params)
        before.refuse_changes(self._model, params)
        with torch.no_grad():
            forms = self._forms(capture, units, weights_U, proven, batch is not None)
            capture.entries.clear()
            finite_U = torch.isfinite(loss_R.reshape(units, -1)).all(1)
            return self._sum(params, forms, finite_U, total)

    def _backward(
        self, capture: Capture, loss_R: Tensor, units: int, probe: bool, params: Mapping[str, nn.Parameter]
    ) -> Tensor | None:
        """One backward; two, the second to prove layouts, where a meeting is new."""
        leaves = _graph_leaves(loss_R)
        _refuse_bypass(leaves, capture, params)
        half = any(p.dtype == torch.float16 for p in params.values())
        weights_U = probe_weights(units, half=half) if probe else None
        with capture, torch.autograd.set_multithreading_enabled(False), _gradients_kept(leaves):
            capture.begin_backward(0)
            _run_backward(loss_R, torch.ones_like(loss_R), retain_graph=probe)
            if weights_U is not None:
                capture.begin_backward(1)
                scaled = weights_U.to(loss_R).repeat_interleave(loss_R.shape[0] // units)
                _run_backward(loss_R, scaled, retain_graph=False)
        capture.end_backward()
        return weights_U

    def _layouts_of(
        self, entry: Entry, units: int, weights_U: Tensor | None, proven: Proven
    ) -> dict[int, Layout | None]:
        """Output -> layout of every output that received a gradient."""
        if units == 1:
            return {i: Layout(0, 1) for i in entry.grads[0]}
        if weights_U is None:
            return {i: _reused(proven.get(entry.key, {}), units, g) for i, g in entry.grads[0].items()}
        found: dict[int, Layout | None] = {}
        unique = True
        for i, ones in entry.grads[0].items():
            found[i], only = prove_layout(ones, entry.grads[1][i], weights_U)
            unique &= only
        layouts = set(found.values())
        if unique and len(layouts) == 1 and (layout := layouts.pop()) is not None:
            for g in entry.grads[0].values():
                size = g.shape[layout.axis] // units
                any_size = layout.inner is None and size > 1  # of a single entry, no order is proven
                proven.setdefault(entry.key, {})[0 if any_size else size] = layout
        return found

    def _forms(
        self,
        capture: Capture,
        units: int,
        weights_U: Tensor | None,
        proven: Proven,
        has_batch: bool,
    ) -> dict[str, list[Form]]:
        layouts: dict[Entry, dict[int, Layout | None]] = {}
        for entry in capture.entries:
            if entry.grads:
                layouts[entry] = self._layouts_of(entry, units, weights_U, proven)
            elif weights_U is not None:
                proven.setdefault(entry.key, {})
        mixed = [e for e, found in layouts.items() if None in found.values()]
        # Without the batch, what was looked up or expanded may be data: mixed, it is refused.
        optional = frozenset(e.key for e in mixed if e.optional and (e.constant or has_batch))
        if optional and len(optional) == len({e.key for e in mixed if e.optional}):
            raise _NotProven(optional)
        if mixed:
            raise self._mixing_error(capture, mixed, layouts)
        forms: dict[str, list[Form]] = {}
        for entry, found in layouts.items():
            for role, form in self._entry_forms(entry, found).items():
                pull_back(entry.values[role], form, capture.leaves, forms)
        return forms

    def _entry_forms(self, entry: Entry, found: dict[int, Layout | None]) -> Mapping[Any, Form | Rows]:
        grads = entry.grads[0]
        if entry.meeting is not None:
            layout = found[0]
            assert layout is not None
            if not (entry.meeting.accepts(layout, grads[0].dim()) or layout.num_units == 1):
                raise UnsupportedModel(
                    f"The examples lie along an axis that {entry.describe()} works over. Put the example "
                    "axis first, freeze the parameter, or use method='loop'.",
                    code="example-axis",
                )
            return entry.meeting.forms(entry.saved, grads[0], layout)
        assert entry.call is not None
        if entry.call.is_stale():
            raise UnsupportedModel(
                f"An argument of {entry.describe()} was overwritten by a later in-place operation, and its "
                "gradient needs it. Write that operation out of place.",
                code="in-place-parameter",
            )
        if found and next(iter(found.values())) == Layout(0, 1):
            return _whole_forms(entry)
        if entry.kind is not CallKind.OTHER:
            layout = found[0]
            assert layout is not None
            formed = elementwise_forms if entry.kind is CallKind.ELEMENTWISE else expansion_forms
            return formed(entry.call, grads[0], layout)
        outputs = range(len(entry.outputs))
        result = unit_by_unit_forms(
            entry.call, entry.outputs, [grads.get(i) for i in outputs], [found.get(i) for i in outputs]
        )
        if result is None:
            raise UnsupportedModel(
                f"No rule gives per-example gradients for {entry.describe()}, and running that operation on "
                "one example alone does not give the example's part of its output. Freeze the parameter "
                "with requires_grad_(False), write the operation so that examples stay apart (in "
                "mixture-of-experts models: route each example on its own), or use method='loop'.",
                code="no-rule",
            )
        return result

    def _mixing_error(
        self, capture: Capture, mixed: list[Entry], layouts: Mapping[Entry, Any]
    ) -> CoupledExamples | UnsupportedModel:
        """Names what lies between the last recorded output that mixes and the first that does not."""
        last = max(capture.events.index(e) for e in mixed)
        after: list[str] = []
        for event in capture.events[last + 1 :]:
            if isinstance(event, Entry):
                if event in layouts and event not in mixed:
                    break
            elif event not in after:
                after.append(event)
        inside = ", ".join(f"'{name}'" for name in after[:4]) or "the code that follows it"
        return CoupledExamples(
            f"The gradient of one example's loss with respect to the output of {mixed[-1].describe()} "
            f"reaches other examples' rows, or rows that lie in no regular order. Examples are mixed in or "
            f"after {inside}, or in the loss. Use layers that treat each example alone (group or layer "
            "normalisation, routing per example) and a loss that is one value per example.",
            code="gradient-mixes-examples",
        )

    def _sum(
        self,
        params: Mapping[str, nn.Parameter],
        forms: dict[str, list[Form]],
        finite_U: Tensor,
        total: dict[str, Tensor],
    ) -> Tensor:
        """Norms of all parameters together, then the weighted sums."""
        square_U = torch.zeros(finite_U.shape, dtype=torch.float64, device=finite_U.device)
        whole: dict[str, Form] = {}
        for name in list(forms):
            whole[name] = combine(forms.pop(name))
            square_U += whole[name].squared_norm()
        dtypes = {sum_dtype(params[name]) for name in whole} or {torch.float64}
        norm_U = square_U.sqrt() * (1 + max(_ROUND_UP[d] for d in dtypes))
        finite_U = finite_U & torch.isfinite(norm_U)
        norm_U = torch.where(finite_U, norm_U, math.inf)
        weight_U = torch.where(finite_U, (self.max_norm / norm_U).clamp_max(1.0), 0.0)
        keep_U = None if bool(finite_U.all()) else finite_U
        for name in list(whole):
            whole.pop(name).add_weighted(weight_U, keep_U, total[name])
        return norm_U


def _run_backward(loss: Tensor, grad: Tensor, *, retain_graph: bool) -> None:
    """`torch.autograd.backward`, with function modes left on: checkpointing runs forwards in it."""
    run: Any = Variable._execution_engine.run_backward
    run((loss,), (grad,), retain_graph, False, (), allow_unreachable=True, accumulate_grad=True)


@contextmanager
def _gradients_kept(leaves: Sequence[Tensor]) -> Iterator[None]:
    """`.grad` of the leaves is as before afterwards, whatever a backward writes meanwhile."""
    kept = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad


def _plain_gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the summed loss by an ordinary backward (some checkpointing allows no other)."""
    leaves = {id(t): t for t in (*_graph_leaves(loss), *params)}
    with _gradients_kept(list(leaves.values())):
        _run_backward(loss, torch.ones_like(loss), retain_graph=False)
        return [p.grad for p in params]


def _reused(proven: Mapping[int, Layout], units: int, g: Tensor) -> Layout:
    """The layout proven for an output of this size, for another number of units."""
    for size, layout in proven.items():
        here = replace(layout, num_units=units)
        fits = here.axis < g.dim() and here.fits(g.shape[here.axis])
        if fits and size in (0, g.shape[here.axis] // units):
            return here
    raise _NotProven


def _whole_forms(entry: Entry) -> dict[Any, Dense]:
    """A call whose every output belongs to the one unit there is."""
    call = entry.call
    assert call is not None
    tensors = list(call.tensors)
    leaves = {i: tensors[i].clone().requires_grad_() for i in call.trainable}
    for i, leaf in leaves.items():
        tensors[i] = leaf
    with torch.enable_grad():
        ys = call.run(tensors)
        used = sorted(entry.grads[0])
        grads = [entry.grads[0][i].to(ys[i].dtype) for i in used]
        found = torch.autograd.grad([ys[i] for i in used], list(leaves.values()), grads, allow_unused=True)
    return {
        i: Dense((torch.zeros_like(leaf) if g is None else g)[None])
        for (i, leaf), g in zip(leaves.items(), found, strict=True)
    }


def _graph_leaves(loss: Tensor) -> list[Tensor]:
    """Every leaf that the graph reaches."""
    leaves: dict[int, Tensor] = {}
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        node = stack.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return list(leaves.values())


def _refuse_bypass(leaves: list[Tensor], capture: Capture, params: Mapping[str, nn.Parameter]) -> None:
    names = {id(p): n for n, p in params.items()} | {id(t): n for n, t in capture.leaves.items()}
    found = sorted({names[id(leaf)] for leaf in leaves if id(leaf) in names})
    if found:
        raise UnsupportedModel(
            f"Parameters {found} are used where their per-example gradient cannot be seen (a custom autograd "
            "function, a scripted or compiled module). Freeze them with requires_grad_(False), write the "
            "operation with ordinary torch functions, or use method='loop'.",
            code="hidden-use",
        )


def clipped_sum(
    model: nn.Module,
    losses: Losses,
    batch: Any = None,
    *,
    max_norm: float,
    num_units: int | None = None,
    method: Literal["book-keeping", "loop"] = "book-keeping",
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
        max_norm: clipping norm C, in loss units per weight unit; finite, > 0.
        num_units: U, where a unit has more than one row (augmentations, users); rows of a unit are
            contiguous.
        method: see `ClipEngine`.
        rules: see `ClipEngine`.

    Returns:
        `total`: parameter name -> tensor of its shape, float32, or float64 if the model is, for
        every trainable parameter; `bound`: C; `norms`: (B,), float64, before clipping, infinite
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
    engine = ClipEngine(model, max_norm=max_norm, method=method, rules=rules)
    if batch is not None:
        engine.check(losses, batch, num_units=num_units)
    return engine.clipped_sum(losses, batch, num_units=num_units)
