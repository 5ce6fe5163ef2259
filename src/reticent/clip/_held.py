"""How a process holds the model that it clips gradients of: all of it, or a part of every parameter.

Room: clip. May import torch.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from reticent.clip._backward import plain_gradients


class Held(Protocol):
    """A model's tensors as its forward uses them, and what other processes must hear of each pass.

    Where processes gather parameters from each other during every pass, all of them must run equally many
    passes, whatever their examples are like.
    """

    @property
    def apart(self) -> bool:
        """Whether passes gather parameters from other processes."""
        ...

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Name -> parameter as the forward uses it; one name for a shared one."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """Name -> buffer."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all of them must ask."""
        ...

    def sum_over_ranks(self, value: float) -> float:
        """The sum of every process's value."""
        ...

    def zeros(self, params: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor] | None:
        """What sums are added up in: of each parameter, what this process has; None for tensors like them."""
        ...

    def common_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """What this process has of gradients of a loss that all processes have alike, by plain autograd."""
        ...


class InPlace:
    """The whole model, in this process."""

    apart = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's."""
        return dict(self._model.named_parameters())

    def buffers(self) -> Mapping[str, Tensor]:
        """The model's."""
        return dict(self._model.named_buffers())

    def any_rank(self, flag: bool) -> bool:
        """The flag."""
        return flag

    def sum_over_ranks(self, value: float) -> float:
        """The value."""
        return value

    def zeros(self, params: Mapping[str, nn.Parameter]) -> None:
        """Tensors like the parameters."""

    def common_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradients, of every trainable parameter that has one; `.grad` is left as it was."""
        params = {n: p for n, p in self.parameters().items() if p.requires_grad}
        found = zip(params, plain_gradients(loss, list(params.values())), strict=True)
        return {name: grad for name, grad in found if grad is not None}


@runtime_checkable
class Scattered(Protocol):
    """Sums of which each process keeps a part, as they are made.

    In a pass, every parameter is added to once, in the same order in every process.
    """

    def adding(self, name: str) -> AbstractContextManager[Tensor]:
        """Zeros in the parameter's shape, to add to; handed out to all processes when the block is left."""
        ...


@contextmanager
def adding(total: Mapping[str, Tensor] | Scattered, name: str) -> Iterator[Tensor]:
    """What a parameter's sum is added to."""
    if isinstance(total, Scattered):
        with total.adding(name) as into:
            yield into
    else:
        yield total[name]
