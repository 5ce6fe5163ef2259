"""Pulls forms of values computed from parameters back to the parameters themselves.

Room: clip. May import torch, `reticent.rules`.

Shape letters (this file): U unit.
"""

import torch
from torch import Tensor

from reticent.clip._entry import Value
from reticent.rules import Dense, Form, Gather, Outer
from reticent.rules._replay import Rows


def _gathered(value: Value, form: Form | Rows) -> Gather:
    """Gradients of rows looked up at constant places, as gradients of the table."""
    assert value.ids is not None and value.source is not None
    grad = form.dense()
    ids_P = value.ids.reshape(-1)
    g_UPD = grad.reshape(grad.shape[0], len(ids_P), grad.shape[-1])
    if value.padding_idx is not None:
        g_UPD = torch.where((ids_P == value.padding_idx)[None, :, None], 0, g_UPD)
    return Gather(ids_P.expand(len(g_UPD), -1), g_UPD, value.source.graph.shape[0])


def pull_back(
    value: Value, form: Form | Rows, leaves: dict[str, Tensor], into: dict[str, list[Form]]
) -> None:
    """Add the forms that `form`, of `value`, means for each parameter below it.

    A transpose, cast or look-up keeps the form compressed; any other step is a vector-Jacobian product for
    each unit, of the value's own small graph.
    """
    while value.source is not None:
        if value.step == "gather":
            form = _gathered(value, form)
        elif value.step == "transpose":
            if not isinstance(form, Outer):
                break
            form = form.transposed()
        value = value.source
    if value.name is not None:
        into.setdefault(value.name, []).append(form if not isinstance(form, Rows) else Dense(form.dense()))
        return
    grads_U = form.dense().to(value.graph.dtype)
    names = sorted(value.roots)
    roots = [leaves[name] for name in names]
    per_unit = [
        torch.autograd.grad(value.graph, roots, grad, retain_graph=True, allow_unused=True)
        for grad in grads_U
    ]
    for i, name in enumerate(names):
        parts = [p[i] for p in per_unit]
        if parts and parts[0] is not None:
            into.setdefault(name, []).append(Dense(torch.stack([p for p in parts if p is not None])))
