"""What a plan's settings must be, and how several mistakes are told at once.

Room: plan. May import `reticent.sample`, `reticent.records`, `reticent.clipping` and `reticent.errors`.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar, get_args

from reticent.clipping import KINDS
from reticent.errors import ConfigError
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import Sampler, StagedSampler

_T = TypeVar("_T")
UNITS: Final = ("example", "user")
_KNOWN: Final = (*get_args(Sampler), StagedSampler)
_MAX_STEPS: Final = 10**15


def given(value: _T | None) -> _T:
    assert value is not None, "checked by the_unknown"
    return value


def problem(check: Callable[[], object], *, unless: bool = False) -> ConfigError | None:
    """The error that `check` raises, so that several can be told at once."""
    if unless:
        return None
    try:
        check()
    except ConfigError as error:
        return error
    return None


def raise_together(*found: ConfigError | None) -> None:
    problems = [problem for problem in found if problem is not None]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(
            f"{len(problems)} settings are wrong: " + " ".join(str(p) for p in problems), code="plan-invalid"
        )


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_sampler(sampler: object) -> None:
    if type(sampler) not in _KNOWN:  # a subclass may draw otherwise than is accounted for
        raise ConfigError(
            f"sampler must be one of {', '.join(kind.__name__ for kind in _KNOWN)}, got "
            f"{type(sampler).__name__}: only what the accountant knows may draw examples.",
            code="sampler",
        )


def check_neighbours(neighbours: object, sampler: object) -> None:
    if neighbours is None or not isinstance(sampler, _KNOWN):
        return
    known: tuple[NeighbouringRelation, ...] = getattr(sampler, "relations", ())
    if not isinstance(neighbours, str) or neighbours not in known:
        raise ConfigError(
            f"neighbours must be {' or '.join(known)} with a {type(sampler).__name__} of this kind, got "
            f"{neighbours!r}.",
            code="relation",
        )


def check_num_steps(num_steps: int) -> None:
    if not is_integer(num_steps) or not 1 <= num_steps <= _MAX_STEPS:
        raise ConfigError(
            f"num_steps must be an integer from 1 to 1e15, got {num_steps!r}.", code="num-steps"
        )


def check_noise(noise_multiplier: float) -> None:
    Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=noise_multiplier)


def check_unit(unit: object) -> None:
    if unit not in UNITS:
        raise ConfigError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}.", code="privacy-unit")


def check_clipping(clipping: object) -> None:
    if type(clipping) not in KINDS:
        raise ConfigError(
            f"clipping must be one of {', '.join(kind.__name__ for kind in KINDS)}, got "
            f"{type(clipping).__name__}.",
            code="clipping",
        )


def check_budget(budget: object, delta: float | None) -> None:
    if budget is None:
        return
    if not isinstance(budget, Budget):
        raise ConfigError(f"budget must be a Budget, got {type(budget).__name__}.", code="budget")
    if delta is not None and budget.delta != delta:
        raise ConfigError(
            f"the budget's delta is {budget.delta!r} and the plan's is {delta!r}: give one delta.",
            code="budget",
        )


def the_unknown(given: Mapping[str, object]) -> str:
    """The one setting that is None."""
    left_out = [name for name, value in given.items() if value is None]
    if len(left_out) != 1:
        which = ", ".join(left_out) or "none"
        raise ConfigError(
            f"Leave out exactly one of {', '.join(given)}: it is solved for. Left out: {which}.",
            code="plan-unknowns",
        )
    return left_out[0]


def check_no_idle_setting(unknown: str, *, num_examples: int | None, delta: float | None) -> None:
    """Refuse a setting that would be ignored, and name one that is missing."""
    for needed_for, name, value in (("sampler", "num_examples", num_examples), ("budget", "delta", delta)):
        if (unknown == needed_for) != (value is not None):
            verb = "needs" if unknown == needed_for else "does not take"
            raise ConfigError(f"Solving for {unknown} {verb} {name}.", code="plan-unknowns")
