"""What is recorded of a meeting of a trainable parameter with the batch, and how its backward hands it on.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import torch
from torch import Tensor

from reticent.clip._kept import unpacks_elsewhere
from reticent.clip._precision import full_float32
from reticent.errors import UnsupportedModel
from reticent.rules._meeting import Meeting
from reticent.rules._replay import Call

Key = tuple[str, str, int]


class CallKind(Enum):
    """How a call without rule is run again."""

    ELEMENTWISE = auto()
    EXPANSION = auto()
    OTHER = auto()


@dataclass(eq=False)
class Value:
    """A trainable value.

    Args:
        graph: the value, with an autograd graph down to detached copies of the parameters.
        roots: names of the parameters it was computed from.
        source: the value it was computed from, if by a step that forms can be pulled through.
        step: that step: "transpose" (of a matrix), "same" (a cast or copy), or "gather" (rows of a table).
        ids: of a "gather": the rows.
        padding_idx: of a "gather": the row without gradient.
        name: the parameter's name, if the value is a parameter itself.
    """

    graph: Tensor
    roots: frozenset[str]
    name: str | None = None
    source: "Value | None" = None
    step: str = ""
    ids: Tensor | None = None
    padding_idx: int | None = None


@dataclass(eq=False)
class Entry:
    """One recorded meeting.

    Args:
        key: names the call: parameters, operation, how many of these came before.
        optional: see the module header.
        constant: no operand depends on the batch, for certain.
        values: role (or tensor position) -> value.
        meeting: the rule's meeting, or None for a call without rule.
        call: the call without rule, or None.
        outputs: a call's outputs, detached.
        shapes: of each output that a gradient may come through.
    """

    key: Key
    optional: bool
    values: dict[Any, Value]
    meeting: Meeting | None = None
    call: Call | None = None
    constant: bool = False
    kind: CallKind = CallKind.OTHER
    outputs: tuple[Tensor, ...] = ()
    shapes: dict[int, torch.Size] = field(default_factory=dict)

    @property
    def roots(self) -> frozenset[str]:
        """Names of the parameters behind the entry's values."""
        first, *others = self.values.values()  # a write in place may give a value more: not kept
        return first.roots.union(*(value.roots for value in others)) if others else first.roots

    def describe(self) -> str:
        """For error messages."""
        return describe(self.key)


def describe(key: Key) -> str:
    """A recorded operation, for error messages."""
    return f"parameter '{key[0]}' in {key[1]}"


class Visitor(Protocol):
    """Sees each recorded output's gradient, while one backward pass runs."""

    def visit(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """Take the gradient of one output, and what the entry's meeting saved of the batch."""
        ...


@dataclass(slots=True, eq=False)
class Stage:
    """Who visits the backward pass that runs; nobody, while the losses are computed."""

    visitor: Visitor | None = None
    paused: bool = False  # what the visitor itself computes is not recorded

    def receive(self, entry: Entry, index: int, saved: tuple[Tensor, ...], g: Tensor) -> None:
        """Hand the gradient of one output to the visitor.

        Raises:
            UnsupportedModel[hidden-use]: the losses differentiate a gradient: its own use of the
                parameter would not be seen.
        """
        if self.visitor is None:  # the losses themselves run a backward, say for adversarial inputs
            if torch.is_grad_enabled():
                raise UnsupportedModel(
                    f"The losses use a gradient taken with create_graph=True through {entry.describe()}: "
                    "second derivatives are not followed. Use method='loop'.",
                    code="hidden-use",
                )
            return
        with torch._C.DisableTorchFunction():  # the mode would be asked about what the next line does, too
            with torch.no_grad(), self.pause(g.device):
                self.visitor.visit(entry, index, saved, g)

    @contextmanager
    def pause(self, device: torch.device) -> Iterator[None]:
        """Nothing that runs inside is recorded, and nothing is cast down, whatever surrounds the call."""
        self.paused = True
        try:
            # Modes left out, the recording one too: it would be asked about each of many small operations.
            with torch._C.DisableTorchFunction():
                with full_float32(device):
                    if device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
                        yield  # as it is: making sure costs more than many a small operation
                    else:
                        with torch.autocast(device.type, enabled=False):
                            yield
        finally:
            self.paused = False


class Meet(torch.autograd.Function):
    """Runs a meeting; its backward records what is needed, and no parameter gradient is computed."""

    @staticmethod
    def forward(ctx: Any, entry: Entry, stage: Stage, anchor: Tensor, *inputs: Tensor) -> Tensor:
        assert entry.meeting is not None
        y, saved = entry.meeting.forward(*inputs)
        entry.shapes[0] = y.shape
        ctx.save_for_backward(*saved)
        ctx.entry, ctx.stage = entry, stage
        ctx.elsewhere = unpacks_elsewhere()
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,) = grads
        entry, saved, needs = ctx.entry, ctx.saved_tensors, ctx.needs_input_grad[3:]
        with torch._C.DisableTorchFunction():  # a rule's own arithmetic: no trainable value is in it
            found = entry.meeting.backward(saved, g, needs)
        inputs, more = found[: len(needs)], found[len(needs) :]
        if ctx.elsewhere:
            saved = tuple(t.clone() for t in saved)
        ctx.stage.receive(entry, 0, (*saved, *more), g)
        return None, None, None, *inputs


class Tap(torch.autograd.Function):
    """Identity on an output that would not require a gradient otherwise, or that was written in place."""

    @staticmethod
    def forward(ctx: Any, entry: Entry, stage: Stage, index: int, y: Tensor, anchor: Tensor) -> Tensor:
        # y comes first: a write into a view of y's base passes only the first gradient on
        ctx.entry, ctx.stage, ctx.index = entry, stage, index
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.stage.receive(ctx.entry, ctx.index, (), grads[0])
        return None, None, None, grads[0] if ctx.needs_input_grad[3] else None, None
