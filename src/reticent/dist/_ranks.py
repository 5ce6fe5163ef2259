"""What a private step asks of the processes that take it together, and the answer of a single one.

Room: dist. May import torch, NumPy, `reticent.noise` and the floors below.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from reticent.bounded import BoundedSum
from reticent.noise import NoiseSource, add_noise

T = TypeVar("T")
Indices = npt.NDArray[np.int64]


class Ranks(Protocol):
    """Processes that take every private step together. All methods but `share` are collective.

    Guarantee:
        Every unit of a logical batch is in the share of exactly one rank, and every coordinate of a sum gets
        one draw of noise from exactly one rank.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the rank that draws batches and keeps the ledger and the run's files."""
        ...

    def share(self, indices: Indices) -> Indices:
        """This rank's part of a logical batch, maybe none of it."""
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

    def meet(self, error: BaseException | None) -> None:
        """Wait for every rank, and tell the others whether this one failed.

        Raises:
            OutOfMemoryError: this one is well, and others ran out of memory.
            StepError[rank-failed]: this one is well, and others failed.
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

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """The sum over all ranks, noised once: see `reticent.noise.add_noise`, whose law the result has.

        Args:
            bounded: this rank's part of the sum, with the bound of the whole: each unit is in one part.
            noise_multiplier: noise standard deviation over the bound.
            source: this rank's own noise, with a key of its own.

        Returns:
            The same noised sum on every rank.
        """
        ...


class Alone:
    """The only process of a run."""

    rank: int = 0
    size: int = 1
    leads: bool = True

    def share(self, indices: Indices) -> Indices:
        """All of the batch."""
        return indices

    def tell(self, value: Any) -> Any:
        """The value."""
        return value

    def tell_indices(self, indices: Indices) -> Indices:
        """The batch."""
        return indices

    def first(self, act: Callable[[], T]) -> T | None:
        """Act."""
        return act()

    def meet(self, error: BaseException | None) -> None:
        """Nobody to wait for."""

    def agree(self, what: str, value: Any) -> None:
        """Nobody to differ from."""

    def begin_alike(self, model: nn.Module) -> None:
        """Nobody to be like."""

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """`reticent.noise.add_noise`."""
        return add_noise(bounded, noise_multiplier=noise_multiplier, source=source)

    def __repr__(self) -> str:
        return "Alone()"


ALONE: Final[Ranks] = Alone()
