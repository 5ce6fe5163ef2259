"""Writes down what a function of tensors does as one graph, without looking at a value.

Room: clip. May import torch, `reticent.errors`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reticent.errors import ReticentError, UnsupportedModel

if TYPE_CHECKING:
    from torch.fx import GraphModule

_HALF = (torch.float16, torch.bfloat16)
# What recurrent layers rebuild by themselves when their parameters are replaced, and when they are back.
_REBUILT = frozenset(("_flat_weights", "_flat_weight_refs"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """`module(*inputs, *constants)` -> the body's outputs.

    Args:
        module: the graph.
        constants: tensors that the model or the losses used without their being parameters, buffers or
            rows (attributes, what the losses close over): read anew in every run.
        draws: whether it draws random numbers.
        half: whether it computes anything in half precision.
    """

    module: "GraphModule"
    constants: tuple[Tensor, ...]
    draws: bool
    half: bool


def trace(
    body: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], inputs: Sequence[Tensor], model: nn.Module
) -> Graph:
    """Run `body` on tensors of the inputs' shapes, without values, and write down what it does.

    Raises:
        UnsupportedModel[compile-data-dependent]: Python looks at a value.
        UnsupportedModel[compile-side-effect]: the forward changes an attribute of a module, or draws from
            Python's random numbers: in a graph that would happen once, not in every run.
        UnsupportedModel[compile-unstable]: torch cannot run something of it without values.
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
    python_random, numpy_random = random.getstate(), _numpy_state()
    try:
        module = make_fx(lambda *tensors: body(tensors), tracing_mode="fake", _allow_non_fake_inputs=True)(
            *inputs
        )
    except (ReticentError, torch.OutOfMemoryError):
        raise
    except UnsupportedOperatorException as error:
        raise untraceable(
            f"without values torch does not know what {error.func} gives (register_fake tells it)"
        ) from error
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        GuardOnDataDependentSymNode,
    ) as error:
        name = getattr(error, "func", None) or "a comparison"
        raise UnsupportedModel(
            f"The model, the losses or a rule decide by a value what to run ({name}), so no one graph does "
            "the same. Decide with torch.where, or by shapes and settings only; or use ClipEngine, which "
            "does not compile.",
            code="compile-data-dependent",
        ) from error
    except RuntimeError as error:
        raise untraceable(
            f"torch cannot run it without values ({type(error).__name__}): .numpy(), .data_ptr() or an "
            "operation of its own may ask for them"
        ) from error
    finally:
        changed = _restore(before)
    if changed:
        raise _side_effect(f"the forward sets {sorted(changed)[:4]}")
    if random.getstate() != python_random:
        raise _side_effect("the forward draws from Python's random numbers (use torch's)")
    if _numpy_state() != numpy_random:
        raise _side_effect("the forward draws from NumPy's random numbers (use torch's)")
    constants = _lift_constants(module)
    _drop_zeros(module)
    if any(isinstance(t, FakeTensor) for t in constants):
        raise _side_effect("a tensor of an earlier trace is used")
    nodes = list(module.graph.nodes)
    return Graph(
        module=module,
        constants=constants,
        draws=any(_draws(node) for node in nodes),
        half=any(getattr(n.meta.get("val"), "dtype", None) in _HALF for n in nodes),
    )


def untraceable(why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The model cannot be written down as one graph: {why}. Use ClipEngine, which does not compile.",
        code="compile-unstable",
    )


def num_draws() -> int:
    """How many operations that draw random numbers the graph has that is being traced."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode: Any = get_proxy_mode()
    return sum(_draws(node) for node in mode.tracer.graph.nodes)


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


def _numpy_state() -> tuple[Any, ...]:
    """NumPy's global generator, so that it can be compared."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return kind, np.asarray(keys).tobytes(), *rest


def _side_effect(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"While the graph was traced, {what}: in the graph that would not happen again in every run. Move it "
        "out of the forward, or use ClipEngine, which does not compile.",
        code="compile-side-effect",
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
    """Whether a node of the graph draws random numbers: many that can are tagged, drawing or not."""
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded not in tags or "backward" in str(node.target):
        return False  # attention's backward draws again what the forward drew
    arguments = node.target._schema.arguments
    given = {a.name: v for a, v in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    given = {a.name: a.default_value for a in arguments if a.has_default_value()} | given
    if 0.0 in (given.get("dropout_p"), given.get("dropout")):  # of attention, of recurrent layers
        return False
    return given.get("training", given.get("train")) is not False
