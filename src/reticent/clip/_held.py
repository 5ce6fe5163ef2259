"""How a process holds the model that it clips gradients of: all of it, or a part of every parameter.

Room: clip. May import torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeGuard, cast

from torch import Tensor, nn

from reticent.clip._backward import plain_gradients


class SameRows(Protocol):
    """Processes that all run the same rows, each through its part of the model (tensor parallel)."""

    @property
    def parts(self) -> frozenset[str]:
        """Parameters of whose gradients each process has a part; the rest are whole in all of them."""
        ...

    def plainly(self) -> AbstractContextManager[None]:
        """A block in which the model runs in the simplest way, to compare with."""
        ...

    def require_same(self, digest: bytes) -> None:
        """Refuse rows, or a state of random draws, that are not the same in every process.

        Args:
            digest: of both.

        Raises:
            StepError[ranks-diverged]: another process has another.
        """
        ...

    def agreed(self, t: Tensor) -> Tensor:
        """One process's tensor, in all of them."""
        ...

    def squares(self, group: int, of_parts_U: Tensor, of_whole_U: Tensor) -> Tensor:
        """Squared norms of units, (U,), not below the truth, and the same bits in every process.

        Args:
            group: which group of parameters they are of, the same in every process.
            of_parts_U: from this process's parts.
            of_whole_U: from gradients that every process has whole.

        Raises:
            StepError[ranks-order]: the processes are not at the same group.
            StepError[ranks-diverged]: the whole ones are not the same in all of them.
        """
        ...

    def refuse_different(self, total: Mapping[str, Tensor], names: Iterable[str], tolerance: float) -> None:
        """Refuse sums of whole gradients that are not the same in every process, by name.

        Raises:
            UnsupportedModel[ranks-diverged]: they differ by more than a share of their length.
        """
        ...


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

    @property
    def num_adding(self) -> int:
        """How often a unit that all processes run is in the sums."""
        ...

    @property
    def same_rows(self) -> SameRows | None:
        """The processes that run the same rows as this one; None if it has rows of its own."""
        ...

    def sizes(self, params: Mapping[str, nn.Parameter]) -> dict[str, int]:
        """Name -> number of entries of the whole parameter."""
        ...

    def square(self, squares: Mapping[str, float]) -> float:
        """Squared norm of a gradient of `common_gradients`, from those of what this process has."""
        ...

    def require_order(self, ready: Mapping[str, int]) -> None:
        """Refuse, in every process, a backward that would hand out sums in another order in another one.

        Args:
            ready: trainable parameter -> number; sums are ready from the largest number down.
        """
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

    num_adding = 1
    same_rows = None

    def sizes(self, params: Mapping[str, nn.Parameter]) -> dict[str, int]:
        """The parameters'."""
        return {name: p.numel() for name, p in params.items()}

    def square(self, squares: Mapping[str, float]) -> float:
        """Their sum."""
        return sum(squares.values())

    def require_order(self, ready: Mapping[str, int]) -> None:
        """There is no other process."""

    def zeros(self, params: Mapping[str, nn.Parameter]) -> None:
        """Tensors like the parameters."""

    def common_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradients, of every trainable parameter that has one; `.grad` is left as it was."""
        params = {n: p for n, p in self.parameters().items() if p.requires_grad}
        found = zip(params, plain_gradients(loss, list(params.values())), strict=True)
        return {name: grad for name, grad in found if grad is not None}


class Scattered(Protocol):
    """Sums of which each process keeps a part, as they are made.

    In a pass, every parameter is added to once, in the same order in every process.
    """

    def adding(self, name: str) -> AbstractContextManager[Tensor]:
        """Zeros in the parameter's shape, to add to; handed out to all processes when the block is left."""
        ...


def scattered(total: object) -> TypeGuard[Scattered]:
    """Whether sums are `Scattered`; `isinstance` of a runtime protocol would take twenty times as long."""
    return hasattr(total, "adding")


@contextmanager
def adding(total: Mapping[str, Tensor] | Scattered, name: str) -> Iterator[Tensor]:
    """What a parameter's sum is added to."""
    if scattered(total):
        with total.adding(name) as into:
            yield into
    else:
        yield cast(Mapping[str, Tensor], total)[name]
