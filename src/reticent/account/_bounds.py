"""Three upper bounds on epsilon for a history of Gaussian steps: RDP, PLD, and the exact Gaussian.

Room: account. May import dp-accounting and SciPy; never torch. The numerics are dp-accounting's;
this file holds the guards around them.

Each function returns an upper bound or says why it has none. Anything that floating point could
push below the truth is answered for by a margin: see each function's Guarantee.

Sources:
    [1] Mironov, Talwar, Zhang 2019, arXiv:1908.10530 (RDP of the sampled Gaussian)
    [2] Doroshenko et al. 2022, arXiv:2207.04380 ("connect the dots" PLD)
    [3] Balle, Wang 2018, arXiv:1805.06530 (exact Gaussian)
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import dp_accounting
import numpy as np
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.special import log_ndtr

from reticent.account._events import Phase, to_event, unsampled_noise_multiplier

# The order-alpha Renyi divergence of one step came out at most 7e-18 * alpha below the truth.
_RDP_SLACK_PER_STEP: Final = 1e-15
# FFT composition leaves errors of either sign of about T * 2**-53 in delta.
_FFT_UNIT: Final = 2.0**-52
_FINEST_INTERVAL: Final = 1e-6
_MAX_INTERVAL: Final = 1e-3
_COARSEST_INTERVAL: Final = 1e-2  # beyond: so little noise that nobody needs the last digit
# A PLD of this many grid points takes about two seconds; composed points are ten times cheaper.
_MAX_POINTS: Final = 250_000
_NOISE_REACH: Final = 10.0  # standard deviations that the PLD grid covers on each side
_MIN_GAUSSIAN_SIGMA: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound on epsilon (None if there is none to trust), and what a reader should know."""

    epsilon: float | None
    note: str | None = None


def rdp_accountant(phases: tuple[Phase, ...]) -> RdpAccountant:
    """Renyi divergences of the whole history, at dp-accounting's default orders [1].

    Guarantee:
        Never below the true divergences through rounding: 1e-15 * alpha a step is added, far above
        what was seen. Without it, histories with tiny q or huge sigma could come out as 0.
    """
    return rdp_accountant_of(to_event(phases), num_steps=sum(phase.num_steps for phase in phases))


def rdp_accountant_of(event: dp_accounting.DpEvent, *, num_steps: int) -> RdpAccountant:
    """Renyi divergences of an event that holds `num_steps` steps, with the slack of `rdp_accountant`."""
    slack = dp_accounting.ZCDpEvent(rho=_RDP_SLACK_PER_STEP * num_steps, xi=0.0)
    with _orders_dropped_silently():
        return RdpAccountant().compose(event).compose(slack)


@contextmanager
def _orders_dropped_silently() -> Iterator[None]:
    """dp-accounting warns for each order whose series does not converge; it counts as infinite."""
    logger = logging.getLogger("absl")

    def keep(record: logging.LogRecord) -> bool:
        return "_compute_log_a_frac failed to converge" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def gaussian_bound(phases: tuple[Phase, ...], *, delta: float) -> Bound:
    """Exact epsilon of steps that all use every example [3]; phases must be unsampled.

    Guarantee:
        Not below the exact value: delta is lowered by the rounding error of the formula, and the
        root is moved up by the solver's tolerance. Refused where that error exceeds delta / 4.
    """
    sigma = unsampled_noise_multiplier(phases)
    if sigma < _MIN_GAUSSIAN_SIGMA:
        return Bound(None, f"exact Gaussian skipped: all steps together have sigma {sigma:.2g}.")
    epsilon = gaussian_mechanism.get_epsilon_gaussian(sigma, delta)
    # delta = Phi(a) - e^eps Phi(b): the two terms cancel when delta is far below the first one.
    log_first_term = float(log_ndtr(0.5 / sigma - epsilon * sigma))
    rounding = 2.0**-50 * (1.0 + abs(log_first_term) + epsilon) * math.exp(log_first_term) / delta
    if rounding > 0.25:
        return Bound(None, f"exact Gaussian skipped: rounding is too large beside delta {delta:.3g}.")
    epsilon = gaussian_mechanism.get_epsilon_gaussian(sigma, delta * (1.0 - rounding))
    return Bound(epsilon + 1e-12 * (1.0 + epsilon) if epsilon else 0.0)


