"""The epsilon of keeping the best of a random number of runs that differ in their settings.

Room: account. May import dp-accounting and `reticent.{records,errors}`; never torch. The theorems'
numerics are dp-accounting's; this file says when they apply.

Choosing settings by training on the private data several times and keeping the best run costs
privacy: the choice depends on every run. If their number K is drawn from the distributions of [1]
and nothing but the best run is ever released, the cost is far below that of publishing all K.

Sources:
    [1] Papernot, Steinke 2021, arXiv:2110.03620 (theorems 2 and 6).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant

from reticent.account._bounds import rdp_accountant
from reticent.account._events import (
    MIN_NOISE_MULTIPLIER,
    Segments,
    check_relation,
    check_schemes,
    merge_phases,
    num_performed,
)
from reticent.errors import ConfigError
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme, check_delta


class TrialsDistribution(StrEnum):
    """How the number of runs is drawn: heavier tails find better settings and cost more."""

    POISSON = "poisson"
    NEGATIVE_BINOMIAL = "negative-binomial"
    GEOMETRIC = "geometric"
    LOGARITHMIC = "logarithmic"


_SHAPES = {
    TrialsDistribution.POISSON: math.inf,
    TrialsDistribution.NEGATIVE_BINOMIAL: 0.5,
    TrialsDistribution.GEOMETRIC: 1.0,
    TrialsDistribution.LOGARITHMIC: 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTrials:
    """The distribution of the number K of runs.

    | distribution | K = 0 possible | shape in [1] |
    |---|---|---|
    | poisson | yes: then nothing is released | infinity |
    | negative-binomial (truncated) | no | 0.5 |
    | geometric | no | 1 |
    | logarithmic | no | 0 |

    Args:
        distribution: its kind.
        mean: expected number of runs, from 1 to 1e6.

    Raises:
        ConfigError[trials]: a mean that the distribution cannot have.
    """

    distribution: TrialsDistribution
    mean: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "distribution", TrialsDistribution(self.distribution))
        if not isinstance(self.mean, int | float) or not 1.0 <= self.mean <= 1e6:
            raise ConfigError(
                f"The mean number of trials must be from 1 to 1e6, got {self.mean!r}.", code="trials"
            )

    @property
    def shape(self) -> float:
        """The parameter eta of [1]; infinity stands for Poisson."""
        return _SHAPES[self.distribution]

    def draw(self, rng: np.random.Generator) -> int:
        """Draw K [1, Definition 1].

        Args:
            rng: keyed from the operating system for a sweep that shall be private: who knows K and
                the order of the runs knows more than the theorems allow.
        """
        if self.distribution is TrialsDistribution.POISSON:
            return int(rng.poisson(self.mean))
        gamma = _gamma(self.shape, self.mean)
        if self.shape == 0.0:
            return int(rng.logseries(1.0 - gamma))
        if gamma > 0.9:  # most draws would be 0
            return _first_trials(rng, self.shape, gamma)
        while True:  # the negative binomial, given that it is not 0
            drawn = int(rng.negative_binomial(self.shape, gamma))
            if drawn:
                return drawn


def _first_trials(rng: np.random.Generator, shape: float, gamma: float) -> int:
    """The negative binomial, given that it is not 0, by its cumulative sums; for few expected runs."""
    if gamma >= 1.0 - 1e-12:  # the mean is 1
        return 1
    left, k = rng.random(), 1
    prob = shape * (1.0 - gamma) * gamma**shape / -math.expm1(shape * math.log(gamma))
    while left >= prob > 0.0:
        left -= prob
        prob *= (1.0 - gamma) * (k + shape) / (k + 1)
        k += 1
    return k


@cache
def _gamma(shape: float, mean: float) -> float:
    """The parameter gamma in (0, 1) of the truncated negative binomial with this mean, by bisection.

    The mean falls from infinity (gamma -> 0) to 1 (gamma -> 1); never above the one asked for.
    """
    low, high = 1e-15, 1.0
    for _ in range(200):
        middle = math.sqrt(low * high)
        if _mean(shape, middle) > mean:
            low = middle
        else:
            high = middle
    return high


def _mean(shape: float, gamma: float) -> float:
    if gamma >= 1.0:
        return 1.0
    if shape == 0.0:
        return (1.0 / gamma - 1.0) / -math.log(gamma)
    return shape * (1.0 - gamma) / (gamma * -math.expm1(shape * math.log(gamma)))


@dataclass(frozen=True, eq=False)
class _WorstOf(dp_accounting.DpEvent):
    """One of several mechanisms, drawn without looking at the data: at each order, the worst of them."""

    parts: tuple[RdpAccountant, ...]


class _Accountant(RdpAccountant):
    """RDP that also knows `_WorstOf`.

    A mixture over settings that do not depend on the data has at most the largest Renyi divergence of
    its parts: (alpha - 1) D_alpha is jointly quasi-convex.
    """

    def _maybe_compose(self, event: dp_accounting.DpEvent, count: int, do_compose: bool):
        if not isinstance(event, _WorstOf):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            self._rdp = self._rdp + count * np.max([part.rdp for part in event.parts], axis=0)
        return None


def choice_epsilon(
    candidates: Sequence[Segments],
    *,
    trials: RandomTrials,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> EpsilonReport:
    """Epsilon of releasing only the best of K runs, each of settings drawn at random from the candidates.

    Args:
        candidates: what a run with each of the possible settings spends.
        trials: the distribution that K was drawn from.
        delta: strictly between 0 and 1.
        relation: the neighbouring relation of the statement.

    Returns:
        The report, by RDP; `num_steps` is the largest of a single run.

    Guarantee:
        Not below the true epsilon of: draw K; K times draw settings uniformly from the candidates and
        run them; release the run with the best score, and nothing else (not K, not the other scores).
        The score must be computed from the run's output and public data alone.

        | case | epsilon |
        |---|---|
        | no candidate spends anything | that of choosing among constants: 0 up to what [1] charges |
        | a candidate without noise | infinity |

    Raises:
        ConfigError[trials]: there is no candidate.
        ConfigError[delta], ConfigError[relation], ConfigError[mechanism]: as `epsilon`.
    """
    check_delta(delta)
    relation = check_relation(relation)
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise ConfigError("No bound is known for a choice under replace-one.", code="relation")
    if not candidates:
        raise ConfigError("A selection needs at least one candidate.", code="trials")
    for segments in candidates:
        check_schemes(segments, relation)
    merged = [merge_phases(segments) for segments in candidates]
    num_steps = max(num_performed(segments) for segments in candidates)
    value = _rdp_of_selection(merged, trials, delta)
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=value,
        epsilon_pld=None,
        neighbouring_relation=relation,
        accountant=f"RDP, best of a random number of runs (dp-accounting {version('dp-accounting')})",
        num_steps=num_steps,
        notes=(
            f"the number of runs was drawn from a {trials.distribution} distribution with mean "
            f"{trials.mean:g}; only the best run may be released.",
        ),
    )


def recorded_choice_epsilon(
    selection: Mapping[str, Any], segments: Segments, *, delta: float, relation: NeighbouringRelation
) -> EpsilonReport:
    """`choice_epsilon` of a run that was kept, from what its `selection.json` says of the others.

    Args:
        selection: `distribution`, `mean`, and `candidates`: of each, the phases that its run would spend, as
            (scheme, sampling probability, noise multiplier, number of steps).
        segments: what the kept run itself spent, from its ledger.
        delta: of the ledger.
        relation: of the ledger.

    Raises:
        KeyError, TypeError, ValueError: the record is not such a one.
        AccountingError, ConfigError: as `choice_epsilon`.
    """
    trials = RandomTrials(distribution=TrialsDistribution(selection["distribution"]), mean=selection["mean"])
    candidates = [
        [
            (Mechanism(scheme=SamplingScheme(scheme), sampling_prob=q, noise_multiplier=sigma), num_steps)
            for scheme, q, sigma, num_steps in phases
        ]
        for phases in selection["candidates"]
    ]
    return choice_epsilon([*candidates, segments], trials=trials, delta=delta, relation=relation)


def _rdp_of_selection(merged: Sequence[tuple], trials: RandomTrials, delta: float) -> float:
    if any(phase.noise_multiplier < MIN_NOISE_MULTIPLIER for phases in merged for phase in phases):
        return math.inf
    parts = tuple(rdp_accountant(phases) for phases in dict.fromkeys(merged))
    event = RepeatAndSelectDpEvent(_WorstOf(parts), trials.mean, trials.shape)
    return float(_Accountant(list(parts[0].orders)).compose(event).get_epsilon(delta))
