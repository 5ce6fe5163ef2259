"""The reported epsilon, checked by other means before anybody relies on it.

Room: account. May import `reticent.records` and dp-accounting; never torch.

Sources:
    [1] Mironov, Talwar, Zhang 2019, arXiv:1908.10530, section 3.3 (integer orders, in closed form).
    [2] Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition 12 (from RDP to delta).
"""

import math
from typing import Final

import numpy as np
from scipy.special import gammaln, logsumexp

from reticent.account._bounds import largest_loss, pld_epsilon, pld_interval, pld_margin
from reticent.account._check import Check
from reticent.account._contour import true_delta
from reticent.account._crosscheck_sizes import sized_checks
from reticent.account._epsilon import epsilon
from reticent.account._events import (
    MAX_PHASES,
    MIN_NOISE_MULTIPLIER,
    Phase,
    Segments,
    coarsen,
    merge_phases,
    to_event,
)
from reticent.account._own_bounds import own_history, simplified
from reticent.account._replace import replace_one_bounds, replace_one_grid
from reticent.errors import AccountingError
from reticent.records import EpsilonReport, NeighbouringRelation

# Each is one of dp-accounting's own, or its bound could rightly be above ours.
_ORDERS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 63, 128, 256, 512)
_MAX_POINTS: Final = 100_000
_DELTA_SLACK: Final = 1e-6  # of delta: how far the contour integral is trusted
_MAX_CONTOUR_PHASES: Final = 4


def cross_check(report: EpsilonReport, segments: Segments, *, integral: bool = True) -> tuple[Check, ...]:
    """Compare a reported epsilon with what other accountants say of the same steps.

    | check | independent of |
    |---|---|
    | RDP at integer orders, in closed form [1], is not below the PLD | dp-accounting |
    | a PLD on a grid 1.7 times as wide is within the grids' error | the grid, and rounding |
    | the true delta at this epsilon, by a contour integral, is at most delta | dp-accounting, FFT |

    Batches of a bounded size have checks of their own. Where one example is replaced by another, unsampled
    steps are checked at half their noise; sampled ones by the second grid, and against what zeroing one out
    costs.

    Args:
        report: what was reported.
        segments: the steps it was reported for.
        integral: make the last one too, which takes about a second.

    Returns:
        The checks. One that cannot be made here (too little sampling for the integral, say) has
        `holds` None and says why.
    """
    segments = simplified(segments)
    sized = own_history(segments)
    if sized is not None:
        return sized_checks(report, *sized)
    phases = merge_phases(segments)
    noiseless = any(phase.noise_multiplier < MIN_NOISE_MULTIPLIER for phase in phases)
    if not phases or noiseless:
        return ()
    if len(phases) > MAX_PHASES:
        phases = coarsen(phases)
    if report.neighbouring_relation is NeighbouringRelation.REPLACE_ONE:
        if any(phase.sampled for phase in phases):
            return _of_replaced(report, segments, phases)
        phases = tuple(Phase(1.0, p.noise_multiplier / 2.0, p.num_steps) for p in phases)
    checks = [_by_rdp(report, phases)]
    if any(phase.sampled for phase in phases):
        checks.append(_by_second_grid(report, phases))
    if integral:
        checks.append(_by_contour(report, phases))
    return tuple(checks)


