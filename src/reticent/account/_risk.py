"""What a spent budget means for an attacker: trade-off of errors, advantage, reconstruction.

Room: account. May import `reticent.records` and dp-accounting; never torch.

Sources:
    [1] Dong, Roth, Su 2022, arXiv:1905.02383 (trade-off functions).
    [2] Kulynych et al. 2024, arXiv:2407.02191 (trade-off functions from PLD).
    [3] Hayes, Mahloujifar, Balle 2023, arXiv:2302.07225 (reconstruction: success <= 1 - beta(prior)).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import dp_accounting
import numpy as np
import numpy.typing as npt
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from reticent.account._bounds import largest_loss, pld_interval, pld_margin
from reticent.account._events import (
    MAX_PHASES,
    Phase,
    Segments,
    coarsen,
    merge_phases,
    to_event,
    unsampled_noise_multiplier,
)
from reticent.account._own_bounds import own_history, simplified
from reticent.records import EpsilonReport, NeighbouringRelation

ALPHAS: Final = (1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_MAX_POINTS: Final = 100_000
_Curve = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """Bounds on what any attacker can do who knows everything but one example, and the draws and the noise.

    Args:
        advantage: true positives less false positives of the best membership test, at most this.
        trade_off: (false positive rate, least false negative rate): no test does better [1].
        reconstruction: (prior, success): who guesses the example right with chance `prior` without the
            run guesses it with at most `success` after it [3].
        source: where the bounds come from.
    """

    advantage: float
    trade_off: tuple[tuple[float, float], ...]
    reconstruction: tuple[tuple[float, float], ...]
    source: str


def risk(report: EpsilonReport, segments: Segments, *, alphas: Sequence[float] = ALPHAS) -> Risk:
    """Bounds on attacks, from all of the privacy loss where it is known, else from (epsilon, delta) alone.

    Args:
        report: the epsilon of the same steps.
        segments: (mechanism, number of steps performed) pairs.
        alphas: false positive rates, and priors, at which to bound, in (0, 1).

    Guarantee:
        Each bound holds for every attack, under the report's relation, up to the measured margin of PLD.
    """
    segments = simplified(segments)
    if own_history(segments) is not None:
        return _from_point(report, alphas)
    phases = merge_phases(segments)
    if len(phases) > MAX_PHASES:
        phases = coarsen(phases)
    if not phases:
        return _from_curve(lambda alpha: 1.0 - alpha, 0.0, "no step was performed", alphas)
    if not math.isfinite(report.epsilon):
        return _from_curve(lambda alpha: 0.0, 1.0, "no privacy", alphas)
    replaced = report.neighbouring_relation is NeighbouringRelation.REPLACE_ONE
    if not any(phase.sampled for phase in phases):
        mu = (2.0 if replaced else 1.0) / unsampled_noise_multiplier(phases)
        return _from_curve(
            lambda alpha: float(norm.cdf(norm.isf(alpha) - mu)),
            float(2.0 * norm.cdf(mu / 2.0) - 1.0),
            "exact Gaussian",
            alphas,
        )
    if report.epsilon_pld is None:
        return _from_point(report, alphas)
    profile = _profile(phases, report, replaced)
    return _from_curve(lambda alpha: _beta(alpha, *profile), float(profile[1][0]), "PLD", alphas)


def _from_point(report: EpsilonReport, alphas: Sequence[float]) -> Risk:
    """From one point of the profile; the advantage is the total variation of what is (epsilon, delta)-DP."""
    points = np.array([report.epsilon]), np.array([report.delta])
    advantage = 1.0 - 2.0 * (1.0 - report.delta) / (1.0 + math.exp(min(report.epsilon, 700.0)))
    return _from_curve(lambda alpha: _beta(alpha, *points), advantage, "(epsilon, delta) alone", alphas)


def _profile(phases: tuple[Phase, ...], report: EpsilonReport, replaced: bool) -> tuple[_Curve, _Curve]:
    """Epsilons from 0, and an upper bound on delta at each."""
    relations = dp_accounting.NeighboringRelation
    interval = max(pld_interval(phases, max(report.epsilon, 1e-3)), largest_loss(phases) / _MAX_POINTS)
    accountant = PLDAccountant(
        relations.REPLACE_ONE if replaced else relations.ADD_OR_REMOVE_ONE, interval
    ).compose(to_event(phases))
    epsilons = np.concatenate(
        [np.linspace(0.0, 2.0 * report.epsilon, 400), report.epsilon * np.linspace(2.1, 6, 40)]
    )
    deltas = np.array([accountant.get_delta(float(e)) for e in epsilons])
    return epsilons, np.minimum(1.0, deltas + pld_margin(phases))


def _beta(alpha: float, epsilons: _Curve, deltas: _Curve) -> float:
    """The least false negative rate at false positive rate alpha: the largest of the lines' bounds [1]."""
    with np.errstate(over="ignore"):
        lines = np.concatenate(
            [1.0 - deltas - np.exp(epsilons) * alpha, np.exp(-epsilons) * (1.0 - deltas - alpha)]
        )
    return float(max(0.0, lines.max()))


def _from_curve(
    beta: Callable[[float], float], advantage: float, source: str, alphas: Sequence[float]
) -> Risk:
    betas = [(alpha, min(1.0 - alpha, beta(alpha))) for alpha in alphas]
    return Risk(
        advantage=min(1.0, max(0.0, advantage)),
        trade_off=tuple(betas),
        reconstruction=tuple((alpha, 1.0 - value) for alpha, value in betas),
        source=source,
    )
