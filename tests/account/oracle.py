"""What epsilon really is, from code that no accountant shares: contour integrals and closed forms.

The integral is `reticent.account._contour`, which `reticent verify` uses too; its tests are in
`test_oracle.py`, against closed forms and against other people's values. Nothing here is rounded towards
a safe side: it is the truth, not a bound.
"""

import math

import mpmath
from scipy import optimize

from reticent.account._contour import contour, true_delta
from reticent.errors import AccountingError


def delta_of(q, sigma, num_steps, eps, *, max_nodes=6_000):
    """The smallest delta for which T Poisson-sampled Gaussian steps are (eps, delta)-DP."""
    try:
        return true_delta([(q, sigma, num_steps)], eps, max_nodes=max_nodes)
    except AccountingError as e:
        raise AssertionError("the oracle's integral did not settle") from e


def epsilon_of(q, sigma, num_steps, delta, guess):
    """The smallest eps at `delta`, to about 1e-9; `guess` within a factor 2 is enough."""
    for _ in range(5):
        deltas = [contour([(q, sigma, num_steps)], guess, add=add) for add in (False, True)]

        def off(eps, deltas=deltas):
            return math.log(max(*(f(eps) for f in deltas), 1e-300)) - math.log(delta)

        low, high = 0.9 * guess, 1.1 * guess
        while off(low) < 0:
            low *= 0.8
        while off(high) > 0:
            high *= 1.2
        found = optimize.brentq(off, low, high, xtol=1e-11)
        if abs(found - guess) < 0.05 * guess:
            return found
        guess = found
    raise AssertionError("the oracle did not settle")


def one_step_delta(q, sigma, eps):
    """Closed form for one step, 60 digits: the larger of both directions."""
    with mpmath.workdps(60):
        q, sigma, eps = mpmath.mpf(q), mpmath.mpf(sigma), mpmath.mpf(eps)

        def above(x, mean):
            return mpmath.erfc((x - mean) / (sigma * mpmath.sqrt(2))) / 2

        ratio = (mpmath.exp(eps) - 1 + q) / q
        x = sigma**2 * mpmath.log(ratio) + mpmath.mpf(1) / 2
        remove = (1 - q - mpmath.exp(eps)) * above(x, 0) + q * above(x, 1)
        ratio = (mpmath.exp(-eps) - 1 + q) / q
        if ratio <= 0:
            return remove
        x = sigma**2 * mpmath.log(ratio) + mpmath.mpf(1) / 2
        below_q, below_p = 1 - above(x, 0), 1 - ((1 - q) * above(x, 0) + q * above(x, 1))
        return max(remove, below_q - mpmath.exp(eps) * below_p)


def unsampled_delta(sigma, eps):
    """Closed form of the Gaussian mechanism, 60 digits (Balle and Wang 2018, theorem 8)."""
    with mpmath.workdps(60):
        sigma, eps = mpmath.mpf(sigma), mpmath.mpf(eps)
        half = 1 / (2 * sigma)
        return mpmath.ncdf(half - eps * sigma) - mpmath.exp(eps) * mpmath.ncdf(-half - eps * sigma)
