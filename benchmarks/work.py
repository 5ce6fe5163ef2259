"""What engines are compared on: a model, its per-example losses, and a batch; and a case, which makes one.

Shape letters: B examples.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn


class Skip(Exception):
    """This engine, or this case, cannot run here; says why in one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """`losses(batch)` runs `model` and returns one loss for each example, shape (B,).

    Args:
        model: what is trained; parameters that are frozen take part in no sum.
        losses: calls `model`; no random draws.
        batch: a tensor, or a tuple of tensors, example axis first.
        twin: the name under which a peer of another framework finds the same forward; "" if none.
    """

    model: nn.Module
    losses: Callable[[Any], Tensor]
    batch: Any
    twin: str = ""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that is trained; a shared one under its first name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def num_examples(self) -> int:
        """B."""
        return (self.batch[0] if isinstance(self.batch, tuple) else self.batch).shape[0]

    def on(self, device: str) -> "Work":
        """The same work with model and batch on a device; the model is moved, not copied."""
        several = isinstance(self.batch, tuple)
        batch = tuple(t.to(device) for t in self.batch) if several else self.batch.to(device)
        return replace(self, model=self.model.to(device), batch=batch)

    def rows(self, start: int, stop: int) -> Any:
        """Some examples of the batch."""
        if isinstance(self.batch, tuple):
            return tuple(t[start:stop] for t in self.batch)
        return self.batch[start:stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A piece of work by name.

    Args:
        about: one line for `--list`.
        build: makes the work; weights and batch come from torch's generator, which the caller seeds.
        needs: packages beyond Reticent's own.
    """

    about: str
    build: Callable[[], Work]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Packages that are needed and not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]
