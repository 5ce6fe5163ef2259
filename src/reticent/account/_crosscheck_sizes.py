"""Other opinions on batches whose size is bounded: truncated Poisson, and a fixed size.

Room: account. May import `reticent.records`, dp-accounting and SciPy; never torch.

Sources:
    [1] Chua et al. 2025, arXiv:2508.15089 (truncated Poisson).
"""

import math
from typing import Final

import dp_accounting
import numpy as np
from scipy.stats import binom

from reticent.account._bounds import largest_loss, pld_epsilon, pld_interval, pld_margin
from reticent.account._check import Check
from reticent.account._epsilon import epsilon
from reticent.account._events import MAX_NOISE_MULTIPLIER, Phase
from reticent.records import EpsilonReport, Mechanism, SamplingScheme

_MAX_POINTS: Final = 100_000
_ROUNDING: Final = 0.01  # of epsilon: what grids may differ by


def sized_checks(report: EpsilonReport, mechanism: Mechanism, num_steps: int) -> tuple[Check, ...]:
    """Compare the epsilon reported for one such mechanism with what is known without it.

    | check | of |
    |---|---|
    | not below the PLD of the Poisson steps that one pair of data sets makes of it | both |
    | a PLD on a grid 1.7 times as wide is within the grids' error | truncated Poisson |
    """
    least = _not_below_a_pair(report, mechanism, num_steps)
    if mechanism.scheme is SamplingScheme.FIXED_SIZE:
        return (least,)
    return least, _by_second_grid(report, mechanism, num_steps)


def _not_below_a_pair(report: EpsilonReport, m: Mechanism, num_steps: int) -> Check:
    """A pair of data sets that no bound may be below.

    Fixed size: all gradients are -C; one is replaced by +C. With the one in the batch the sum moves by 2C: a
    Poisson step with half the noise. Truncated: all gradients are 0 but one, which is drawn and kept.
    """
    fixed = m.scheme is SamplingScheme.FIXED_SIZE
    step = Mechanism(
        scheme=SamplingScheme.POISSON,
        sampling_prob=m.sampling_prob if fixed else _kept(m),
        noise_multiplier=m.noise_multiplier / 2.0 if fixed else m.noise_multiplier,
    )
    least = epsilon([(step, num_steps)], delta=report.delta).epsilon
    return Check(
        name="the Poisson steps of one pair",
        holds=report.epsilon >= least * (1.0 - _ROUNDING) - 1e-9 if math.isfinite(least) else None,
        detail=f"{least:.8g}, against {report.epsilon:.8g} reported",
    )


def _kept(m: Mechanism) -> float:
    """Probability that an example is drawn and survives the cut."""
    assert m.num_examples is not None and m.batch_size is not None
    others, q = m.num_examples - 1, m.sampling_prob
    low, high = (int(edge) for edge in binom.ppf((1e-12, 1 - 1e-12), others, q))
    count = np.arange(low, high + 1)
    share = np.minimum(1.0, m.batch_size / (count + 1.0))
    return min(1.0, q * float(np.sum(binom.pmf(count, others, q) * share)))


def _by_second_grid(report: EpsilonReport, m: Mechanism, num_steps: int) -> Check:
    assert m.num_examples is not None and m.batch_size is not None
    sigma = min(m.noise_multiplier, MAX_NOISE_MULTIPLIER)
    phases = (Phase(m.sampling_prob, sigma / 2.0, num_steps),)
    interval = 1.7 * max(pld_interval(phases, max(report.epsilon, 1e-3)), largest_loss(phases) / _MAX_POINTS)
    cut = dp_accounting.TruncatedSubsampledGaussianDpEvent(
        m.num_examples, m.sampling_prob, m.batch_size, sigma
    )
    event = dp_accounting.SelfComposedDpEvent(cut, num_steps)
    second = pld_epsilon(event, report.delta - pld_margin(phases), interval)
    error = max(0.7, 2.5 / max(report.epsilon, 1e-3)) * num_steps * interval**2
    tolerance = 3.0 * error + _ROUNDING * report.epsilon + 1e-9
    return Check(
        name="PLD on a second grid",
        holds=abs(second - report.epsilon) <= tolerance,
        detail=f"{second:.8g} on a grid of {interval:.2g}, {report.epsilon:.8g} reported; "
        f"{tolerance:.2g} apart is allowed",
    )
