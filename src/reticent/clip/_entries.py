"""Turns what one recorded operation left in a backward pass into per-unit gradients of its values.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reticent.clip._entry import CallKind, Entry
from reticent.errors import UnsupportedModel
from reticent.rules import Dense, Form, Layout
from reticent.rules._replay import Rows, elementwise_forms, expansion_forms, unit_by_unit_forms


def entry_forms(
    entry: Entry, saved: tuple[Tensor, ...], grads: Mapping[int, Tensor], layouts: Mapping[int, Layout]
) -> Mapping[Any, Form | Rows]:
    """Role (or tensor position) -> per-unit gradients of that value.

    Args:
        entry: the recorded operation.
        saved: what its meeting saved of the batch; empty for a call without rule.
        grads: output -> gradient, of every output that has one.
        layouts: output -> where the units lie in it.

    Raises:
        UnsupportedModel[example-axis]: the operation works over the axis that carries the examples.
        UnsupportedModel[in-place-parameter]: an argument was overwritten since.
        UnsupportedModel[no-rule]: the operation has no rule, and is not one example at a time.
    """
    if entry.meeting is not None:
        layout = layouts[0]
        if not (entry.meeting.accepts(layout, grads[0].dim()) or layout.num_units == 1):
            raise UnsupportedModel(
                f"The examples lie along an axis that {entry.describe()} works over. Put the example "
                "axis first, freeze the parameter, or use method='loop'.",
                code="example-axis",
            )
        return entry.meeting.forms(saved, grads[0], layout)
    assert entry.call is not None
    if entry.call.is_stale():
        raise UnsupportedModel(
            f"An argument of {entry.describe()} was overwritten by a later in-place operation, and its "
            "gradient needs it. Write that operation out of place.",
            code="in-place-parameter",
        )
    if next(iter(layouts.values())) == Layout(0, 1):
        return _whole_forms(entry, grads)
    if entry.kind is not CallKind.OTHER:
        formed = elementwise_forms if entry.kind is CallKind.ELEMENTWISE else expansion_forms
        return formed(entry.call, grads[0], layouts[0])
    outputs = range(len(entry.outputs))
    result = unit_by_unit_forms(
        entry.call, entry.outputs, [grads.get(i) for i in outputs], [layouts.get(i) for i in outputs]
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


def _whole_forms(entry: Entry, grads: Mapping[int, Tensor]) -> dict[Any, Dense]:
    """A call whose every output belongs to the one unit there is."""
    call = entry.call
    assert call is not None
    tensors = list(call.tensors)
    leaves = {i: tensors[i].clone().requires_grad_() for i in call.trainable}
    for i, leaf in leaves.items():
        tensors[i] = leaf
    with torch.enable_grad():
        ys = call.again(tensors)
        used = sorted(grads)
        given = [grads[i].to(ys[i].dtype) for i in used]
        found = torch.autograd.grad([ys[i] for i in used], list(leaves.values()), given, allow_unused=True)
    return {
        i: Dense((torch.zeros_like(leaf) if g is None else g)[None])
        for (i, leaf), g in zip(leaves.items(), found, strict=True)
    }
