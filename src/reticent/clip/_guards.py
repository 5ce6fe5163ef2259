"""Guards around a forward: the shape of its losses, and that it changes nothing of the model.

Room: clip. May import torch and `reticent.errors`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from reticent.clip._held import Held
from reticent.errors import ConfigError, UnsupportedModel


def checked_units(size: int, num_units: int) -> int:
    """The number of units, if it divides the rows."""
    if isinstance(num_units, bool) or not isinstance(num_units, int) or num_units < 1 or size % num_units:
        raise ConfigError(
            f"num_units={num_units!r} must be a positive integer that divides the {size} rows.",
            code="num-units",
        )
    return num_units


def check_losses(loss: Any, expected: int | None) -> None:
    """Refuse what is not one differentiable floating-point value for each example."""
    good = isinstance(loss, Tensor) and loss.dim() == 1 and loss.is_floating_point()
    if not good or (expected is not None and loss.shape[0] != expected):
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        want = f"({expected},)" if expected is not None else "(B,)"
        raise ConfigError(
            f"The losses must be one floating-point value per example, shape {want}; got {got}. Do not "
            "average over the batch: use reduction='none' and average within each example.",
            code="loss-shape",
        )
    if not loss.requires_grad and loss.shape[0]:
        raise ConfigError(
            "The losses do not depend on any trainable parameter (or were computed under torch.no_grad).",
            code="loss-without-gradient",
        )


class State:
    """Versions of parameters, buffers and gradients, to notice a forward that changes them."""

    def __init__(self, held: Held, params: Mapping[str, nn.Parameter]) -> None:
        self._held = held
        self._tensors = {n: (t, t._version) for n, t in self._now().items()}
        self._grads = {n: (p.grad, None if p.grad is None else p.grad._version) for n, p in params.items()}

    def _now(self) -> dict[str, Tensor]:
        return {**self._held.parameters(), **self._held.buffers()}

    def refuse_changes(self, params: Mapping[str, nn.Parameter]) -> None:
        """Raise if anything changed."""
        now = self._now()
        changed = [n for n, (t, v) in self._tensors.items() if now.get(n) is not t or t._version != v] + [
            n for n in now if n not in self._tensors
        ]
        if changed:
            raise UnsupportedModel(
                f"The forward changes {sorted(changed)}: data would enter the model without clipping or "
                "noise. Put the layer in eval mode, or remove what it updates.",
                code="forward-changes-state",
            )
        for name, p in params.items():
            grad, version = self._grads[name]
            if p.grad is not grad or (grad is not None and grad._version != version):
                raise UnsupportedModel(
                    f"The backward wrote a gradient of '{name}' past the engine (a nested backward). Use "
                    "method='loop'.",
                    code="hidden-use",
                )
