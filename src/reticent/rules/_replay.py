"""Per-unit gradients of operations without a rule of their own, by running them again.

Two kinds. An elementwise operation is replayed once, with the trainable value copied for each unit.
Any other operation is replayed unit by unit, on that unit's slice of each tensor; that this gives
the unit's slice of the output is checked on the values, so it is never assumed.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): U unit; S shape of a trainable value; n size of the unit axis.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reticent.rules._forms import Dense
from reticent.rules._layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Gradients of a value that has the unit axis itself: unit u's is `grad` on u's entries, else 0.

    Only values computed from parameters alone have one; it is pulled back to the parameters.
    """

    grad: Tensor
    layout: Layout

    def dense(self) -> Tensor:
        """Every unit's gradient, shape (U, *value)."""
        owner = self.layout.owner(self.grad.shape[self.layout.axis], self.grad.device)
        units = torch.arange(self.layout.num_units, device=self.grad.device)
        own = owner == units[:, None]  # (U, n)
        shape = [self.layout.num_units] + [1] * self.grad.dim()
        shape[self.layout.axis + 1] = -1
        return torch.where(own.view(shape), self.grad, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call without rule: `func(*leaves)`, rebuilt by `rebuild` from its tensors.

    Args:
        run: maps the tensors to the outputs (a tuple of tensors).
        tensors: every tensor argument, detached, as it was before the call.
        trainable: positions in `tensors` of the trainable values.
        constant: for each tensor, whether it is known not to depend on the batch.
        versions: each tensor's version counter at the call.
    """

    run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    trainable: tuple[int, ...]
    constant: tuple[bool, ...]
    versions: tuple[int, ...]

    def again(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs for other tensors, with every mode around the step asked, as it was in the forward."""
        with torch._C._EnableTorchFunction():
            return self.run(tensors)

    def is_stale(self) -> bool:
        """Whether an argument was overwritten after the call: running it again would lie."""
        return any(t._version != v for t, v in zip(self.tensors, self.versions, strict=True))


def broadcast_form(g: Tensor, value_shape: Sequence[int], layout: Layout) -> Dense | Rows:
    """Sum an output's gradient back to a value of shape S that was broadcast, for each unit."""
    missing = g.dim() - len(value_shape)
    shape = [1] * missing + list(value_shape)
    axis = layout.axis
    if shape[axis] == g.shape[axis] and g.shape[axis] > 1:
        over = [i for i in range(g.dim()) if shape[i] == 1 and g.shape[i] != 1]
        total = g.sum(over, keepdim=True) if over else g
        return Rows(total.reshape(list(value_shape)), Layout(axis - missing, layout.num_units, layout.inner))
    g = layout.units_first(g)
    over = [i + 1 for i in range(len(shape)) if shape[i] == 1]
    total = g.sum(over, keepdim=True) if over else g
    return Dense(total.reshape([layout.num_units, *value_shape]))


def elementwise_forms(call: Call, g: Tensor, layout: Layout) -> dict[int, Dense | Rows]:
    """Forms of each trainable value of an elementwise call (numpy broadcasting)."""
    axis = layout.axis
    tensors, leaves = list(call.tensors), {}
    for i in call.trainable:
        value = call.tensors[i]
        missing = g.dim() - value.dim()
        copied = value.reshape([1] * missing + list(value.shape))
        if copied.shape[axis] == 1:
            copied = copied.expand([*copied.shape[:axis], g.shape[axis], *copied.shape[axis + 1 :]])
        leaves[i] = copied.clone().requires_grad_()
        tensors[i] = leaves[i]
    with torch.enable_grad():
        (y,) = call.again(tensors)
        grads = torch.autograd.grad(y, list(leaves.values()), g.to(y.dtype))
    forms = {}
    for i, grad in zip(leaves, grads, strict=True):
        forms[i] = broadcast_form(grad, call.tensors[i].shape, layout)
    return forms


def expansion_forms(call: Call, g: Tensor, layout: Layout) -> dict[int, Dense | Rows]:
    """Form of a value that was copied along axes (`expand`, `repeat`)."""
    (i,) = call.trainable
    value = call.tensors[i]
    padded = [1] * (g.dim() - value.dim()) + list(value.shape)
    if all(v in (1, n) for v, n in zip(padded, g.shape, strict=True)):
        return {i: broadcast_form(g, value.shape, layout)}
    tensors = list(call.tensors)
    leaf = tensors[i] = value.clone().requires_grad_()
    with torch.enable_grad():
        (y,) = call.again(tensors)
    units = [torch.autograd.grad(y, leaf, unit, retain_graph=True)[0] for unit in Rows(g, layout).dense()]
    return {i: Dense(torch.stack(units))}


def _unit_axes(tensor: Tensor, layout: Layout) -> list[int | None]:
    """Axes of a tensor that may carry the units, likeliest first; None: it belongs to all units."""
    axes: list[int | None] = [a for a, size in enumerate(tensor.shape) if size > 1 and layout.fits(size)]
    axes.sort(key=lambda a: a != layout.axis)
    return [*axes, None]


def _slice(tensor: Tensor, axis: int | None, layout: Layout, unit: int) -> Tensor:
    return tensor if axis is None else _axis_layout(tensor, axis, layout).take(tensor, unit)


def _axis_layout(tensor: Tensor, axis: int, layout: Layout) -> Layout:
    inner = layout.inner if layout.inner is not None and layout.inner < tensor.shape[axis] else None
    return Layout(axis, layout.num_units, inner)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.dtype.is_floating_point:
        return bool(torch.equal(a, b))
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 3e-2)
    scale = b.detach().abs().max().clamp_min(1e-30) if b.numel() else 1.0
    both_nan = torch.isnan(a) & torch.isnan(b)
    return bool((((a - b).abs() <= tolerance * scale) | both_nan | (a == b)).all())


