"""Torch-free frozen records that rooms hand to each other.

Room: records (floor 0). May import `reticent.clipping` and `reticent.errors`.

A `Mechanism` says what one step did to the data, in the words an accountant needs. Samplers make
it, the ledger stores it, `account` turns it into an epsilon: so the three cannot disagree.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from reticent.clipping import FlatClipping as FlatClipping  # the kind that most rooms need; all are there
from reticent.errors import ConfigError


class NeighbouringRelation(StrEnum):
    """Which two data sets the guarantee compares."""

    ADD_OR_REMOVE = "add-or-remove-one"
    ZERO_OUT = "zero-out-one"
    REPLACE_ONE = "replace-one"


class SamplingScheme(StrEnum):
    """How a step's examples are drawn."""

    POISSON = "poisson"
    FULL_BATCH = "full-batch"
    TRUNCATED_POISSON = "truncated-poisson"
    FIXED_SIZE = "fixed-size"
    CYCLIC = "cyclic"
    SHUFFLED = "shuffled"
    BALLS_IN_BINS = "balls-in-bins"


# Schemes that cut the examples into batches and go through all of them before any comes again.
PARTITIONS: Final = frozenset((SamplingScheme.CYCLIC, SamplingScheme.SHUFFLED, SamplingScheme.BALLS_IN_BINS))
# What a mechanism says beside probability and noise.
SIZES: Final[Mapping[SamplingScheme, tuple[str, ...]]] = MappingProxyType(
    {
        SamplingScheme.POISSON: (),
        SamplingScheme.FULL_BATCH: (),
        SamplingScheme.TRUNCATED_POISSON: ("num_examples", "batch_size"),
        SamplingScheme.FIXED_SIZE: ("num_examples", "batch_size"),
        **dict.fromkeys(sorted(PARTITIONS), ("num_batches",)),
    }
)
# The relations under which a bound of the scheme is known to us; the first is what its sampler states.
RELATIONS: Final[Mapping[SamplingScheme, tuple[NeighbouringRelation, ...]]] = MappingProxyType(
    {
        SamplingScheme.POISSON: tuple(NeighbouringRelation),
        SamplingScheme.FULL_BATCH: tuple(NeighbouringRelation),
        SamplingScheme.TRUNCATED_POISSON: (NeighbouringRelation.ZERO_OUT,),
        SamplingScheme.FIXED_SIZE: (NeighbouringRelation.REPLACE_ONE,),
        **dict.fromkeys(
            sorted(PARTITIONS), (NeighbouringRelation.ZERO_OUT, NeighbouringRelation.REPLACE_ONE)
        ),
    }
)


def _require(ok: bool, message: str, code: str) -> None:
    if not ok:
        raise ConfigError(message, code=code)


_LARGEST: Final = sys.float_info.max  # comparing with it refuses NaN, and integers that no float holds


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A privacy budget: (epsilon, delta)-DP.

    Raises:
        ConfigError[epsilon]: epsilon is not a finite positive number.
        ConfigError[delta]: delta is not strictly between 0 and 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _require(
            _is_real(self.epsilon) and self.epsilon > 0,
            f"epsilon must be a finite number > 0, got {self.epsilon!r}.",
            "epsilon",
        )
        check_delta(self.delta)


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1).

    Raises:
        ConfigError[delta]: delta is not a number strictly between 0 and 1.
    """
    _require(
        _is_real(delta) and 0.0 < delta < 1.0,
        f"delta must be a number strictly between 0 and 1, got {delta!r}.",
        "delta",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One step's Gaussian mechanism: how examples were drawn, and noise over sensitivity.

    Args:
        scheme: how the step's examples were drawn.
        sampling_prob: probability q that an example takes part in the step; 1 for full batch; before the
            cut, for truncated Poisson; the share of steps it takes part in, where batches are a partition.
        noise_multiplier: noise standard deviation divided by the bound of the sum, no unit.
        num_examples: N, public; of truncated Poisson and fixed-size batches only.
        batch_size: of the same two: the size of a batch, or the largest that is kept.
        num_batches: of cyclic and shuffled batches and balls in bins only: steps in which each example
            takes part once.

    Raises:
        ConfigError[mechanism]: no scheme that we know; a size that is missing, idle or no positive integer.
        ConfigError[sampling-prob]: not in (0, 1], or not what the scheme and its sizes make it.
        ConfigError[noise-multiplier]: negative or not finite. Zero is allowed: it means no
            privacy, and every accountant answers infinity.
    """

    scheme: SamplingScheme
    sampling_prob: float
    noise_multiplier: float
    num_examples: int | None = None
    batch_size: int | None = None
    num_batches: int | None = None

    def __post_init__(self) -> None:
        known = [scheme.value for scheme in SamplingScheme]
        _require(
            isinstance(self.scheme, str) and self.scheme in known,
            f"scheme must be one of {', '.join(known)}, got {self.scheme!r}.",
            "mechanism",
        )
        object.__setattr__(self, "scheme", SamplingScheme(self.scheme))
        _require(
            _is_real(self.sampling_prob) and 0.0 < self.sampling_prob <= 1.0,
            f"sampling_prob must be in (0, 1], got {self.sampling_prob!r}.",
            "sampling-prob",
        )
        self._check_sizes()
        _require(
            _is_real(self.noise_multiplier) and self.noise_multiplier >= 0.0,
            f"noise_multiplier must be a finite number >= 0, got {self.noise_multiplier!r}.",
            "noise-multiplier",
        )

    def _check_sizes(self) -> None:
        needed = SIZES[self.scheme]
        for name in ("num_examples", "batch_size", "num_batches"):
            size = getattr(self, name)
            _require(
                (size is None) if name not in needed else _is_size(size),
                f"a {self.scheme} step has {', '.join(needed) or 'no sizes'}, each an integer from 1 to "
                f"1e15; got {name} {size!r}.",
                "mechanism",
            )
        implied = self.sampling_prob
        match self.scheme:
            case SamplingScheme.FULL_BATCH:
                implied = 1.0
            case SamplingScheme.FIXED_SIZE:
                implied = (self.batch_size or 0) / (self.num_examples or 1)
            case scheme if scheme in PARTITIONS:
                implied = 1.0 / (self.num_batches or 1)
        _require(
            self.sampling_prob == implied <= 1.0,
            f"a {self.scheme} step of these sizes has sampling_prob {implied!r}, got {self.sampling_prob!r}.",
            "sampling-prob",
        )

    def describe(self) -> dict[str, Any]:
        """As a JSON object, without sizes that the scheme does not have."""
        return {
            "scheme": self.scheme.value,
            "sampling_prob": float(self.sampling_prob),
            "noise_multiplier": float(self.noise_multiplier),
            **{name: getattr(self, name) for name in SIZES[self.scheme]},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonReport:
    """An epsilon with everything that gives it meaning.

    `epsilon` is the number to report: the smallest of the valid upper bounds computed.
    `epsilon_rdp` and `epsilon_pld` are bounds by one accountant each; None where that accountant
    does not apply (the reason is in `notes`). Infinity means no privacy.
    """

    epsilon: float
    delta: float
    epsilon_rdp: float | None
    epsilon_pld: float | None
    neighbouring_relation: NeighbouringRelation
    accountant: str
    num_steps: int
    notes: tuple[str, ...] = ()
