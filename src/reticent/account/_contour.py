"""Delta from a contour integral: the truth to about nine digits, from code that no accountant shares.

Room: account. May import NumPy; never dp-accounting or torch. Verification only: nothing here is rounded
towards a safe side, so no epsilon is reported from it.

With R = P/Q the likelihood ratio of one step and M(t) = E_Q[R^(t+1)], the hockey-stick divergence
of T steps is

    delta(eps) = 1/(2 pi i) * integral over Re t = c > 0 of M(t)^T e^(-t eps) / (t (t+1)) dt

(the Mellin transform of (r - e^eps)+); steps of several kinds multiply their moments. M comes from a
trapezoid sum over x, which converges faster than any power for Gaussian integrands; so does the
trapezoid sum over t on the vertical line through the saddle point c. It needs T * q not far below 1.

Sources:
    [1] Zhu, Dong, Wang 2022, arXiv:2106.08567 (characteristic functions of privacy losses).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reticent.errors import AccountingError

Kind = tuple[float, float, int]  # q, sigma, T
_Array = npt.NDArray[np.float64]
_Complex = npt.NDArray[Any]
_BLOCK = 100


def contour(
    kinds: Sequence[Kind], guess: float, *, add: bool, max_nodes: int = 6_000
) -> Callable[[float], float]:
    """eps -> delta of these steps, accurate for eps near `guess`, in one direction (add: Q against P).

    Raises:
        AccountingError[contour]: the integral does not settle within `max_nodes` nodes.
    """

    def log_moment(t: _Complex) -> _Complex:
        top = float(np.max(np.real(t))) + 1
        parts = [
            num_steps * _log_moment(-t if add else t + 1, *_log_ratio(q, sigma, 0 if add else top))
            for q, sigma, num_steps in kinds
        ]
        return np.sum(np.stack(parts), axis=0)

    def height(log_c: float) -> float:
        c = math.exp(log_c)
        moment = float(np.real(log_moment(np.array([c], dtype=complex))[0]))
        return moment - c * guess - math.log(c) - math.log1p(c)

    coarse = np.linspace(math.log(0.05), math.log(400.0), 60)
    with np.errstate(all="ignore"):
        heights = [height(value) for value in coarse]
    best = int(np.nanargmin(np.where(np.isfinite(heights), heights, np.inf)))
    c = math.exp(coarse[best])
    base, step = max(heights[best], -700.0), min(c, 4.0 / max(guess, 1.0)) / 10
    nodes, values = [], []
    for start in range(0, max_nodes, _BLOCK):
        t: _Complex = c + 1j * step * np.arange(start, start + _BLOCK)
        part = log_moment(t) - np.log(t) - np.log1p(t)
        nodes.append(t)
        values.append(part)
        if np.max(np.real(part)) - c * guess - base < -34:
            break
    else:
        raise AccountingError(
            "The contour integral did not settle: too few steps or too little sampling for it. Only the "
            "check by it is left out.",
            code="contour",
        )
    nodes_t: _Complex = np.concatenate(nodes)
    log_value: _Complex = np.concatenate(values)
    weight = np.full(len(nodes_t), step / math.pi)
    weight[0] /= 2
    return lambda eps: float(np.sum(weight * np.real(np.exp(log_value - nodes_t * eps))))


def true_delta(kinds: Sequence[Kind], eps: float, *, max_nodes: int = 6_000) -> float:
    """The smallest delta for which these Poisson-sampled Gaussian steps are (eps, delta)-DP.

    Raises:
        AccountingError[contour]: the integral does not settle.
    """
    return max(contour(kinds, eps, add=add, max_nodes=max_nodes)(eps) for add in (False, True))


def _log_ratio(q: float, sigma: float, reach: float) -> tuple[_Array, _Array]:
    """Points x, log of Q's mass at each, and log R there; wide enough for tilts up to `reach`."""
    x, step = np.linspace(-14 * sigma, 14 * sigma + reach, 6001, retstep=True)
    log_mass = -0.5 * (x / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(step)
    with np.errstate(divide="ignore"):
        return log_mass, np.logaddexp(np.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))


def _log_moment(power: _Complex, log_mass: _Array, log_ratio: _Array) -> _Complex:
    """log E_Q[R^power], exact also where the moment is 1 + 1e-12."""
    z = power[:, None] * log_ratio[None]
    small = np.abs(z) < 1
    excess = np.where(
        small,
        np.exp(log_mass) * np.expm1(np.where(small, z, 0)),
        np.exp(np.where(small, 0, z) + log_mass) - np.exp(log_mass),
    )
    total = excess.sum(axis=1)
    gone = total == -1.0  # far from the saddle point a moment rounds to zero: below 1e-16
    return np.where(gone, -40.0, np.log1p(np.where(gone, 0.0, total)))