def unit_by_unit_forms(
    call: Call, outputs: Sequence[Tensor], grads: Sequence[Tensor | None], layouts: Sequence[Layout | None]
) -> dict[int, Dense | Rows] | None:
    """Forms of each trainable value of any call, replaying it for one unit at a time.

    Args:
        call: the call.
        outputs: its outputs.
        grads: their gradients; None for an output that nothing depends on.
        layouts: where the units lie in each output that has a gradient.

    Returns:
        Position -> form, or None if no choice of slices gives each unit's slice of the outputs.
    """
    used = [i for i, g in enumerate(grads) if g is not None and layouts[i] is not None]
    first = layouts[used[0]]
    assert first is not None
    num_units = first.num_units
    choices = []
    for i, tensor in enumerate(call.tensors):
        axes = _unit_axes(tensor, first)
        # What may be data is never shared by units, if it has an axis that may carry them: in
        # attention over the wrong axis, queries of one unit would meet keys of all.
        free = i in call.trainable or call.constant[i] or len(axes) == 1
        choices.append((axes[::-1] if i in call.trainable else axes) if free else axes[:-1])

    def replay(axes: Sequence[int | None], unit: int) -> list[Tensor] | None:
        tensors = [_slice(t, a, first, unit) for t, a in zip(call.tensors, axes, strict=True)]
        leaves = {i: tensors[i].clone().requires_grad_() for i in call.trainable}
        for i, leaf in leaves.items():
            tensors[i] = leaf
        try:
            with torch.enable_grad():
                ys = call.again(tensors)
        except (RuntimeError, ValueError, IndexError, AssertionError):  # shapes that do not fit
            return None
        mine, gs = [], []
        for i in used:
            layout, g = layouts[i], grads[i]
            assert layout is not None and g is not None
            if not _close(ys[i], layout.take(outputs[i], unit)):
                return None
            mine.append(ys[i])
            gs.append(layout.take(g, unit).to(ys[i].dtype))
        found = torch.autograd.grad(mine, list(leaves.values()), gs, allow_unused=True)
        return [torch.zeros_like(v) if f is None else f for f, v in zip(found, leaves.values(), strict=True)]

    # All trainable values whole first: product varies its last factor fastest, so they lead.
    order = sorted(range(len(choices)), key=lambda i: i not in call.trainable)
    for picked in itertools.islice(itertools.product(*(choices[i] for i in order)), 256):
        axes = [axis for _, axis in sorted(zip(order, picked, strict=True), key=lambda pair: pair[0])]
        if num_units > 1 and all(a is None for a in axes):
            continue
        last = replay(axes, num_units - 1)
        if last is None:
            continue
        units = []
        for unit in range(num_units - 1):
            got = replay(axes, unit)
            if got is None:
                break
            units.append(got)
        else:
            units.append(last)
            return {
                i: _gathered(call.tensors[i], axes[i], first, [u[j] for u in units])
                for j, i in enumerate(call.trainable)
            }
    return None


def _gathered(value: Tensor, axis: int | None, layout: Layout, units: Sequence[Tensor]) -> Dense | Rows:
    if axis is None:
        return Dense(torch.stack(list(units)))
    own = _axis_layout(value, axis, layout)
    grad = torch.zeros_like(value)
    owner = own.owner(value.shape[axis], value.device)
    for unit, part in enumerate(units):
        grad.index_copy_(axis, torch.nonzero(owner == unit).flatten(), part)
    return Rows(grad, own)
