"""Rule for a language model's head and its loss in one: `linear_cross_entropy` (torch 2.13 and later).

Neither logits nor their gradient are kept: both are computed again, some rows at a time.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): N rows, U unit, P positions of one unit, I input, V classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._combine import combine, of_units
from reticent.rules._forms import Dense, Form, Method, Outer, num_bytes
from reticent.rules._layout import Layout
from reticent.rules._meeting import Meeting, Recorder, Saved, is_constant, trainable_roles
from reticent.rules._rounding import Doubts, at_least_float32

_ENTRIES: Final = 1 << 23  # of logits at a time


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """x W^T + b and what their loss leaves: recomputed, never kept.

    Args:
        weight: (V, I), in the precision of the product, as is the bias.
        bias: (V,).
    """

    weight: Tensor
    bias: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, V), at least float32, fresh."""
        return at_least_float32(F.linear(x, self.weight, self.bias))

    def gradient(self, x: Tensor, target: Tensor, lse: Tensor, g: Tensor) -> Tensor:
        """d(sum of g * loss) / d logits, (N, V). The caller has set g to 0 at ignored rows."""
        grad = self.of(x).sub_(lse[:, None]).exp_()
        grad.scatter_add_(1, target[:, None], grad.new_full((1, 1), -1.0).expand(len(target), 1))
        return grad.mul_(g[:, None])

    def rows(self) -> int:
        """How many rows to compute at a time."""
        return max(1, _ENTRIES // max(self.weight.shape[0], 1))


@dataclass(frozen=True, slots=True, eq=False)
class HeadForm:
    """An `Outer` whose g_UPO is computed again, a few units at a time; and the weight's other gradients.

    Args:
        x_UPI: inputs of the head.
        target_UP: class of each position; any valid one where g is 0.
        lse_UP: log of the sum of exponentials of the logits.
        g_UP: gradients of the losses.
        logits: the head.
        rest: gradients from other uses of the same weight (a tied table), or None.
    """

    x_UPI: Tensor
    target_UP: Tensor
    lse_UP: Tensor
    g_UP: Tensor
    logits: Logits
    rest: Form | None = None

    def _step(self) -> int:
        return max(1, self.logits.rows() // max(self.x_UPI.shape[1], 1))

    def methods(self) -> tuple[Method, ...]:
        """See `Form`."""
        units, positions, num_in = self.x_UPI.shape
        classes = self.logits.weight.shape[0]
        own = num_bytes(self.x_UPI, self.target_UP, self.lse_UP, self.g_UP)
        rest = (
            self.rest.methods()[0]
            if self.rest is not None
            else Method(name="", flops=0, moved=0, held=0, peak=0)
        )
        size = 8 if self.x_UPI.dtype == torch.float64 else 4
        chunk = size * min(self._step(), max(units, 1)) * positions * classes
        return (
            Method(
                name="recompute",
                flops=4.0 * units * positions * num_in * classes
                + 2.0 * units * positions * min(positions * (num_in + classes), num_in * classes)
                + rest.flops,
                moved=8.0 * size * units * positions * classes + rest.moved,
                held=own + rest.held,
                peak=2 * chunk + rest.peak,
            ),
        )

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        return self.squared_norm(), self

    def of_units(self, units: slice) -> Form:
        """The same gradients of some units, with nothing left to compute."""
        x, target, lse, g = (t[units] for t in (self.x_UPI, self.target_UP, self.lse_UP, self.g_UP))
        flat = self.logits.gradient(x.flatten(0, 1), target.flatten(), lse.flatten(), g.flatten())
        own = Outer(x, flat.view(*x.shape[:2], flat.shape[-1]))
        return own if self.rest is None else combine([own, of_units(self.rest, units)])

    def _parts(self) -> list[slice]:
        step = self._step()  # the same for norm and sum, so that both see the same numbers
        return [slice(i, i + step) for i in range(0, max(len(self.x_UPI), 1), step)]

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """See `Form`."""
        if doubts is None:
            return torch.cat([self.of_units(part).squared_norm() for part in self._parts()])
        found: list[Doubts] = []
        squares = []
        for part in self._parts():
            found.append([])
            squares.append(self.of_units(part).squared_norm(found[-1]))
        doubts += [torch.cat(masks) for masks in zip(*found, strict=True)]
        return torch.cat(squares)

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        for part in self._parts():
            self.of_units(part).add_weighted(weights[part], None if keep is None else keep[part], out)

    def dense(self) -> Tensor:
        """See `Form`."""
        return self.of_units(slice(None)).dense()

    def joined(self, others: Sequence[Form]) -> "HeadForm":
        """Its sum with other gradients of the same weight."""
        rest = others if self.rest is None else [self.rest, *others]
        return replace(self, rest=combine(rest))


@dataclass(frozen=True, slots=True, eq=False)
class LinearCrossEntropyMeeting:
    """loss[n] = logsumexp(logits[n]) - logits[n, target[n]]; 0 where target is `ignore_index`."""

    logits: Logits
    ignore_index: int
    roles: frozenset[str]
    loss_dtype: torch.dtype

    def _target(self, target: Tensor) -> tuple[Tensor, Tensor]:
        ignored = target == self.ignore_index
        return torch.where(ignored, 0, target), ignored

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        x, target = inputs[0].to(self.logits.weight.dtype), inputs[1]
        valid, ignored = self._target(target)
        losses, lses = [], []
        for xc, tc in zip(*(t.split(self.logits.rows()) for t in (x, valid)), strict=True):
            logits = self.logits.of(xc)
            lses.append(torch.logsumexp(logits, 1))
            losses.append(lses[-1] - logits.gather(1, tc[:, None])[:, 0])
        return torch.where(ignored, 0, torch.cat(losses)).to(self.loss_dtype), (x, target, torch.cat(lses))

    def _rows(self, saved: Saved, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, target, lse = saved
        valid, ignored = self._target(target)
        return x, valid, lse, torch.where(ignored, 0, at_least_float32(g))

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        if not needs[0]:
            return None, None
        parts = zip(*(t.split(self.logits.rows()) for t in self._rows(saved, g)), strict=True)
        weight = self.logits.weight
        return torch.cat([self.logits.gradient(*part).to(weight.dtype) @ weight for part in parts]), None

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`."""
        return True

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        x, target, lse, g = self._rows(saved, g)
        target_UP, lse_UP, g_UP = (layout.positions(t, 0) for t in (target, lse, g))
        form = HeadForm(layout.positions(x, 1), target_UP, lse_UP, g_UP, self.logits)
        forms: dict[str, Form] = {"weight": form} if "weight" in self.roles else {}
        if "bias" in self.roles:
            forms["bias"] = Dense(torch.cat([_summed(form.of_units(part)) for part in form._parts()]))
        return forms


def _summed(outer: Form) -> Tensor:
    assert isinstance(outer, Outer)
    return outer.g_UPO.sum(1)


def linear_cross_entropy(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.linear_cross_entropy`; what it cannot do runs as a linear layer and its loss."""

    def bound(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object = None,
    ) -> Any:
        trained = trainable_roles(recorder, {"weight": linear_weight, "bias": linear_bias})
        others = (input, target, weight)
        if linear_weight.dim() != 2 or any(t is not None and recorder.is_trainable(t) for t in others):
            return NotImplemented
        index, kind = -100 if ignore_index is None else ignore_index, input.device.type
        # Autocast leaves float64 alone.
        given = {t.dtype for t in (input, linear_weight, linear_bias) if t is not None}
        cast = torch.is_autocast_enabled(kind) and torch.float64 not in given
        plain = (
            input.dim() == 2
            and target.dtype == torch.int64
            and target.dim() == 1
            and weight is None
            and reduction == "none"
            and label_smoothing == 0.0
            and is_constant(recorder, linear_weight)
            and is_constant(recorder, linear_bias)
            and (cast or len(given) == 1)  # torch says what is wrong with others
        )
        if not plain:
            logits = recorder.call(F.linear, input, linear_weight, linear_bias)
            return recorder.call(
                F.cross_entropy, logits, target, weight, None, index, None, reduction, label_smoothing
            )
        dtype = torch.get_autocast_dtype(kind) if cast else linear_weight.dtype
        bias = None if linear_bias is None else linear_bias.detach().to(dtype)
        meeting: Meeting = LinearCrossEntropyMeeting(
            Logits(linear_weight.detach().to(dtype), bias),
            index,
            frozenset(trained),
            torch.float32 if cast else input.dtype,  # autocast takes losses in float32
        )
        return recorder.record(meeting, trained, (input, target))

    return bound(*args, **kwargs)