def checked_epsilon(
    segments: Segments,
    *,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> EpsilonReport:
    """`epsilon`, with the quick ones of its cross-checks made: for a final statement.

    Raises:
        AccountingError[accountants-disagree]: a check does not hold; nothing is reported.
        ConfigError, AccountingError: as `epsilon`.
    """
    report = epsilon(segments, delta=delta, relation=relation)
    failed = [check for check in cross_check(report, segments, integral=False) if check.holds is False]
    if failed:
        said = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise AccountingError(
            f"Two ways to compute epsilon disagree beyond rounding ({said}). Do not state either; check the "
            "versions of dp-accounting, NumPy and SciPy, and report this.",
            code="accountants-disagree",
        )
    return report


def integer_rdp_epsilon(phases: tuple[Phase, ...], *, delta: float) -> float:
    """An upper bound on epsilon from Renyi divergences at integer orders [1, 2]; no code of dp-accounting."""
    return min(
        max(0.0, rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
        for order in _ORDERS
        for rdp in (sum(phase.num_steps * _divergence(phase, order) for phase in phases),)
    )


def _divergence(phase: Phase, order: int) -> float:
    """log sum_k C(a, k) (1-q)^(a-k) q^k exp((k^2 - k) / (2 sigma^2)), over a - 1 [1]."""
    k = np.arange(order + 1, dtype=np.float64)
    q, sigma = phase.sampling_prob, phase.noise_multiplier
    if q == 1.0:
        return order / (2.0 * sigma**2)
    terms = (
        gammaln(order + 1)
        - gammaln(k + 1)
        - gammaln(order - k + 1)
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + (k * k - k) / (2.0 * sigma**2)
    )
    return max(0.0, float(np.asarray(logsumexp(terms)))) / (order - 1)


def _by_rdp(report: EpsilonReport, phases: tuple[Phase, ...]) -> Check:
    bound = integer_rdp_epsilon(phases, delta=report.delta)
    # Both are bounds, and either may be the smaller; the reported one is never above dp-accounting's RDP.
    close = report.epsilon <= max(bound, report.epsilon_rdp or 0.0) * (1.0 + 1e-9) + 1e-12
    theirs = report.epsilon_rdp
    agree = theirs is None or theirs <= bound * (1.0 + 1e-6) + 1e-9
    return Check(
        name="RDP at integer orders",
        holds=close and agree,
        detail=f"{bound:.8g}, against {report.epsilon:.8g} reported and {theirs} by dp-accounting",
    )


def _by_second_grid(report: EpsilonReport, phases: tuple[Phase, ...]) -> Check:
    name, margin = "PLD on a second grid", pld_margin(phases)
    if report.epsilon_pld is None:
        return Check(name=name, holds=None, detail="no PLD is reported")
    interval = 1.7 * max(pld_interval(phases, max(report.epsilon, 1e-3)), largest_loss(phases) / _MAX_POINTS)
    second = pld_epsilon(to_event(phases), report.delta - margin, interval)
    tolerance = _apart(report, phases, interval)
    return Check(
        name=name,
        holds=abs(second - report.epsilon_pld) <= tolerance,
        detail=f"{second:.8g} on a grid of {interval:.2g}, {report.epsilon_pld:.8g} reported; "
        f"{tolerance:.2g} apart is allowed",
    )


def _apart(report: EpsilonReport, phases: tuple[Phase, ...], interval: float) -> float:
    """How far two grids, of which the wider one is given, may rightly be apart in epsilon."""
    num_steps = sum(phase.num_steps for phase in phases)
    error = max(0.7, 2.5 / max(report.epsilon, 1e-3)) * num_steps * interval**2
    return 3.0 * error + 0.01 * report.epsilon + 1e-9


def _of_replaced(report: EpsilonReport, segments: Segments, phases: tuple[Phase, ...]) -> tuple[Check, ...]:
    """Of sampled steps where one example is replaced: by one that contributes nothing, among others."""
    less = epsilon(segments, delta=report.delta, relation=NeighbouringRelation.ZERO_OUT).epsilon
    floor = Check(
        name="not below the epsilon of zeroing out",
        holds=report.epsilon >= less * 0.99 - 1e-9,
        detail=f"{less:.8g} for zeroing out, {report.epsilon:.8g} reported",
    )
    second = replace_one_bounds(phases, delta=report.delta, grid=1.7)[2].epsilon
    if report.epsilon_pld is None or second is None:
        return (floor,)
    tolerance = _apart(report, phases, 1.7 * replace_one_grid(phases))
    grid = Check(
        name="PLD on a second grid",
        holds=abs(second - report.epsilon_pld) <= tolerance,
        detail=f"{second:.8g} on a grid 1.7 times as wide, {report.epsilon_pld:.8g} reported; "
        f"{tolerance:.2g} apart is allowed",
    )
    return floor, grid


def _by_contour(report: EpsilonReport, phases: tuple[Phase, ...]) -> Check:
    name = "true delta by a contour integral"
    usable = 1e-3 < report.epsilon < 500 and sum(p.num_steps * p.sampling_prob for p in phases) >= 3.0
    if not usable or len(phases) > _MAX_CONTOUR_PHASES:
        return Check(name=name, holds=None, detail="outside of what the integral can do")
    kinds = [(phase.sampling_prob, phase.noise_multiplier, phase.num_steps) for phase in phases]
    try:
        true = true_delta(kinds, report.epsilon)
    except AccountingError as e:
        return Check(name=name, holds=None, detail=str(e.args[0]))
    return Check(
        name=name,
        holds=true <= report.delta * (1.0 + _DELTA_SLACK),
        detail=f"{true:.8g} at the reported epsilon, {report.delta:.8g} allowed",
    )
