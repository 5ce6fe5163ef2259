"""Auditing over many runs: one attack, many independent trials, each in or out.

Room: audit. May import NumPy, SciPy, `reticent.errors`; never torch.

Sources:
    [1] Jagielski et al. 2020, arXiv:2006.07709 (a bound on epsilon from many runs).
    [2] Carlini et al. 2022, arXiv:2112.03570 (true positives at low false positive rates).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from reticent.audit._intervals import Errors, check_confidence, clopper_pearson_upper, epsilon_from_errors
from reticent.audit._recording import LowerBound
from reticent.errors import ConfigError

_Array = npt.NDArray[np.float64]
_Coins = npt.NDArray[np.bool_]
LOW_RATES: Final = (0.001, 0.01, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RocPoint:
    """How many members an attack finds while it accuses few others, as counted.

    Args:
        false_positive_rate: the share asked for; the attack's own is at most this.
        true_positive_rate: share of members found at that threshold.
        lower: Clopper-Pearson limits of that share, each wrong with half the chance of a false alarm, for
            trials that are independent of each other.
        upper: see `lower`.
    """

    false_positive_rate: float
    true_positive_rate: float
    lower: float
    upper: float


def roc(evidence: _Array, member: _Coins) -> tuple[_Array, _Array]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1); equal scores move together.

    Args:
        evidence: one score a trial; higher means "in".
        member: whether the trial was in.

    Raises:
        ConfigError[audit-counts]: shapes differ, a score is NaN, or no trial is in, or none out.
    """
    evidence, member = _checked(evidence, member)
    order = np.argsort(-evidence, kind="stable")
    last_of_equal = np.append(evidence[order][1:] != evidence[order][:-1], True)
    found = np.cumsum(member[order])[last_of_equal] / member.sum()
    accused = np.cumsum(~member[order])[last_of_equal] / (~member).sum()
    return np.append(0.0, accused), np.append(0.0, found)


def area_under(evidence: _Array, member: _Coins) -> float:
    """The chance that a member scores above a non-member; equal scores count half. Raises as `roc`."""
    accused, found = roc(evidence, member)
    return float(np.trapezoid(found, accused))


def roc_points(
    evidence: _Array, member: _Coins, *, rates: tuple[float, ...] = LOW_RATES, confidence: float = 0.95
) -> tuple[RocPoint, ...]:
    """The curve at given false positive rates, the low ones by default [2].

    A description, not a bound on epsilon: the threshold is chosen on the trials that it is counted on.

    Raises:
        ConfigError: as `roc`; audit-confidence.
    """
    chance = check_confidence(confidence)
    accused, found = roc(evidence, member)
    num_in = int(member.sum())
    points = []
    for rate in rates:
        share = float(found[accused <= rate].max())
        hits = round(share * num_in)
        points.append(
            RocPoint(
                false_positive_rate=rate,
                true_positive_rate=share,
                lower=1.0 - clopper_pearson_upper(num_in - hits, num_in, chance=chance / 2),
                upper=clopper_pearson_upper(hits, num_in, chance=chance / 2),
            )
        )
    return tuple(points)


def many_run_bound(evidence: _Array, member: _Coins, *, delta: float, confidence: float) -> LowerBound:
    """Lower bound on epsilon from independent runs, one trial each [1].

    The first half of the trials that were in and of those that were out chooses the threshold; only the
    rest is counted, so no trial is used twice.

    Args:
        evidence: one score a run; higher means "in". A score may depend on its own run, and on nothing
            that is counted here.
        member: whether the audited example was in that run's data, shape as `evidence`.
        delta: of the claim.
        confidence: one minus the chance of a false alarm.

    Guarantee:
        For any (epsilon, delta)-DP trainer whose runs are independent, above epsilon with probability at
        most 1 - confidence. Nothing is taken for granted about sampler or noise.

    Raises:
        ConfigError[audit-counts]: as `roc`, or fewer than 2 trials in or out.
    """
    evidence, member = _checked(evidence, member)
    inside, outside = evidence[member], evidence[~member]
    if min(len(inside), len(outside)) < 2:
        raise ConfigError(
            f"A bound over many runs needs at least 2 trials in and 2 out, got {len(inside)} and "
            f"{len(outside)}: half of them choose the threshold.",
            code="audit-counts",
        )
    half_in, half_out = len(inside) // 2, len(outside) // 2
    threshold = _best_threshold(inside[:half_in], outside[:half_out], delta, check_confidence(confidence))
    counted_in, counted_out = inside[half_in:], outside[half_out:]
    errors = Errors(
        false_positives=int((counted_out > threshold).sum()),
        num_out=len(counted_out),
        false_negatives=int((counted_in <= threshold).sum()),
        num_in=len(counted_in),
    )
    return LowerBound(
        epsilon=epsilon_from_errors(errors, delta=delta, confidence=confidence),
        delta=delta,
        confidence=confidence,
        method=(
            f"many runs: {len(counted_in)} with the example and {len(counted_out)} without are counted by "
            f"Clopper-Pearson, {half_in + half_out} others chose the threshold; nothing is assumed about "
            "sampler or noise"
        ),
    )


def _best_threshold(inside: _Array, outside: _Array, delta: float, chance: float) -> float:
    """The threshold with the best bound on these trials: epsilon_from_errors for all of them at once."""
    inside, outside = np.sort(inside), np.sort(outside)
    values = np.sort(np.concatenate([inside, outside]))
    with np.errstate(invalid="ignore"):
        between = (values[:-1] + values[1:]) / 2.0
    # Between infinite scores there is no middle: the lower one divides as well.
    thresholds = np.append(np.where(np.isfinite(between), between, values[:-1]), values[-1])
    accused = len(outside) - np.searchsorted(outside, thresholds, side="right")
    missed = np.searchsorted(inside, thresholds, side="right")

    def upper(wrong: npt.NDArray[np.int64], trials: int) -> _Array:
        limit = betaincinv(wrong + 1.0, np.maximum(trials - wrong, 1), 1.0 - chance / 2.0)
        return np.where(wrong >= trials, 1.0, limit)

    fpr, fnr = upper(accused, len(outside)), upper(missed, len(inside))
    gain = np.maximum((1.0 - delta - fnr) / fpr, (1.0 - delta - fpr) / fnr)
    return float(thresholds[np.argmax(gain)])


def _checked(evidence: _Array, member: _Coins) -> tuple[_Array, _Coins]:
    """Scores and coins as flat arrays, or an error."""
    evidence, member = np.asarray(evidence, dtype=np.float64), np.asarray(member, dtype=bool)
    if evidence.shape != member.shape or np.isnan(evidence).any() or member.all() or not member.any():
        raise ConfigError(
            "An attack is judged by one score for each trial, none of them NaN, of which some were in and "
            f"some out; got shapes {evidence.shape} and {member.shape}.",
            code="audit-counts",
        )
    return evidence.ravel(), member.ravel()
