"""Pulls forms of values computed from parameters back to the parameters themselves.

Room: clip. May import torch, `reticent.rules`.

Shape letters (this file): U unit.
"""

import torch
from torch import Tensor

from reticent.clip._capture import Value
from reticent.rules import Dense, Form, Outer
from reticent.rules._replay import Rows


def pull_back(
    value: Value, form: Form | Rows, leaves: dict[str, Tensor], into: dict[str, list[Form]]
) -> None:
    """Add the forms that `form`, of `value`, means for each parameter below it.

    A transpose or cast keeps the form compressed; any other step is a vector-Jacobian product for
    each unit, of the value's own small graph.
    """
    while value.source is not None and (value.step == "same" or isinstance(form, Outer)):
        if value.step == "transpose":
            assert isinstance(form, Outer)
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
