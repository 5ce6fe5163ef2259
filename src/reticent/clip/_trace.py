"""A clipped sum written down as one graph: a function of parameters, buffers, rows and a mask of real units.

The model runs once on tensors without values, so whatever its Python would decide by looking at
values raises, and is refused: nothing of the data can be baked into the graph. Which entries belong
to which unit is proven on the traced program itself, which may differ from what runs eagerly.

Room: clip. May import torch, `reticent.rules`, `reticent.errors`.

Shape letters (this file): U units of the physical batch, padding included.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import TreeSpec, tree_unflatten

from reticent.clip._capture import Capture
from reticent.clip._engine import (
    _ROUND_UP,
    ClipEngine,
    Losses,
    Proven,
    _gradients_kept,
    _graph_leaves,
    _NotProven,
    _refuse_bypass,
    _run_backward,
    sum_dtype,
)
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._probe import probe_weights
from reticent.errors import UnsupportedModel
from reticent.rules import combine
from reticent.rules._forms import Doubts

if TYPE_CHECKING:
    from torch.fx import GraphModule

_MAX_TRIES = 8
# What recurrent layers rebuild by themselves when their parameters are replaced, and when they are back.
_REBUILT = frozenset(("_flat_weights", "_flat_weight_refs"))


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
    """

    engine: ClipEngine
    model: nn.Module
    losses: Losses
    spec: TreeSpec
    others: Mapping[int, Any]
    num_units: int
    one_loss: bool

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The batch with these tensors in it."""
        rest = iter(tensors)
        leaves = [
            self.others[i] if i in self.others else next(rest) for i in range(len(tensors) + len(self.others))
        ]
        return tree_unflatten(leaves, self.spec)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """`module(*inputs, *constants)` -> the body's outputs.

    Args:
        module: the graph.
        constants: tensors that the model or the losses used without their being parameters, buffers or
            rows (attributes, what the losses close over): read anew in every run.
        draws: whether it draws random numbers.
    """

    module: "GraphModule"
    constants: tuple[Tensor, ...]
    draws: bool


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
        box: list[Capture] = []

        def body(tensors: Sequence[Tensor], box: list[Capture] = box) -> tuple[Tensor, ...]:
            with _captured(setting, tensors[:-1], tensors[-1]) as (capture, _, _):
                box.append(capture)
                return tuple(
                    entry.grads[i][j] for entry in capture.entries if entry.grads for i, j in _slots(entry)
                )

        graph = trace(body, [*inputs, weights_U], setting.model)
        with torch.no_grad(), without_autocast(inputs):
            grads = iter(graph.module(*inputs, weights_U, *graph.constants))
        capture, proven = box[0], {}
        for entry in capture.entries:
            for i, j in _slots(entry) if entry.grads else ():
                entry.grads[i][j] = next(grads)  # the real ones
        try:
            complete = _prove_entries(engine, capture, units, weights_U, proven)
        except _NotProven as again:
            engine._not_meetings |= again.not_meetings
            continue
        return (proven, capture.trace) if complete or units == 1 else None
    return None


def _slots(entry: Any) -> list[tuple[int, int]]:
    return [(i, j) for j in sorted(entry.grads[0]) for i in (0, 1)]


def _prove_entries(
    engine: ClipEngine, capture: Capture, units: int, weights_U: Tensor, proven: Proven
) -> bool:
    """Fill `proven`; whether nothing is left open."""
    layouts = {e: engine._layouts_of(e, units, weights_U, proven) for e in capture.entries if e.grads}
    mixed = [e for e, found in layouts.items() if None in found.values()]
    optional = frozenset(e.key for e in mixed if e.optional)
    if optional:
        raise _NotProven(optional)
    if mixed:
        raise engine._mixing_error(capture, mixed, layouts)
    return all(proven.get(e.key) for e in layouts)


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
        sum for each of these names; and for each unit, shape (U,), its norm, float64, rounded up; whether
        it is finite; and whether its norm was rounded up by so much that it was left out of the sums. The
        sums mean something only if all units are finite, padding too.
    """
    names: list[str] = []
    proven, operations = proof

    def body(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        *state_and_rows, real_U, max_norm = tensors
        with _captured(setting, state_and_rows, None) as (capture, params, loss_R):
            with torch.no_grad(), without_autocast(tensors):
                if capture.trace != operations:
                    raise _untraceable("the operations it runs are not the same twice")
                forms = setting.engine._forms(capture, setting.num_units, None, proven, True)
                doubts: Doubts = []
                whole = {name: combine(forms.pop(name)) for name in list(forms)}
                names[:] = whole
                square_U = sum(
                    (form.squared_norm(doubts) for form in whole.values()),
                    torch.zeros(real_U.shape, dtype=torch.float64, device=real_U.device),
                )
                slack = max(_ROUND_UP[sum_dtype(params[name])] for name in whole)
                norm_U = square_U.sqrt() * (1 + slack)
                finite_U = torch.isfinite(loss_R.reshape(len(real_U), -1)).all(1) & torch.isfinite(norm_U)
                doubt_U = torch.zeros_like(real_U)
                for more_U in doubts:
                    doubt_U = doubt_U | more_U
                # What is left out has weight zero; a unit that is not finite needs another run without it.
                weight_U = (max_norm / norm_U).clamp_max(1.0)
                weight_U = torch.where(real_U & ~doubt_U, weight_U, 0.0)
                sums = []
                for name in names:
                    out = torch.zeros_like(params[name], dtype=sum_dtype(params[name]))
                    whole.pop(name).add_weighted(weight_U, None, out)
                    sums.append(out)
            return (*sums, norm_U, finite_U, doubt_U)

    graph = trace(body, inputs, setting.model)
    return graph, names


@contextmanager
def _captured(
    setting: Setting, tensors: Sequence[Tensor], weights_U: Tensor | None
) -> Iterator[tuple[Capture, dict[str, Tensor], Tensor]]:
    """Forward and backward of the model with `tensors` as state and rows; two backwards with weights."""
    model = setting.model
    param_names, buffer_names = state_names(model)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    own = {id(p): n for n, p in model.named_parameters()}
    params = [t.detach().requires_grad_(n in trains) for n, t in zip(param_names, tensors, strict=False)]
    rest = tensors[len(params) :]
    state = dict(zip(param_names, params, strict=True)) | dict(zip(buffer_names, rest, strict=False))
    batch = setting.batch(rest[len(buffer_names) :])
    with torch.enable_grad(), _reparametrize_module(model, state, tie_weights=True, stack_weights=True):
        trained: Any = {n: p for n, p in zip(param_names, params, strict=True) if n in trains}
        before = State(model, trained)
        capture = Capture(trained, model, setting.engine._rules, setting.engine._not_meetings)
        with capture:
            loss_R = setting.losses(batch)
        units = setting.num_units
        check_losses(loss_R, units if setting.one_loss else None)
        checked_units(loss_R.shape[0], units)
        before.refuse_changes(model, trained)
        leaves = _graph_leaves(loss_R)
        _refuse_bypass(leaves, capture, trained)
        missed = {id(leaf) for leaf in leaves} & own.keys()
        if missed:
            used = sorted(own[i] for i in missed)
            raise _untraceable(f"it keeps {used} in a list, dict or closure of its own and uses them there")
        with capture, torch.autograd.set_multithreading_enabled(False), _gradients_kept(leaves):
            capture.begin_backward(0)
            _run_backward(loss_R, torch.ones_like(loss_R), retain_graph=weights_U is not None)
            if weights_U is not None:
                capture.begin_backward(1)
                scaled = weights_U.to(loss_R).repeat_interleave(loss_R.shape[0] // units)
                _run_backward(loss_R, scaled, retain_graph=False)
        capture.end_backward()
        before.refuse_changes(model, trained)
        yield capture, trained, loss_R.detach()


def trace(
    body: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], inputs: Sequence[Tensor], model: nn.Module
) -> Graph:
    """Run `body` on tensors of the inputs' shapes, without values, and write down what it does.

    Raises:
        UnsupportedModel[compile-data-dependent]: Python looks at a value.
        UnsupportedModel[compile-side-effect]: the forward changes an attribute of a module, or draws from
            Python's random numbers: in a graph that would happen once, not in every run.
    """
    from torch._subclasses.fake_tensor import (  # slow to import: only for whoever compiles
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        UnsupportedOperatorException,
    )
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    before = {m: (dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()}
    python_random = random.getstate()
    try:
        module = make_fx(lambda *tensors: body(tensors), tracing_mode="fake", _allow_non_fake_inputs=True)(
            *inputs
        )
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        GuardOnDataDependentSymNode,
        UnsupportedOperatorException,
    ) as error:
        name = getattr(error, "func", None) or "a comparison"
        raise UnsupportedModel(
            f"The model, the losses or a rule decide by a value what to run ({name}), so no one graph does "
            "the same. Decide with torch.where, or by shapes and settings only; or use ClipEngine, which "
            "does not compile.",
            code="compile-data-dependent",
        ) from error
    finally:
        changed = _restore(before)
    if changed:
        raise _side_effect(f"the forward sets {sorted(changed)[:4]}")
    if random.getstate() != python_random:
        raise _side_effect("the forward draws from Python's random numbers (use torch's)")
    constants = _lift_constants(module)
    _drop_zeros(module)
    if any(isinstance(t, FakeTensor) for t in constants):
        raise _side_effect("a tensor of an earlier trace is used")
    return Graph(module=module, constants=constants, draws=any(_draws(node) for node in module.graph.nodes))


def _restore(before: Mapping[nn.Module, tuple[dict[str, Any], ...]]) -> set[str]:
    """Undo what a trace set on the modules: no tensor without values may stay behind."""
    changed = set()
    for module, (attributes, *stores) in before.items():
        now = vars(module)
        names = {n for n in now if now[n] is not attributes.get(n, now)} | (attributes.keys() - now.keys())
        for name in names:
            now.pop(name, None)
        now |= {name: attributes[name] for name in names & attributes.keys()}
        names -= _REBUILT
        for store, tensors in zip((module._parameters, module._buffers), stores, strict=True):
            if any(store.get(n, before) is not tensors.get(n, now) for n in store.keys() | tensors.keys()):
                names |= store.keys()
                store.clear()
                store.update(tensors)
        changed |= {f"{type(module).__name__}.{name}" for name in names}
    return changed


def _side_effect(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"While the graph was traced, {what}: in the graph that would not happen again in every run. Move it "
        "out of the forward, or use ClipEngine, which does not compile.",
        code="compile-side-effect",
    )


def _untraceable(why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The model cannot be written down as one graph: {why}. Use ClipEngine, which does not compile.",
        code="compile-unstable",
    )


def _lift_constants(module: "GraphModule") -> tuple[Tensor, ...]:
    """Turn tensors stored in the graph into inputs, so that it reads them as they are in every run."""
    graph, found = module.graph, {}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    last = placeholders[-1]
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        if id(tensor) not in found:
            with graph.inserting_after(last):
                last = graph.placeholder(f"constant_{len(found)}")
            last.meta = dict(node.meta)
            found[id(tensor)] = (tensor, last)
        node.replace_all_uses_with(found[id(tensor)][1])
        graph.erase_node(node)
    graph.lint()
    module.recompile()
    return tuple(tensor.detach() for tensor, _ in found.values())


def _drop_zeros(module: "GraphModule") -> None:
    """0 + a b is a b: the product need not read the zeros that a sum starts from."""
    graph, aten = module.graph, torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.addmm_.default):
        start, a, b = node.args[:3]
        zeros = start.target in (aten.zeros_like.default, aten.zeros.default)
        if not zeros or len(start.users) != 1 or node.kwargs or len(node.args) != 3:
            continue
        if start.meta["val"].dtype != a.meta["val"].dtype:
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (a, b))
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)
        graph.erase_node(start)
    module.recompile()


def _draws(node: Any) -> bool:
    """Whether a node of the graph draws random numbers."""
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    arguments = node.target._schema.arguments
    given = {a.name: v for a, v in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return (defaults | given).get("dropout_p") != 0.0  # attention is tagged, with dropout or without
