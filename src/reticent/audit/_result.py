"""What an audit found, as a record and as JSON; and its curves, claimed beside measured.

Room: audit. May import NumPy, SciPy, `reticent.{account,records}` and the room's own files; never torch.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from reticent.records import Mechanism

from ._exposure import ExposureRanks
from ._intervals import clopper_pearson_lower, clopper_pearson_upper
from ._probes import Probe
from ._recording import LowerBound, Recording, trade_off

_POINTS: Final = 41
_POINTWISE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed of a run.

    Args:
        epsilon: the claimed epsilon.
        delta: its delta.
        mechanism: each step's sampling and noise.
        num_steps: how many steps.
    """

    epsilon: float
    delta: float
    mechanism: Mechanism
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A test's true positives against its false positives.

    Args:
        about: "one step" or "the whole run": what the test sees.
        claimed: (false positive rate, the most true positives that the claim allows).
        measured: (false positive rate, true positive rate, its lower and upper 95 % Clopper-Pearson bounds,
            each point by itself).
    """

    about: Literal["one step", "the whole run"]
    claimed: tuple[tuple[float, float], ...]
    measured: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found of a trainer.

    Args:
        target: what was audited.
        claim: what it claims.
        bound: the lower bound on its epsilon.
        probes: what the probes found; none if they were not asked for.
        curve: true against false positives, if they were measured.
        exposure: of canaries that are random tokens.
        num_canaries: M.
        num_steps: steps that were run for it; 0 if nobody counted.
        canaries: their kind, in a word or two.
    """

    target: str
    claim: Claim
    bound: LowerBound
    probes: tuple[Probe, ...] = ()
    curve: Curve | None = field(default=None, repr=False)
    exposure: ExposureRanks | None = None
    num_canaries: int
    num_steps: int
    canaries: str

    @property
    def refuted(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.bound.epsilon > self.claim.epsilon

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the claim: neither the bound nor a probe. No proof of it."""
        return not self.refuted and all(probe.passed for probe in self.probes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `audit.json`; what is infinite is null."""
        record: dict[str, Any] = {
            "format": 1,
            "target": self.target,
            "passed": self.passed,
            "epsilon_claimed": _finite(self.claim.epsilon),
            "epsilon_lower_bound": _finite(self.bound.epsilon),
            "confidence": self.bound.confidence,
            "method": self.bound.method,
            "delta": self.claim.delta,
            "refuted": self.refuted,
            "epsilon_attack_at_most": None if self.bound.at_most is None else _finite(self.bound.at_most),
            "claim": {
                "sampling": self.claim.mechanism.scheme.value,
                "sampling_prob": self.claim.mechanism.sampling_prob,
                "noise_multiplier": self.claim.mechanism.noise_multiplier,
                "num_steps": self.claim.num_steps,
            },
            "canaries": self.canaries,
            "num_canaries": self.num_canaries,
            "num_steps": self.num_steps,
            "probes": [asdict(probe) for probe in self.probes],
            "exposure": None if self.exposure is None else asdict(self.exposure),
            "curve": None,
            "pictures": [],
        }
        if self.curve is not None:
            record["curve"] = {
                "about": self.curve.about,
                "claimed": [list(point) for point in self.curve.claimed],
                "measured": [list(point) for point in self.curve.measured],
            }
        return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's part of an audit's JSON: no curves."""
    return {name: value for name, value in record.items() if name not in ("curve", "format", "pictures")}


def one_step_curve(seen: Recording, *, mechanism: Mechanism) -> Curve:
    """Telling from one step's release whether a canary took part, for one who knows all else of the step."""
    mu = 1.0 / mechanism.noise_multiplier
    scores_in, scores_out = seen.scores[seen.included], seen.scores[~seen.included]
    alphas = _alphas(len(scores_out))
    return Curve(
        about="one step",
        claimed=tuple((float(a), float(ndtr(ndtri(a) + mu))) for a in alphas),
        measured=_measured(scores_in, scores_out, alphas),
    )


def whole_run_curve(evidence: npt.NDArray[np.float64], member: npt.NDArray[np.bool_], claim: Claim) -> Curve:
    """Telling from a whole run whether a canary was in the data."""
    alphas = _alphas(int((~member).sum()))
    least = trade_off(claim.mechanism, claim.num_steps)
    return Curve(
        about="the whole run",
        claimed=tuple((float(a), 1.0 - least(1.0 - float(a))) for a in alphas),
        measured=_measured(evidence[member], evidence[~member], alphas),
    )


def _alphas(num_out: int) -> npt.NDArray[np.float64]:
    """False positive rates from one in all to all, evenly on a log scale and on a plain one."""
    rates = [np.geomspace(1.0 / max(num_out, 2), 1.0, _POINTS), np.linspace(0.05, 0.95, 19)]
    return np.unique(np.concatenate(rates))


def _measured(
    scores_in: npt.NDArray[np.float64], scores_out: npt.NDArray[np.float64], alphas: npt.NDArray[np.float64]
) -> tuple[tuple[float, float, float, float], ...]:
    if not len(scores_in) or not len(scores_out):
        return ()
    highest = np.sort(scores_out)[::-1]
    points = []
    for alpha in alphas:
        allowed = min(len(highest), max(1, round(alpha * len(highest))))
        hits = int((scores_in >= highest[allowed - 1]).sum())
        chance, num = (1.0 - _POINTWISE) / 2.0, len(scores_in)
        points.append(
            (
                allowed / len(highest),
                hits / num,
                clopper_pearson_lower(hits, num, chance=chance),
                clopper_pearson_upper(hits, num, chance=chance),
            )
        )
    return tuple(dict.fromkeys(points))
