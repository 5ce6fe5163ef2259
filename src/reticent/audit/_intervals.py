"""From counted errors to bounds on what a mechanism leaks: the arithmetic of every audit.

Room: audit. May import NumPy, SciPy, `reticent.errors`; never torch.

An attack that guesses "in" or "out" makes errors of two kinds: false positives (says in, was out) and
false negatives (says out, was in). A mechanism that is private forces at least one of them to be common.
So an upper confidence bound on both rates is a lower confidence bound on the leak.

Sources:
    [1] Clopper, Pearson 1934, "The use of confidence or fiducial limits".
    [2] Jagielski et al. 2020, arXiv:2006.07709 (from error rates to epsilon).
    [3] Nasr et al. 2023, arXiv:2302.07956 (from error rates to mu of Gaussian DP).
    [4] Dong, Roth, Su 2019, arXiv:1905.02383 (Gaussian DP, corollary 1).
    [5] Brown, Cai, DasGupta 2001, "Interval estimation for a binomial proportion" (Jeffreys).
"""

import math
from dataclasses import dataclass

from scipy.special import log_ndtr
from scipy.stats import beta, norm

from reticent.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """What an attack got wrong; each trial is one guess, independent of the others.

    Args:
        false_positives: guesses "in" among those that were out.
        num_out: trials that were out.
        false_negatives: guesses "out" among those that were in.
        num_in: trials that were in.

    Raises:
        ConfigError[audit-counts]: a count is negative, or more errors than trials.
    """

    false_positives: int
    num_out: int
    false_negatives: int
    num_in: int

    def __post_init__(self) -> None:
        for wrong, trials in ((self.false_positives, self.num_out), (self.false_negatives, self.num_in)):
            if not 0 <= wrong <= trials:
                raise ConfigError(
                    f"An attack cannot be wrong {wrong} times in {trials} trials.", code="audit-counts"
                )


def check_confidence(confidence: float) -> float:
    """Return the chance of a false alarm, 1 - confidence.

    Raises:
        ConfigError[audit-confidence]: not strictly between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(
            f"confidence must be strictly between 0 and 1, got {confidence!r}.", code="audit-confidence"
        )
    return 1.0 - confidence


def clopper_pearson_upper(wrong: int, trials: int, *, chance: float) -> float:
    """Upper confidence bound on an error rate [1]; wrong about it with probability at most `chance`.

    Exact: never below its confidence, for every true rate. No trials: 1.
    """
    return 1.0 if wrong >= trials else float(beta.ppf(1.0 - chance, wrong + 1, trials - wrong))


def clopper_pearson_lower(wrong: int, trials: int, *, chance: float) -> float:
    """Lower confidence bound on an error rate [1]; no trials, or no error: 0."""
    return 0.0 if wrong <= 0 else float(beta.ppf(chance, wrong, trials - wrong + 1))


def jeffreys_upper(wrong: int, trials: int, *, chance: float) -> float:
    """Upper end of the Jeffreys interval [5]: right on average over true rates, not for every one.

    For comparison with papers that use it. What Reticent reports as a bound uses `clopper_pearson_upper`.
    """
    return 1.0 if wrong >= trials else float(beta.ppf(1.0 - chance, wrong + 0.5, trials - wrong + 0.5))


def epsilon_from_errors(errors: Errors, *, delta: float, confidence: float) -> float:
    """Lower bound on epsilon from an attack's errors over many independent runs [2].

    Each rate is bounded at half the chance of a false alarm; whatever chose the attack's threshold must not
    have seen these trials.

    Guarantee:
        For any (epsilon, delta)-DP mechanism, above epsilon with probability at most 1 - confidence.
    """
    fpr, fnr = _rates(errors, check_confidence(confidence))
    found = 0.0
    for one, other in ((fpr, fnr), (fnr, fpr)):
        room = 1.0 - delta - other
        if room > one:
            found = max(found, math.log(room / one))
    return found


def mu_from_errors(errors: Errors, *, confidence: float) -> float:
    """Lower bound on mu of Gaussian DP [3]: Phi^-1(1 - FPR) - Phi^-1(FNR), never below 0.

    A negative difference says that the attack is worse than guessing, which is no evidence of a leak: its
    absolute value would be a bound that holds with no confidence at all.

    Guarantee:
        For any mu-GDP mechanism, above mu with probability at most 1 - confidence.
    """
    fpr, fnr = _rates(errors, check_confidence(confidence))
    if fpr >= 1.0 or fnr >= 1.0:
        return 0.0
    return max(0.0, float(norm.isf(fpr) - norm.ppf(fnr)))


def mu_at_most(errors: Errors, *, confidence: float) -> float:
    """The other end of the interval: what this attack, repeated for ever, would show at most.

    It bounds the attack, not the mechanism: a better attack may show more.
    """
    chance = check_confidence(confidence)
    fpr = clopper_pearson_lower(errors.false_positives, errors.num_out, chance=chance / 2)
    fnr = clopper_pearson_lower(errors.false_negatives, errors.num_in, chance=chance / 2)
    return math.inf if min(fpr, fnr) <= 0.0 else max(0.0, float(norm.isf(fpr) - norm.ppf(fnr)))


def _rates(errors: Errors, chance: float) -> tuple[float, float]:
    """Upper bounds on (FPR, FNR) that hold together."""
    return (
        clopper_pearson_upper(errors.false_positives, errors.num_out, chance=chance / 2),
        clopper_pearson_upper(errors.false_negatives, errors.num_in, chance=chance / 2),
    )


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The delta of a mu-GDP mechanism at `epsilon` [4]."""
    if mu == 0.0:
        return 0.0
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return max(0.0, math.exp(first) - math.exp(second))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """The epsilon of a mu-GDP mechanism at `delta` [4]; the largest that is surely not above it."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2.0
    low = 0.0
    while high - low > 1e-10 * (1.0 + high):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return max(0.0, low - 1e-9)
