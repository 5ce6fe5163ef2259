"""What a rule is: how one torch operation meets the batch, and the forms it leaves behind.

Room: rules. May import torch; holds protocols and frozen records, no state.

A *meeting* is one call of a torch operation that combines a trainable value with values that depend
on the batch. Running it computes no gradient for the trainable value. What its backward leaves
(saved tensors and the gradient of its output) is turned into forms once it is known which entries
belong to which unit.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from reticent.rules._forms import Form
from reticent.rules._layout import Layout
from reticent.rules._replay import Rows

Saved = tuple[Tensor, ...]


class Meeting(Protocol):
    """One call, bound to its settings. Holds no batch data: that is in `saved`."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """The operation's output, and what `backward` and `forms` will need of the batch."""
        ...

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Gradient of each input that needs one, and after these whatever else `forms` is to be given."""
        ...

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """Whether each unit's output is this operation of that unit's inputs alone."""
        ...

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form | Rows]:
        """Role -> per-unit gradients of that trainable value.

        Args:
            saved: what `forward` saved, followed by what `backward` found.
            g: gradient of the output.
            layout: where the units lie in the output.
        """
        ...


class Recorder(Protocol):
    """What a rule may ask of the engine that runs it."""

    def is_trainable(self, value: object) -> bool:
        """Whether `value` is a trainable parameter or was computed from parameters alone."""
        ...

    def record(self, meeting: Meeting, roles: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run a meeting. `roles`: role -> the trainable value, as the rule received it."""
        ...

    def call(self, func: Callable[..., Any], *args: Any) -> Any:
        """Run another torch function in place of this one, recorded like any other."""
        ...

    def inline(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function made of torch functions, each recorded like any other."""
        ...


# (recorder, args, kwargs) -> the operation's output, or NotImplemented: not my case.
OpRule = Callable[[Recorder, tuple[Any, ...], dict[str, Any]], Any]


def trainable_roles(recorder: Recorder, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The subset of `values` that is trainable."""
    return {role: v for role, v in values.items() if v is not None and recorder.is_trainable(v)}


def is_constant(recorder: Recorder, value: Tensor | None) -> bool:
    """Whether no gradient flows to `value` except as a trainable value of ours."""
    return value is None or recorder.is_trainable(value) or not value.requires_grad
