"""Epsilon for a group of units together: what the guarantee of one row is worth to somebody who has k.

Room: account. May import `reticent.records` and dp-accounting; never torch.

Sources:
    [1] Choquette-Choo et al. 2024, arXiv:2310.15526 (the mixture of Gaussians that dominates a group).
"""

import math
from dataclasses import replace
from importlib.metadata import version
from numbers import Integral
from typing import Final

import dp_accounting
from dp_accounting import dp_event
from scipy.stats import binom

from reticent.account._bounds import largest_loss, pld_epsilon, pld_interval, pld_margin
from reticent.account._epsilon import epsilon
from reticent.account._events import (
    MAX_PHASES,
    Phase,
    Segments,
    check_relation,
    check_schemes,
    coarsen,
    merge_phases,
    num_performed,
)
from reticent.errors import AccountingError, ConfigError
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme, check_delta

_MAX_GROUP: Final = 256
_MAX_POINTS: Final = 30_000  # of a mixture's PLD: each takes a root search, so about two seconds
_MIN_SIGMA: Final = 0.05  # of the whole group: below, a grid that holds its losses would be too large


def group_epsilon(
    segments: Segments,
    *,
    group_size: int,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> EpsilonReport:
    """Epsilon of steps performed, for data sets that differ in up to `group_size` units.

    Of k units, each drawn by itself with probability q, Binomial(k, q) take part in a step, and i of
    them move the sum by at most i bounds [1]. Where every unit takes part, k of them are one with k
    times the bound. (The general lemma, k times epsilon with delta times k e^((k-1) epsilon), is far
    looser: often it has no solution.)

    Args:
        segments: (mechanism, number of steps performed) pairs.
        group_size: k, the number of units; an integer from 1 to 256.
        delta: strictly between 0 and 1.
        relation: the neighbouring relation of the statement.

    Returns:
        The report. `epsilon_rdp` is None: no RDP bound of a sampled group is known to us.

    Guarantee:
        Not below the true epsilon of the group, up to the measured margin of PLD (as `epsilon`).

    Raises:
        ConfigError[group-size]: not an integer from 1 to 256.
        ConfigError: as `epsilon`.
        AccountingError[no-bound]: PLD cannot be trusted here (delta beside its rounding, or hardly any
            noise), and there is no other bound of a sampled group; or replace-one of a sampled group.
    """
    k = _checked_size(group_size)
    check_delta(delta)
    relation = check_relation(relation)
    check_schemes(segments, relation)
    if k == 1:
        return epsilon(segments, delta=delta, relation=relation)
    phases = merge_phases(segments)
    if not any(phase.sampled for phase in phases):
        return replace(_unsampled(phases, k, delta, relation), num_steps=num_performed(segments))
    if relation == NeighbouringRelation.REPLACE_ONE:
        raise AccountingError(
            f"No trustworthy epsilon is known for a group of {k} under replace-one of sampled examples. "
            "State it for zero-out-one or add-or-remove-one.",
            code="no-bound",
        )
    if len(phases) > MAX_PHASES:
        phases = coarsen(phases)
    margin = pld_margin(phases)
    least = min(phase.noise_multiplier for phase in phases) / k
    if margin > delta / 4.0 or least < _MIN_SIGMA or len(phases) > MAX_PHASES:
        raise AccountingError(
            f"No trustworthy epsilon is known for a group of {k} here: delta {delta:.3g} is too small beside "
            f"the rounding of PLD ({margin:.2g}), or the noise of {least:.3g} bounds of the group is too "
            "little. Ask for a smaller group or a larger delta.",
            code="no-bound",
        )
    value = pld_epsilon(_event(phases, k), delta - margin, _interval(phases, k))
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=None,
        epsilon_pld=value,
        neighbouring_relation=relation,
        accountant=f"PLD of a group of {k} (dp-accounting {version('dp-accounting')})",
        num_steps=num_performed(segments),
        notes=(f"for data sets that differ in up to {k} units.",),
    )


def _checked_size(group_size: int) -> int:
    ok = isinstance(group_size, Integral) and not isinstance(group_size, bool)
    if not ok or not 1 <= group_size <= _MAX_GROUP:
        raise ConfigError(
            f"group_size must be an integer from 1 to {_MAX_GROUP}, got {group_size!r}.", code="group-size"
        )
    return int(group_size)


def _unsampled(
    phases: tuple[Phase, ...], k: int, delta: float, relation: NeighbouringRelation
) -> EpsilonReport:
    """k units in every step are one unit with k times the bound."""
    return epsilon(
        [
            (
                Mechanism(
                    scheme=SamplingScheme.FULL_BATCH,
                    sampling_prob=1.0,
                    noise_multiplier=math.nextafter(phase.noise_multiplier / k, 0.0),
                ),
                phase.num_steps,
            )
            for phase in phases
        ],
        delta=delta,
        relation=relation,
    )


def _interval(phases: tuple[Phase, ...], k: int) -> float:
    """The grid that suits an epsilon near 5, or a coarser one (a looser bound) that bounds the cost."""
    as_one = tuple(
        Phase(min(1.0, k * p.sampling_prob), p.noise_multiplier / k, p.num_steps) for p in phases if p.sampled
    )
    return max(pld_interval(as_one, 5.0), largest_loss(as_one) / _MAX_POINTS)


def _event(phases: tuple[Phase, ...], k: int) -> dp_accounting.DpEvent:
    members = list(range(k + 1))
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_event.MixtureOfGaussiansDpEvent(
                    phase.noise_multiplier,
                    [float(i) for i in members],
                    [float(p) for p in binom.pmf(members, k, phase.sampling_prob)],
                ),
                phase.num_steps,
            )
            for phase in phases
        ]
    )
