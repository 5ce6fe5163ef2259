"""From what ran to what an accountant reads: checked, merged phases, and their dp-accounting events.

Room: account. May import `reticent.records`, `reticent.errors` and dp-accounting; never torch.

A *phase* is a number of steps that share one sampling probability and one noise multiplier.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from numbers import Integral
from typing import Final

import dp_accounting

from reticent.errors import AccountingError, ConfigError
from reticent.records import PARTITIONS, RELATIONS, Mechanism, NeighbouringRelation, SamplingScheme

Segments = Sequence[tuple[Mechanism, int]]

MAX_STEPS: Final = 10**15
MIN_SAMPLING_PROB: Final = 1e-12
FULL_SAMPLING_PROB: Final = 1.0 - 1e-9
MIN_NOISE_MULTIPLIER: Final = 1e-3
MAX_NOISE_MULTIPLIER: Final = 1e6
MAX_PHASES: Final = 32


@dataclass(frozen=True, slots=True, order=True)
class Phase:
    """`num_steps` steps of one Poisson-sampled (or, at q = 1, unsampled) Gaussian mechanism."""

    sampling_prob: float
    noise_multiplier: float
    num_steps: int

    @property
    def sampled(self) -> bool:
        return self.sampling_prob < 1.0


def check_num_steps(num_steps: int) -> int:
    """Return `num_steps` as an int, or refuse it.

    Raises:
        ConfigError[num-steps]: not an integer from 0 to 1e15 (a bool is not an integer here).
    """
    ok = isinstance(num_steps, Integral) and not isinstance(num_steps, bool)
    if not ok or not 0 <= num_steps <= MAX_STEPS:
        raise ConfigError(
            f"num_steps must be an integer from 0 to {MAX_STEPS:.0e}, got {num_steps!r}.", code="num-steps"
        )
    return int(num_steps)


def check_relation(relation: NeighbouringRelation) -> NeighbouringRelation:
    """Return the relation, or refuse one that we do not account for.

    Raises:
        ConfigError[relation]: none of `NeighbouringRelation`.
    """
    known = {member.value: member for member in NeighbouringRelation}
    if not isinstance(relation, str) or relation not in known:
        raise ConfigError(
            f"relation must be one of {', '.join(known)}, got {relation!r}.",
            code="relation",
        )
    return known[relation]


def check_schemes(segments: Segments, relation: NeighbouringRelation) -> None:
    """Refuse a relation under which one of the samplers has no bound.

    Raises:
        ConfigError[relation]: names the sampler, and the relations that it has bounds for.
        ConfigError[mechanism]: something that is not a `Mechanism`.
    """
    for scheme in {_checked(mechanism).scheme for mechanism, _ in segments}:
        if relation not in RELATIONS[scheme]:
            raise ConfigError(
                f"{scheme} batches have no epsilon under {relation}: which examples are drawn together "
                f"depends on how many there are. State it for {' or '.join(RELATIONS[scheme])}.",
                code="relation",
            )


def first_steps(segments: Segments, num_steps: int) -> tuple[tuple[Mechanism, int], ...]:
    """The first `num_steps` steps of a history, neighbours of one mechanism together."""
    taken: list[tuple[Mechanism, int]] = []
    left = num_steps
    for mechanism, count in segments:
        count = min(count, left)
        left -= count
        if not count:
            continue
        if taken and taken[-1][0] == mechanism:
            taken[-1] = (mechanism, taken[-1][1] + count)
        else:
            taken.append((mechanism, count))
    return tuple(taken)


def num_performed(segments: Segments) -> int:
    """Steps performed, whatever they count as."""
    return sum(check_num_steps(num_steps) for _, num_steps in segments)


def merge_phases(segments: Segments) -> tuple[Phase, ...]:
    """Equal mechanisms together, in a fixed order; empty segments dropped.

    Order does not matter to composition, so sorting makes equal histories give equal numbers. Of batches
    that are a partition of the examples, a segment counts as so many unsampled steps as one example takes
    part in, if the segment begins with an epoch: segments of different runs are not to be added up before.

    Raises:
        ConfigError[num-steps]: a count that is not a non-negative integer.
        ConfigError[mechanism]: something that is not a `Mechanism`.
        AccountingError[no-bound]: truncated or fixed-size batches, whose steps are no Gaussian phases.
    """
    counts: dict[tuple[float, float], int] = {}
    for mechanism, num_steps in segments:
        key, count = _accounted_as(_checked(mechanism), check_num_steps(num_steps))
        counts[key] = counts.get(key, 0) + count
    phases = (Phase(q, sigma, num_steps) for (q, sigma), num_steps in counts.items() if num_steps)
    return tuple(sorted(phases))


def _checked(mechanism: object) -> Mechanism:
    if not isinstance(mechanism, Mechanism):
        raise ConfigError(
            f"a segment is a (Mechanism, number of steps) pair, got {type(mechanism).__name__}.",
            code="mechanism",
        )
    return mechanism


def _accounted_as(mechanism: Mechanism, num_steps: int) -> tuple[tuple[float, float], int]:
    """(q, sigma) and a number of steps, moved to the safe side where floating point would give out.

    More sampling and less noise only raise epsilon, so both moves keep an upper bound.
    """
    sigma = min(mechanism.noise_multiplier, MAX_NOISE_MULTIPLIER)
    if mechanism.num_batches is not None and mechanism.scheme in PARTITIONS:
        return (1.0, sigma), -(-num_steps // mechanism.num_batches)
    if mechanism.scheme not in (SamplingScheme.POISSON, SamplingScheme.FULL_BATCH):
        raise AccountingError(
            f"No trustworthy bound of this kind is known for {mechanism.scheme} batches, alone or beside "
            "others; their epsilon alone is. Poisson batches have all of them.",
            code="no-bound",
        )
    q = max(mechanism.sampling_prob, MIN_SAMPLING_PROB)
    if mechanism.scheme is SamplingScheme.FULL_BATCH or q > FULL_SAMPLING_PROB:
        q = 1.0
    return (q, sigma), num_steps


def coarsen(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Fewer phases: sigma rounded down and q rounded up to 3 digits. An upper bound stays one."""
    counts: dict[tuple[float, float], int] = {}
    for phase in phases:
        q = min(1.0, round_up(phase.sampling_prob, digits=3))
        key = (q, round_down(phase.noise_multiplier, digits=3))
        counts[key] = counts.get(key, 0) + phase.num_steps
    return tuple(sorted(Phase(q, sigma, num_steps) for (q, sigma), num_steps in counts.items()))


