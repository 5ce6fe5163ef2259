"""Torch-free frozen records that rooms hand to each other.

Room: records (floor 0). May import `reticent.clipping` and `reticent.errors`.

A `Mechanism` says what one step did to the data, in the words an accountant needs. Samplers make
it, the ledger stores it, `account` turns it into an epsilon: so the three cannot disagree.
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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


def _require(ok: bool, message: str, code: str) -> None:
    if not ok:
        raise ConfigError(message, code=code)


_LARGEST: Final = sys.float_info.max  # comparing with it refuses NaN, and integers that no float holds


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


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
        sampling_prob: probability q that an example takes part in the step; 1 for full batch.
        noise_multiplier: noise standard deviation divided by the bound of the sum, no unit.

    Raises:
        ConfigError[mechanism]: no scheme that we know.
        ConfigError[sampling-prob]: not in (0, 1], or not 1 for a full batch.
        ConfigError[noise-multiplier]: negative or not finite. Zero is allowed: it means no
            privacy, and every accountant answers infinity.
    """

    scheme: SamplingScheme
    sampling_prob: float
    noise_multiplier: float

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
        _require(
            self.scheme is not SamplingScheme.FULL_BATCH or self.sampling_prob == 1.0,
            f"a full-batch step has sampling_prob 1, got {self.sampling_prob!r}.",
            "sampling-prob",
        )
        _require(
            _is_real(self.noise_multiplier) and self.noise_multiplier >= 0.0,
            f"noise_multiplier must be a finite number >= 0, got {self.noise_multiplier!r}.",
            "noise-multiplier",
        )


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
