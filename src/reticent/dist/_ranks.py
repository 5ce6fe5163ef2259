"""What a private step asks of the processes that take it together, and the answer of a single one.

Room: dist. May import torch, NumPy, `reticent.noise` and the floors below.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from reticent.bounded import BoundedSum
from reticent.noise import NoiseSource, add_noise

T = TypeVar("T")
Indices = npt.NDArray[np.int64]


class Holding(Protocol):
    """What a rank has of the model, and of sums and gradients in the shape of its parameters."""

    @property
    def held(self) -> Any:
        """What a clip engine must know to work on it (`ClipEngine(held=...)`); None for a whole model."""
        ...

    def zeros(self, params: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor] | None:
        """What a step's clipped gradients are added up in, at least float32; None for tensors like them."""
        ...

    def gradient(self, p: nn.Parameter, part: Tensor) -> Tensor:
        """What a rank has of a gradient, as `p.grad` takes it."""
        ...


class WholeModel:
    """All of every parameter."""

    held = None

    def zeros(self, params: Mapping[str, nn.Parameter]) -> None:
        """Tensors like the parameters, which whoever adds makes on demand."""

    def gradient(self, p: nn.Parameter, part: Tensor) -> Tensor:
        """The gradient in the parameter's dtype, on its device."""
        return part.to(dtype=p.dtype, device=p.device)


class Ranks(Protocol):
    """Processes that take every private step together. All methods but `share` are collective.

    Guarantee:
        Every unit of a logical batch is in the share of exactly one rank; or, where all ranks run the same
        rows, each through its part of the model, in every share and once in the sum. Every coordinate of a
        sum gets one draw of noise from exactly one rank.
    """

    rank: int
    size: int
    shards: bool  # whether each holds a part of every parameter only

    @property
    def leads(self) -> bool:
        """Whether this is the rank that draws batches and keeps the ledger and the run's files."""
        ...

    @property
    def data_rank(self) -> int:
        """Which share of a batch this rank has: ranks with the same number have the same rows."""
        ...

    def share(self, indices: Indices) -> Indices:
        """This rank's part of a logical batch, maybe none of it."""
        ...

    def num_passes_over(self, indices: Indices) -> int:
        """How many rows of a logical batch this rank runs, of which those beyond its share do not count."""
        ...

    def hold(self, model: nn.Module) -> Holding:
        """How this rank holds the model."""
        ...

    def settle(self, model: nn.Module) -> None:
        """Give back what a pass outside of private steps, an evaluation say, has gathered; not collective."""
        ...

    def tell(self, value: Any) -> Any:
        """The leader's JSON value on every rank."""
        ...

    def tell_indices(self, indices: Indices) -> Indices:
        """The leader's logical batch on every rank."""
        ...

    def first(self, act: Callable[[], T]) -> T | None:
        """Let the leader act; the others wait, and get None.

        Raises:
            StepError[rank-failed]: the leader's act raised, on every other rank.
        """
        ...

    def meet(self, error: BaseException | None, *, passing: bool = False) -> None:
        """Wait for every rank, and tell the others whether this one failed.

        Args:
            error: what this rank failed with, or None.
            passing: others may be in the middle of a pass through the model.

        Raises:
            OutOfMemoryError: this one is well, and others ran out of memory.
            StepError[rank-failed]: this one is well, and others failed.
            StepError[shard-failed]: this one failed, and the others cannot go on without it.
        """
        ...

    def agree(self, what: str, value: Any) -> None:
        """Check that a JSON value is the same on every rank.

        Raises:
            ConfigError[ranks-differ]: it is not.
        """
        ...

    def begin_alike(self, model: nn.Module) -> None:
        """Give every rank the leader's parameters and buffers."""
        ...

    def measure(self, model: nn.Module, act: Callable[[], T]) -> T | None:
        """Let the leader do something that runs the model; where every pass needs all ranks, all of them do.

        Returns:
            What it returned, on every rank that did it.
        """
        ...

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the leader (sharded ones on its CPU); on others, maybe nothing."""
        ...

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """The sum over all ranks, noised once: see `reticent.noise.add_noise`, whose law the result has.

        Args:
            bounded: this rank's part of the sum, with the bound of the whole: each unit is in one part. Or
                sums made by `Holding.zeros`.
            noise_multiplier: noise standard deviation over the bound.
            source: this rank's own noise, with a key of its own.

        Returns:
            The same noised sum on every rank; of sums that each rank has its shard of, that shard.
        """
        ...


class Alone:
    """The only process of a run."""

    rank: int = 0
    size: int = 1
    shards: bool = False
    leads: bool = True
    data_rank: int = 0

    def share(self, indices: Indices) -> Indices:
        """All of the batch."""
        return indices

    def num_passes_over(self, indices: Indices) -> int:
        """All of them."""
        return len(indices)

    def hold(self, model: nn.Module) -> Holding:
        """All of it."""
        return WholeModel()

    def settle(self, model: nn.Module) -> None:
        """Nothing was gathered."""

    def tell(self, value: Any) -> Any:
        """The value."""
        return value

    def tell_indices(self, indices: Indices) -> Indices:
        """The batch."""
        return indices

    def first(self, act: Callable[[], T]) -> T | None:
        """Act."""
        return act()

    def meet(self, error: BaseException | None, *, passing: bool = False) -> None:
        """Nobody to wait for."""

    def agree(self, what: str, value: Any) -> None:
        """Nobody to differ from."""

    def begin_alike(self, model: nn.Module) -> None:
        """Nobody to be like."""

    def measure(self, model: nn.Module, act: Callable[[], T]) -> T | None:
        """Act."""
        return act()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors."""
        return dict(tensors)

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """`reticent.noise.add_noise`."""
        return add_noise(bounded, noise_multiplier=noise_multiplier, source=source)

    def __repr__(self) -> str:
        return "Alone()"


ALONE: Final[Ranks] = Alone()


@contextmanager
def together(ranks: Ranks, *, passing: bool = False) -> Iterator[None]:
    """Leave the block when every rank has left it, and fail if one did; `passing`: see `Ranks.meet`."""
    try:
        yield
    except BaseException as e:
        ranks.meet(e, passing=passing)
        raise
    ranks.meet(None)
