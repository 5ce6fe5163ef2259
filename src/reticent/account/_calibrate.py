"""Solving a privacy budget for the one setting left open, never spending more than the budget.

Room: account. May import `reticent.records` and `reticent.errors`; never torch.

Every search works on numbers as they will be printed (6 significant digits, or integers), so the
number that a user copies is the number that was evaluated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from reticent.account._epsilon import epsilon, rough_epsilon
from reticent.account._events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    MIN_SAMPLING_PROB,
    Segments,
    check_num_steps,
    check_schemes,
    round_down,
    round_up,
)
from reticent.errors import AccountingError, ConfigError
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme

_DIGITS: Final = 6
_CLOSE_ENOUGH: Final = 0.9999  # of the target; the search stops at this
_AIM: Final = 0.99995
_MAX_STEPS_TRIED: Final = 10**9

Spent = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class _Point:
    x: float
    epsilon: float


def calibrate_noise_multiplier(
    *, budget: Budget, scheme: SamplingScheme, sampling_prob: float, num_steps: int
) -> float:
    """The least noise that keeps `num_steps` steps inside the budget.

    Args:
        budget: the epsilon and delta that may be spent.
        scheme: how each step's examples are drawn.
        sampling_prob: probability that an example takes part in a step; 1 for full batch.
        num_steps: number of steps, at least 1.

    Returns:
        Noise multiplier, at most 6 significant digits.

    Guarantee:
        `epsilon()` at the returned number is at most `budget.epsilon`, and (where noise between
        1e-3 and 1e6 can reach it, with one and the same accountant) at least 0.999 of it.

    Raises:
        ConfigError[num-steps], ConfigError[sampling-prob], ConfigError[budget]: bad input.
        AccountingError[budget-unreachable]: not even a noise multiplier of 1e6 is enough.
    """

    def mechanism(sigma: float) -> Mechanism:
        return Mechanism(scheme=scheme, sampling_prob=sampling_prob, noise_multiplier=sigma)

    return noise_multiplier_for(mechanism, budget=budget, num_steps=num_steps)


def noise_multiplier_for(
    mechanism: Callable[[float], Mechanism],
    *,
    budget: Budget,
    num_steps: int,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> float:
    """The least noise that keeps `num_steps` steps of a sampler, whatever it is, inside the budget.

    Args:
        mechanism: noise multiplier -> one step, as a sampler's `mechanism` says.
        budget: the epsilon and delta that may be spent.
        num_steps: number of steps, at least 1.
        relation: the neighbouring relation of the statement.

    Returns, Guarantee:
        As `calibrate_noise_multiplier`.

    Raises:
        ConfigError[relation]: no bound is known for these steps under this relation.
        AccountingError[no-bound]: nor is one for the noise that would be needed.
        ConfigError, AccountingError: as `calibrate_noise_multiplier`.
    """
    _check(budget)
    _at_least_one(num_steps)

    def segments(sigma: float) -> list[tuple[Mechanism, int]]:
        return [(mechanism(sigma), num_steps)]

    def spent(sigma: float) -> float:
        return epsilon(segments(sigma), delta=budget.delta, relation=relation).epsilon

    def about(sigma: float) -> float:
        return rough_epsilon(segments(sigma), delta=budget.delta, relation=relation)

    least, most = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    check_schemes(segments(1.0), relation)  # refuses a bad mechanism before the search
    start = _crossing(about, budget.epsilon, safe=most, unsafe=least)
    found = _solve(spent, budget.epsilon, start=start, safe=most, unsafe=least, snap=_rounded_up)
    return _or_unreachable(found, budget, f"a noise multiplier of {most:g}")


def calibrate_noise_scale(
    *,
    budget: Budget,
    segments: Callable[[float], Segments],
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> float:
    """The least factor on the noise of a whole history, of whatever mechanisms, that keeps to the budget.

    Args:
        budget: the epsilon and delta that may be spent.
        segments: factor -> (mechanism, number of steps) pairs. Every mechanism's noise must grow with the
            factor, and be about it: the search goes from 1e-3 to 1e6.
        relation: the neighbouring relation of the statement.

    Returns:
        The factor, at most 6 significant digits.

    Guarantee:
        `epsilon()` of `segments(factor)` is at most `budget.epsilon`.

    Raises:
        ConfigError[num-steps], ConfigError[mechanism], ConfigError[budget]: bad input.
        ConfigError[relation]: no bound is known for these steps under this relation.
        AccountingError[budget-unreachable]: not even a factor of 1e6 is enough.
    """
    _check(budget)
    _at_least_one(sum(check_num_steps(num_steps) for _, num_steps in segments(1.0)))

    def spent(factor: float) -> float:
        return epsilon(segments(factor), delta=budget.delta, relation=relation).epsilon

    def about(factor: float) -> float:
        return rough_epsilon(segments(factor), delta=budget.delta, relation=relation)

    least, most = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    check_schemes(segments(1.0), relation)
    start = _crossing(about, budget.epsilon, safe=most, unsafe=least)
    found = _solve(spent, budget.epsilon, start=start, safe=most, unsafe=least, snap=_rounded_up)
    return _or_unreachable(found, budget, f"a noise factor of {most:g}")


def calibrate_num_steps(
    *, budget: Budget, scheme: SamplingScheme, sampling_prob: float, noise_multiplier: float
) -> int:
    """The largest number of steps that stays inside the budget.

    Args:
        budget: the epsilon and delta that may be spent.
        scheme: how each step's examples are drawn.
        sampling_prob: probability that an example takes part in a step; 1 for full batch.
        noise_multiplier: noise standard deviation over the bound of the sum.

    Returns:
        Number of steps, at least 1.

    Guarantee:
        `epsilon()` of that many steps is at most `budget.epsilon`; of one more, it is above.

    Raises:
        ConfigError[sampling-prob], ConfigError[noise-multiplier], ConfigError[budget]: bad input.
        AccountingError[budget-unreachable]: a single step spends more than the budget.
        AccountingError[unbounded-steps]: the budget allows more than 1e9 steps.
    """
    mechanism = Mechanism(scheme=scheme, sampling_prob=sampling_prob, noise_multiplier=noise_multiplier)
    return num_steps_for(mechanism, budget=budget)


def num_steps_for(
    mechanism: Mechanism,
    *,
    budget: Budget,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> int:
    """The largest number of steps of one mechanism, whatever its sampler, that stays inside the budget.

    Args:
        mechanism: one step.
        budget: the epsilon and delta that may be spent.
        relation: the neighbouring relation of the statement.

    Returns, Guarantee:
        As `calibrate_num_steps`.

    Raises:
        ConfigError[relation]: no bound is known for these steps under this relation.
        ConfigError, AccountingError: as `calibrate_num_steps`.
    """
    _check(budget)
    check_schemes([(mechanism, 1)], relation)

    def spent(num_steps: float) -> float:
        return epsilon([(mechanism, int(num_steps))], delta=budget.delta, relation=relation).epsilon

    def about(num_steps: float) -> float:
        return rough_epsilon([(mechanism, int(num_steps))], delta=budget.delta, relation=relation)

    start = math.floor(_crossing(about, budget.epsilon, safe=1.0, unsafe=_MAX_STEPS_TRIED))
    found = _solve(
        spent, budget.epsilon, start=start, safe=1.0, unsafe=_MAX_STEPS_TRIED, snap=_whole, exact=True
    )
    num_steps = int(_or_unreachable(found, budget, "a single step"))
    if num_steps == _MAX_STEPS_TRIED:
        raise AccountingError(
            f"epsilon {budget.epsilon:g} at delta {budget.delta:g} allows more than {_MAX_STEPS_TRIED:.0e} "
            "steps of this mechanism. Name num_steps, and leave out the noise multiplier instead.",
            code="unbounded-steps",
        )
    return num_steps


def calibrate_sampling_prob(
    *,
    budget: Budget,
    noise_multiplier: float,
    num_steps: int,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> float:
    """The largest Poisson sampling probability that stays inside the budget.

    Args:
        budget: the epsilon and delta that may be spent.
        noise_multiplier: noise standard deviation over the bound of the sum.
        num_steps: number of steps, at least 1.
        relation: the neighbouring relation of the statement.

    Returns:
        Sampling probability in (0, 1], at most 6 significant digits.

    Guarantee:
        `epsilon()` at the returned number is at most `budget.epsilon`, and at least 0.999 of it
        unless the answer is 1 (or the accountant changes in between).

    Raises:
        ConfigError[num-steps], ConfigError[noise-multiplier], ConfigError[budget]: bad input.
        AccountingError[budget-unreachable]: not even a probability of 1e-12 is small enough.
    """
    _check(budget)
    _at_least_one(num_steps)

    def segments(q: float) -> list[tuple[Mechanism, int]]:
        mechanism = Mechanism(
            scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=noise_multiplier
        )
        return [(mechanism, num_steps)]

    def spent(q: float) -> float:
        return epsilon(segments(q), delta=budget.delta, relation=relation).epsilon

    def about(q: float) -> float:
        return rough_epsilon(segments(q), delta=budget.delta, relation=relation)

    segments(1.0)
    least = MIN_SAMPLING_PROB
    start = _crossing(about, budget.epsilon, safe=least, unsafe=1.0)
    found = _solve(spent, budget.epsilon, start=start, safe=least, unsafe=1.0, snap=_rounded_down)
    return _or_unreachable(found, budget, f"a sampling probability of {least:g}")


def _check(budget: Budget) -> None:
    if not isinstance(budget, Budget):
        raise ConfigError(f"budget must be a Budget, got {type(budget).__name__}.", code="budget")


def _at_least_one(num_steps: int) -> None:
    if check_num_steps(num_steps) == 0:
        raise ConfigError("num_steps must be at least 1 to calibrate, got 0.", code="num-steps")


def _or_unreachable(found: float | None, budget: Budget, extreme: str) -> float:
    if found is None:
        raise AccountingError(
            f"epsilon {budget.epsilon:g} at delta {budget.delta:g} cannot be reached: even {extreme} "
            "spends more. Allow a larger epsilon or delta, or take fewer steps or a smaller batch.",
            code="budget-unreachable",
        )
    return found


def _rounded_up(x: float) -> float:
    return round_up(x, digits=_DIGITS)


def _rounded_down(x: float) -> float:
    return round_down(x, digits=_DIGITS)


def _whole(x: float) -> float:
    return float(math.floor(x))


def _crossing(spent: Spent, target: float, *, safe: float, unsafe: float) -> float:
    """Where the cheap bound meets the target, to 1 % and on the safe side; `safe` if nowhere."""
    if spent(unsafe) <= target:
        return unsafe
    while abs(math.log(unsafe / safe)) > 0.01:
        middle = math.sqrt(safe * unsafe)
        if spent(middle) <= target:
            safe = middle
        else:
            unsafe = middle
    return safe


def _solve(
    spent: Spent,
    target: float,
    *,
    start: float,
    safe: float,
    unsafe: float,
    snap: Callable[[float], float],
    exact: bool = False,
) -> float | None:
    """The printed number nearest to `unsafe` that spends at most `target`; None if there is none.

    Args:
        spent: epsilon at a number; monotone from `safe` to `unsafe`.
        target: the epsilon that may be spent.
        start: a first guess, usually safe.
        safe: the end of the range that spends least.
        unsafe: the end that spends most.
        snap: moves a number to a printable one, towards `safe`.
        exact: go on until no printable number is left in between.
    """
    bracket = _bracket(spent, target, start=snap(start), safe=safe, unsafe=unsafe, snap=snap)
    if bracket is None:
        return None
    inside, outside = bracket
    for turn in range(200):
        if outside is None or (not exact and inside.epsilon >= _CLOSE_ENOUGH * target):
            break
        guess = _interpolate(inside, outside, target if exact else _AIM * target, bisect=turn % 4 == 3)
        x = _strictly_between(snap(guess), inside.x, outside.x, snap)
        if x is None:
            break
        point = _Point(x, spent(x))
        if point.epsilon <= target:
            inside = point
        else:
            outside = point
    return inside.x


def _bracket(
    spent: Spent, target: float, *, start: float, safe: float, unsafe: float, snap: Callable[[float], float]
) -> tuple[_Point, _Point | None] | None:
    """A number inside the budget and one outside it (None if the whole range is inside)."""
    first = _Point(start, spent(start))
    towards = unsafe if first.epsilon <= target else safe
    near, factor = first, 1.25
    while near.x != towards:
        step = factor if towards > near.x else 1.0 / factor
        x = near.x * step
        x = towards if (x - towards) * (near.x - towards) <= 0 else snap(x)
        if x == near.x:  # a small integer: the factor is too small to move it
            x = near.x + math.copysign(1.0, towards - near.x)
        point = _Point(x, spent(x))
        if (point.epsilon <= target) != (near.epsilon <= target):
            return (point, near) if point.epsilon <= target else (near, point)
        near, factor = point, factor**2
    return (near, None) if near.epsilon <= target else None


def _interpolate(inside: _Point, outside: _Point, aim: float, *, bisect: bool) -> float:
    """Log-log secant between the ends; their geometric mean if that is asked for or impossible."""
    if bisect or not math.isfinite(outside.epsilon) or inside.epsilon <= 0.0:
        return math.sqrt(inside.x * outside.x)
    rise = math.log(outside.epsilon / inside.epsilon)
    share = min(max(math.log(aim / inside.epsilon) / rise, 0.0), 1.0)
    return inside.x * math.exp(share * math.log(outside.x / inside.x))


def _strictly_between(
    x: float, inside: float, outside: float, snap: Callable[[float], float]
) -> float | None:
    """`x`, or the nearest printable number that lies between the ends; None if there is none."""
    low, high = min(inside, outside), max(inside, outside)
    if low < x < high:
        return x
    if snap is _whole:
        candidates = (
            inside + math.copysign(1.0, outside - inside),
            outside + math.copysign(1.0, inside - outside),
        )
        near = min(candidates, key=lambda c: abs(c - x))
    else:
        near = snap(math.sqrt(inside * outside))
    return near if low < near < high else None