def unsampled_noise_multiplier(phases: Iterable[Phase]) -> float:
    """The one Gaussian step equal to all unsampled phases together: 1/sigma^2 = sum T/sigma^2."""
    return 1.0 / math.sqrt(sum(p.num_steps / p.noise_multiplier**2 for p in phases if not p.sampled))


def to_event(phases: tuple[Phase, ...]) -> dp_accounting.ComposedDpEvent:
    """The phases as one dp-accounting event; the unsampled ones exactly as a single Gaussian."""
    events: list[dp_accounting.DpEvent] = [
        dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(
                phase.sampling_prob, dp_accounting.GaussianDpEvent(phase.noise_multiplier)
            ),
            phase.num_steps,
        )
        for phase in phases
        if phase.sampled
    ]
    if any(not phase.sampled for phase in phases):
        events.append(dp_accounting.GaussianDpEvent(unsampled_noise_multiplier(phases)))
    return dp_accounting.ComposedDpEvent(events)


def round_up(value: float, *, digits: int) -> float:
    """The smallest number of `digits` significant digits that is not below `value`."""
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(value))


def round_down(value: float, *, digits: int) -> float:
    """The largest number of `digits` significant digits that is not above `value`."""
    return float(Context(prec=digits, rounding=ROUND_FLOOR).create_decimal_from_float(value))
