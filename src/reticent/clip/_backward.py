"""Backward passes that leave no trace on the leaves they reach.

Room: clip. May import torch, `reticent.errors`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.checkpoint import CheckpointError

from reticent.errors import UnsupportedModel


def run_backward(loss: Tensor, grad: Tensor, *, retain_graph: bool) -> None:
    """`torch.autograd.backward`, with function modes left on: checkpointing runs forwards in it.

    Raises:
        UnsupportedModel[checkpoint-rerun]: what a checkpoint ran again is not what it ran in the forward.
    """
    run: Any = Variable._execution_engine.run_backward
    try:
        run((loss,), (grad,), retain_graph, False, (), allow_unreachable=True, accumulate_grad=True)
    except CheckpointError as error:
        raise UnsupportedModel(
            "A checkpointed part of the model ran other operations when it was run again in the backward "
            "than in the forward. Make it do the same each time it is called; where it does, use "
            "use_reentrant=True for this part, or no checkpoint.",
            code="checkpoint-rerun",
        ) from error


@contextmanager
def gradients_kept(leaves: Sequence[Tensor]) -> Iterator[None]:
    """`.grad` of the leaves is as before afterwards, whatever a backward writes meanwhile."""
    kept = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad


def plain_gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of the summed loss by an ordinary backward (some checkpointing allows no other).

    Hooks on the nodes that accumulate gradients cannot be listed, and run here on a raw gradient. One that
    updates a parameter is found by the parameter.

    Raises:
        UnsupportedModel[parameter-hook]: a parameter is another than before.
    """
    before = [_print_of(p) for p in params]
    leaves = {id(t): t for t in (*graph_leaves(loss), *params)}
    with gradients_kept(list(leaves.values())):
        run_backward(loss, torch.ones_like(loss), retain_graph=False)
        found = [p.grad for p in params]
    if [_print_of(p) for p in params] != before:
        raise UnsupportedModel(
            "A hook of autograd changed a parameter in the backward, by a gradient without clipping and "
            "noise (an optimizer in the backward, say). Do not keep this model: remove the hook, make the "
            "model anew, and let PrivateStep's optimizer make the updates.",
            code="parameter-hook",
        )
    return found


@torch.no_grad()
def _print_of(t: Tensor) -> tuple[str, str]:
    """Sum and length, which an update changes; as text, so that NaN equals NaN."""
    real = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    length = torch.linalg.vector_norm(real, dtype=torch.float64)
    return repr(float(real.sum(dtype=torch.float64))), repr(float(length))


def graph_leaves(loss: Tensor) -> list[Tensor]:
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
