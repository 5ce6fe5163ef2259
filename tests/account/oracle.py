"""What epsilon really is, from code that no accountant shares: contour integrals and closed forms.

With R = P/Q the likelihood ratio of one step and M(t) = E_Q[R^(t+1)], the hockey-stick divergence
of T steps is

    delta(eps) = 1/(2 pi i) * integral over Re t = c > 0 of M(t)^T e^(-t eps) / (t (t+1)) dt

(the Mellin transform of (r - e^eps)+). M comes from a trapezoid sum over x, which converges faster
than any power for Gaussian integrands; so does the trapezoid sum over t on the vertical line
through the saddle point c. Good to about 9 digits where T * q is not far below 1. Nothing here is
rounded towards a safe side: it is the truth, not a bound.
"""

import math

import mpmath
import numpy as np
from scipy import optimize


def _log_ratio(q, sigma, reach):
    """Points x, log of Q's mass at each, and log R there; wide enough for tilts up to `reach`."""
    x, step = np.linspace(-14 * sigma, 14 * sigma + reach, 6001, retstep=True)
    log_mass = -0.5 * (x / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(step)
    with np.errstate(divide="ignore"):
        return log_mass, np.logaddexp(np.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))


def _log_moment(power, log_mass, log_ratio):
    """log E_Q[R^power], exact also where the moment is 1 + 1e-12."""
    z = np.atleast_1d(power)[:, None] * log_ratio[None]
    small = np.abs(z) < 1
    excess = np.where(
        small,
        np.exp(log_mass) * np.expm1(np.where(small, z, 0)),
        np.exp(np.where(small, 0, z) + log_mass) - np.exp(log_mass),
    )
    return np.log1p(excess.sum(axis=1))


def _contour(q, sigma, num_steps, guess, *, add, max_nodes=6_000):
    """eps -> delta, accurate for eps near `guess`, in one direction (add: Q against P)."""

    def log_moment(t):
        top = float(np.max(np.real(np.atleast_1d(t)))) + 1
        return num_steps * _log_moment(-t if add else t + 1, *_log_ratio(q, sigma, 0 if add else top))

    def height(log_c):
        c = np.exp(log_c)
        return float(np.real(log_moment(np.array([c]))[0])) - c * guess - math.log(c) - math.log1p(c)

    coarse = np.linspace(math.log(0.05), math.log(400.0), 60)
    with np.errstate(all="ignore"):
        heights = [height(value) for value in coarse]
    best = int(np.nanargmin(np.where(np.isfinite(heights), heights, np.inf)))
    c = math.exp(coarse[best])
    base, step = max(heights[best], -700.0), min(c, 4.0 / max(guess, 1.0)) / 10
    nodes, values = [], []
    for start in range(0, max_nodes, 100):
        t = c + 1j * step * np.arange(start, start + 100)
        part = log_moment(t) - np.log(t) - np.log1p(t)
        nodes.append(t)
        values.append(part)
        if np.max(part.real) - c * guess - base < -34:
            break
    else:
        raise AssertionError("the oracle's integral did not settle: T * q is too small for it")
    t, log_value = np.concatenate(nodes), np.concatenate(values)
    weight = np.full(len(t), step / math.pi)
    weight[0] /= 2
    return lambda eps: float(np.sum(weight * np.exp(log_value - t * eps).real))


def delta_of(q, sigma, num_steps, eps, *, max_nodes=6_000):
    """The smallest delta for which T Poisson-sampled Gaussian steps are (eps, delta)-DP."""
    both = [_contour(q, sigma, num_steps, eps, add=add, max_nodes=max_nodes) for add in (False, True)]
    return max(direction(eps) for direction in both)


def epsilon_of(q, sigma, num_steps, delta, guess):
    """The smallest eps at `delta`, to about 1e-9; `guess` within a factor 2 is enough."""
    for _ in range(5):
        deltas = [_contour(q, sigma, num_steps, guess, add=add) for add in (False, True)]

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
