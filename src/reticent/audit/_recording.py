"""What a white-box audit saw of a training run, and the bounds that follow from it.

Room: audit. May import NumPy, SciPy, `reticent.{account,records,errors}`; never torch.

Shape letters (this file): T step, M canary.

Sources:
    [1] Nasr et al. 2023, arXiv:2302.07956 (every step of every canary is a trial).
    [2] Steinke, Nasr, Jagielski 2023, arXiv:2305.08846.
    [3] Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from scipy.special import ndtr

from reticent.account import delta_curve, epsilon_floor
from reticent.audit._intervals import Errors, check_confidence, mu_at_most, mu_from_errors
from reticent.audit._one_run import BlowUp, Guesses, f_dp_rejected, steinke_epsilon
from reticent.errors import AuditError, ConfigError
from reticent.records import Mechanism

NUM_GUESSES: Final = (
    1.0,
    0.7,
    0.5,
    0.3,
    0.2,
    0.1,
)  # shares of all canaries; each costs a sixth of the chance
_EPSILONS: Final = tuple(float(e) for e in np.concatenate([np.arange(0, 3, 0.1), np.arange(3, 30.1, 0.5)]))
_LEAST_NOISE: Final = 0.1
_MOST_NOISE: Final = 64.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """Each step's released values along each canary's direction, and which canaries took part.

    Args:
        scores: shape (T, M): the released sum along canary j's unit direction, over the clipping norm, less
            what the other canaries put there. About 1 for one that took part, about 0 for one that did not.
        included: shape (T, M): who took part.
        member: shape (M,): which canaries were in the data set at all.
    """

    scores: Float[np.ndarray, "T M"] = field(repr=False)
    included: Bool[np.ndarray, "T M"] = field(repr=False)
    member: Bool[np.ndarray, " M"] = field(repr=False)

    def __post_init__(self) -> None:
        if self.scores.size == 0 or not np.isfinite(self.scores).all():
            raise AuditError(
                "The audit saw no step, or one whose released gradient was not finite: there is nothing to "
                "measure. The trainer must step the optimizer that it was given.",
                code="audit-saw-nothing",
            )

    @property
    def num_steps(self) -> int:
        """Steps seen."""
        return len(self.scores)


def require_both(took_part: npt.NDArray[np.bool_], did: str) -> None:
    """Refuse canaries of which all, or none, took part: no score of theirs can speak against a claim.

    Args:
        took_part: shape (..., M).
        did: what they did or did not do, for the message.

    Raises:
        AuditError[audit-saw-nothing]: all did, or none.
    """
    if took_part.any() and not took_part.all():
        return
    how_many = "all" if took_part.any() else "none"
    raise AuditError(
        f"Nothing was tested: {how_many} of {took_part.shape[-1]} canaries {did}, and an audit "
        "compares those that did with those that did not. Take more canaries.",
        code="audit-saw-nothing",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBound:
    """A lower bound on epsilon, and how it came about.

    Args:
        epsilon: with probability `confidence`, no mechanism with a smaller epsilon shows this much.
        delta: of the statement.
        confidence: one minus the chance of a false alarm.
        method: how it was measured, and what it takes for granted, in words.
        mu: the bound on a single step's Gaussian parameter, where there is one.
        at_most: the other end of the interval of what this attack shows; no bound on the mechanism.
    """

    epsilon: float
    delta: float
    confidence: float
    method: str
    mu: float | None = None
    at_most: float | None = None


def step_level_bound(
    seen: Recording, *, mechanism: Mechanism, num_steps: int, delta: float, confidence: float
) -> LowerBound:
    """Bound one step's leak from every (step, canary) pair, then compose it through the declared sampler [1].

    The threshold between "in" and "out" is the best one for the declared noise: it depends on what was
    claimed and on who took part, never on the scores, so no trial is used twice.

    Args:
        seen: what was recorded.
        mechanism: how steps sample, and the noise multiplier that is claimed.
        num_steps: steps T of the claim.
        delta: of the claim.
        confidence: one minus the chance of a false alarm.

    Guarantee:
        If each step adds independent Gaussian noise of the claimed multiplier or more to a sum that one
        example moves by at most the clipping norm, the bound is above the true epsilon with probability at
        most 1 - confidence.
    """
    num_in = int(seen.included.sum())
    num_out = seen.included.size - num_in
    threshold = _best_threshold(mechanism.noise_multiplier, num_in, num_out, confidence)
    guessed_in = seen.scores > threshold
    errors = Errors(
        false_positives=int((guessed_in & ~seen.included).sum()),
        num_out=num_out,
        false_negatives=int((~guessed_in & seen.included).sum()),
        num_in=num_in,
    )
    mu = mu_from_errors(errors, confidence=confidence)
    most = mu_at_most(errors, confidence=confidence)
    return LowerBound(
        epsilon=_composed(mu, mechanism, num_steps, delta),
        delta=delta,
        confidence=confidence,
        mu=mu,
        at_most=_composed(most, mechanism, num_steps, delta) if math.isfinite(most) else None,
        method=(
            f"step-level white-box canaries: {seen.scores.shape[1]} canaries, {seen.num_steps} steps, "
            f"{num_in} trials in and {num_out} out; Clopper-Pearson on one step's mu, composed over "
            f"{num_steps} steps of the declared sampler ({mechanism.scheme.value}, "
            f"q = {mechanism.sampling_prob:g}), which is taken for granted here and tested apart"
        ),
    )


def _best_threshold(noise: float, num_in: int, num_out: int, confidence: float) -> float:
    """The threshold with the best bound if the errors come out as the claim expects; knows no score."""
    if noise <= 0.0:
        return 0.5

    def expected(threshold: float) -> float:
        errors = Errors(
            false_positives=round(num_out * float(ndtr(-threshold / noise))),
            num_out=num_out,
            false_negatives=round(num_in * float(ndtr((threshold - 1.0) / noise))),
            num_in=num_in,
        )
        return mu_from_errors(errors, confidence=confidence)

    return max((float(t) for t in np.linspace(-1.0, 2.0, 31)), key=expected)


def _composed(mu: float, mechanism: Mechanism, num_steps: int, delta: float) -> float:
    if mu <= 0.0:
        return 0.0
    return epsilon_floor([(_with_noise(mechanism, 1.0 / mu), num_steps)], delta=delta)


def log_likelihood_ratios(seen: Recording, *, mechanism: Mechanism) -> Float[np.ndarray, " M"]:
    """Each canary's evidence over the whole run for "in the data set": the best score under the claim."""
    q, variance = mechanism.sampling_prob, mechanism.noise_multiplier**2
    gain = (2.0 * seen.scores - 1.0) / (2.0 * variance)
    if q == 1.0:
        return gain.sum(0)
    return np.logaddexp(math.log1p(-q), math.log(q) + gain).sum(0)


