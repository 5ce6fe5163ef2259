"""Auditing in one run: many canaries, each in or out by a fair coin, and guesses about the coins.

Room: audit. May import NumPy, SciPy, `reticent.errors`; never torch.

Sources:
    [1] Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, theorem 5.2.
    [2] Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, algorithm 2 (f-DP in one run).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from reticent.audit._intervals import check_confidence, gaussian_epsilon
from reticent.errors import ConfigError

# (probability under "out") -> largest probability under "in", i.e. 1 - f of a trade-off curve f.
BlowUp: TypeAlias = Callable[[float], float]

_MOST_EPSILON: Final = 60.0
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """How a one-run attack did.

    Args:
        num_canaries: canaries m, each in or out by its own fair coin.
        num_guesses: for how many of them the attack dared to guess; fixed before the coins are seen.
        num_correct: guesses that were right.

    Raises:
        ConfigError[audit-counts]: not 0 <= correct <= guesses <= canaries.
    """

    num_canaries: int
    num_guesses: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_guesses <= self.num_canaries:
            raise ConfigError(
                f"{self.num_correct} right of {self.num_guesses} guesses on {self.num_canaries} canaries "
                "is impossible.",
                code="audit-counts",
            )


def steinke_p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Chance that an (epsilon, delta)-DP mechanism lets so many guesses be right [1].

    P[Bin(r, p) >= v] + 2 m delta max_i P[v > Bin(r, p) >= v - i] / i, with p = e^eps / (1 + e^eps).
    """
    m, r, v = guesses.num_canaries, guesses.num_guesses, guesses.num_correct
    p = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(v - 1, r, p))
    if delta == 0.0 or v == 0:
        return min(1.0, tail)
    i = np.arange(1, v + 1)
    below = binom.cdf(v - 1, r, p) - binom.cdf(v - i - 1, r, p)
    return min(1.0, tail + 2.0 * m * delta * float(np.max(below / i, initial=0.0)))


def steinke_epsilon(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """Lower bound on epsilon from one run [1].

    Guarantee:
        For any (epsilon, delta)-DP mechanism and any dependence between canaries, above epsilon with
        probability at most 1 - confidence.
    """
    chance = check_confidence(confidence)
    return _largest(lambda e: steinke_p_value(guesses, epsilon=e, delta=delta) <= chance, _MOST_EPSILON)


def f_dp_rejected(guesses: Guesses, *, blow_up_inverse: BlowUp, chance: float) -> bool:
    """Whether so many right guesses refute a trade-off curve, at a false-alarm rate of `chance` [2].

    Suppose that they came up with probability `chance` or more. Walking from v correct guesses down, [2]
    bounds from below the probability mass that the curve then forces on each number of correct guesses;
    if the masses add up to more than there is, the supposition was false.

    Args:
        guesses: how the attack did.
        blow_up_inverse: probability under one world -> the least it can be under the other,
            f(1 - x) for a (symmetric) trade-off curve f.
        chance: the false-alarm rate.
    """
    m, r, v = guesses.num_canaries, guesses.num_guesses, guesses.num_correct
    if v == 0 or r == 0:
        return False
    scaled = chance * r / m
    hit, miss = scaled * v / r, scaled * (r - v) / r  # over i >= v: sum of i/r p_i, of (r-i)/r p_i
    for i in range(v - 1, -1, -1):
        earlier = miss
        # A canary that was guessed right with i + 1 right in all: its coin flipped, i are right.
        miss = max(earlier, blow_up_inverse(min(hit, 1.0)))
        hit += i / (r - i) * (miss - earlier)
        if hit + miss > r / m:
            return True
    return False


def gaussian_blow_up_inverse(mu: float) -> BlowUp:
    """f(1 - x) of mu-GDP: Phi(Phi^-1(x) - mu)."""
    return lambda x: float(ndtr(ndtri(x) - mu))


def f_dp_mu(guesses: Guesses, *, confidence: float) -> float:
    """Lower bound on mu from one run, for a mechanism whose trade-off curve is Gaussian [2].

    Guarantee:
        For any mu-GDP mechanism, above mu with probability at most 1 - confidence.
    """
    chance = check_confidence(confidence)
    return _largest(
        lambda mu: f_dp_rejected(guesses, blow_up_inverse=gaussian_blow_up_inverse(mu), chance=chance), 40.0
    )


def f_dp_epsilon(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """Lower bound on epsilon from one run, for a mechanism whose trade-off curve is Gaussian [2]."""
    return gaussian_epsilon(f_dp_mu(guesses, confidence=confidence), delta=delta)


def _largest(refuted: Callable[[float], bool], most: float) -> float:
    """The largest value up to `most` that is refuted (0 if none is); what is below it is refuted too."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
        if low >= most:
            return most
    while high - low > _TOLERANCE:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