def pld_bound(phases: tuple[Phase, ...], *, delta: float, guess: float, reach: float) -> Bound:
    """Epsilon from privacy loss distributions [2], the tightest bound for sampled steps.

    Args:
        phases: what ran.
        delta: the delta of the statement.
        guess: any upper bound on epsilon; chooses the grid, not the validity of the answer.
        reach: an upper bound on epsilon at delta 1e-15; predicts the size of the grid.

    Guarantee:
        Asks for `delta - (T + 16 * phases) * 2**-52`, because FFT composition leaves errors of
        either sign of about T * 2**-53 in delta; refuses when that exceeds delta / 4. The margin
        is measured (on more than 1,000 histories), not proved.
    """
    margin = pld_margin(phases)
    if margin > delta / 4.0:
        return Bound(
            None,
            f"PLD refused: its rounding margin {margin:.2g} exceeds a quarter of delta {delta:.3g}; "
            "RDP is reported.",
        )
    best, note, interval, expected = math.inf, None, math.inf, guess
    for _ in range(3):  # a loose guess makes a coarse grid: look again with what it gave
        wanted = pld_interval(phases, expected)
        affordable = max(wanted, _points(phases, reach) / _MAX_POINTS)
        if affordable > _COARSEST_INTERVAL:
            note = "PLD skipped: so little noise makes it too costly; RDP is reported."
            break
        if affordable > 0.75 * interval:
            break
        interval = affordable
        if affordable > wanted:
            note = f"PLD computed on a coarser grid ({interval:.2g}) to bound its cost."
        best = expected = min(best, pld_epsilon(to_event(phases), delta - margin, interval))
        if best == 0.0:
            break
    return Bound(best if best < math.inf else None, note)


def pld_margin(phases: tuple[Phase, ...]) -> float:
    """What rounding may cost in delta; see `pld_bound`."""
    return (sum(phase.num_steps for phase in phases) + 16 * len(phases)) * _FFT_UNIT


def pld_epsilon(event: dp_accounting.DpEvent, delta: float, interval: float) -> float:
    """Epsilon of an event by dp-accounting's PLD alone, without margin."""
    return float(PLDAccountant(value_discretization_interval=interval).compose(event).get_epsilon(delta))


def pld_interval(phases: tuple[Phase, ...], expected: float) -> float:
    """Grid width that costs about min(1e-3, epsilon / 1000) of epsilon.

    Connect-the-dots adds about 0.2 * interval**2 to the variance of each step's loss: measured,
    0.35 to 0.65 * T * interval**2 on epsilon near 5, and more (as 1/epsilon) when epsilon is small,
    where the grid must resolve losses of a single step. Finer than 2e-5 of a loss, rounding in the
    single step's probabilities (clipped at 0, so always upwards) costs more than the grid saves.
    """
    num_steps = sum(phase.num_steps for phase in phases)
    largest = max((_largest_loss(phase) for phase in phases if phase.sampled), default=1.0)
    finest = max(_FINEST_INTERVAL, 2e-5 * min(1.0, largest))
    tolerance = min(1e-3, expected / 1000.0)
    error_per_step = max(0.7, 2.5 / expected)
    return min(max(math.sqrt(tolerance / (error_per_step * num_steps)), finest), _MAX_INTERVAL)


def _points(phases: tuple[Phase, ...], reach: float) -> float:
    """About how many grid points a PLD of these phases needs, times the grid's width."""
    return largest_loss(phases) + 2.0 * reach / 10.0


def largest_loss(phases: tuple[Phase, ...]) -> float:
    """Privacy losses of one step of each sampled phase at the edge of the grid, added."""
    return sum(_largest_loss(phase) for phase in phases if phase.sampled)


def _largest_loss(phase: Phase) -> float:
    """Privacy loss of one sampled step at the edge of the grid."""
    sigma, q = phase.noise_multiplier, phase.sampling_prob
    unsampled = _NOISE_REACH / sigma + 0.5 / sigma**2
    return float(np.logaddexp(math.log1p(-q), math.log(q) + unsampled))