def one_run_guesses(
    evidence: Float[np.ndarray, " M"], member: Bool[np.ndarray, " M"], *, share: float
) -> Guesses:
    """Guess "in" for the highest `share` / 2 of the canaries, "out" for the lowest; abstain on the rest."""
    half = max(1, int(len(evidence) * share / 2))
    order = np.argsort(evidence, kind="stable")
    right = int(member[order[-half:]].sum()) + int((~member[order[:half]]).sum())
    return Guesses(num_canaries=len(evidence), num_guesses=2 * half, num_correct=right)


def one_run_bound(
    evidence: npt.NDArray[np.float64],
    member: npt.NDArray[np.bool_],
    *,
    delta: float,
    confidence: float,
    mechanism: Mechanism | None = None,
    num_steps: int = 1,
) -> LowerBound:
    """Lower bound from one run in which each canary was in the data set by a fair coin.

    Six numbers of guesses are tried, each at a sixth of the chance of a false alarm (Bonferroni).

    Args:
        evidence: each canary's score, shape (M,); higher means "in".
        member: the coins, shape (M,).
        delta: of the claim.
        confidence: one minus the chance of a false alarm.
        mechanism: the claimed kind of step. With it, the bound is of f-DP [3] against the trade-off curves of
            this sampler and number of steps, noise being the unknown; without, of (epsilon, delta) [2].
        num_steps: steps of the claim; only with `mechanism`.

    Guarantee:
        Above the true epsilon with probability at most 1 - confidence, for any mechanism without `mechanism`;
        with it, for any whose trade-off curve is one of those named.

    Raises:
        ConfigError[audit-counts]: scores and coins of different number, or fewer than 2.
    """
    if evidence.shape != member.shape or len(evidence) < 2:
        raise ConfigError(
            f"One-run auditing needs one score for each coin, and at least 2 canaries; got shapes "
            f"{evidence.shape} and {member.shape}.",
            code="audit-counts",
        )
    each = check_confidence(confidence) / len(NUM_GUESSES)
    tries = [one_run_guesses(evidence, member, share=share) for share in NUM_GUESSES]
    if mechanism is None:
        found = max(steinke_epsilon(guesses, delta=delta, confidence=1.0 - each) for guesses in tries)
        kind = "(epsilon, delta)-DP, Steinke et al. 2023"
    else:
        found = _least_refuted(tries, mechanism, num_steps, delta=delta, chance=each)
        kind = (
            f"f-DP, Mahloujifar et al. 2024, trade-off curve of {num_steps} Gaussian steps "
            f"({mechanism.scheme.value}, q = {mechanism.sampling_prob:g})"
        )
    return LowerBound(
        epsilon=found,
        delta=delta,
        confidence=confidence,
        method=(
            f"one run, {len(evidence)} canaries by fair coins, {kind}; the best of {len(tries)} numbers of "
            "guesses (Bonferroni)"
        ),
    )


def _least_refuted(
    tries: list[Guesses], mechanism: Mechanism, num_steps: int, *, delta: float, chance: float
) -> float:
    """Epsilon at the least noise that is refuted, by bisection over the noise multiplier."""

    def refuted(noise: float) -> bool:
        curve = trade_off(_with_noise(mechanism, noise), num_steps)
        return any(f_dp_rejected(guesses, blow_up_inverse=curve, chance=chance) for guesses in tries)

    high = _MOST_NOISE
    if not refuted(high):
        return 0.0
    low = _LEAST_NOISE
    if refuted(low):
        return epsilon_floor([(_with_noise(mechanism, low), num_steps)], delta=delta)
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return epsilon_floor([(_with_noise(mechanism, high), num_steps)], delta=delta)


def _with_noise(mechanism: Mechanism, noise: float) -> Mechanism:
    return replace(mechanism, noise_multiplier=noise)


def trade_off(mechanism: Mechanism, num_steps: int) -> BlowUp:
    """The least probability that an event of probability x may have after one example is changed.

    From the mechanism's deltas on a grid of epsilons: a curve on the safe side, so that what refutes it
    refutes the mechanism.
    """
    eps = np.array(_EPSILONS)
    deltas = np.array(delta_curve([(mechanism, num_steps)], epsilons=_EPSILONS))
    shrink, grow = np.exp(-eps), np.exp(eps)

    def least(x: float) -> float:
        low = np.max(shrink * (x - deltas))
        high = np.max(1.0 - grow * (1.0 - x) - deltas)
        return float(max(0.0, low, high))

    return least
