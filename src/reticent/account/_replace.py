"""Bounds under replace-one: a unit exchanged for another moves the sum by up to twice its bound.

Room: account. May import dp-accounting; never torch.

dp-accounting's PLD takes noise over the bound of one unit and knows that the sum moves twice as far. Its RDP
takes the same number for noise over how far the sum moves, and would report half of epsilon: it is used
for unsampled steps only, with half the noise.
"""

import dp_accounting
from dp_accounting.pld import PLDAccountant

from reticent.account._bounds import (
    Bound,
    gaussian_bound,
    largest_loss,
    pld_interval,
    pld_margin,
    rdp_accountant,
)
from reticent.account._events import Phase, to_event

_MAX_POINTS = 250_000
_MIN_SIGMA = 0.05


def replace_one_bounds(
    phases: tuple[Phase, ...], *, delta: float, grid: float = 1.0
) -> tuple[float | None, Bound, Bound]:
    """(RDP, exact Gaussian, PLD) bounds, each with None where it does not apply.

    `grid` times as wide is the PLD's grid; another one than 1 is for checking.
    """
    halved = _halved(phases)
    if not any(phase.sampled for phase in phases):
        rdp = float(rdp_accountant(halved).get_epsilon(delta))
        return rdp, gaussian_bound(halved, delta=delta), Bound(None)
    margin = pld_margin(phases)
    if margin > delta / 4.0:
        return None, Bound(None), Bound(None, f"PLD refused: its rounding margin is {margin:.2g}.")
    if min(p.noise_multiplier for p in phases) < _MIN_SIGMA:
        return None, Bound(None), Bound(None, "PLD skipped: so little noise makes it too costly.")
    interval = grid * replace_one_grid(phases)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE, interval)
    value = float(accountant.compose(to_event(phases)).get_epsilon(delta - margin))
    return None, Bound(None), Bound(value)


def replace_one_grid(phases: tuple[Phase, ...]) -> float:
    """Width of the grid of privacy losses that the PLD is computed on."""
    halved = _halved(phases)
    return max(pld_interval(halved, 5.0), largest_loss(halved) / _MAX_POINTS)


def _halved(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    return tuple(Phase(p.sampling_prob, p.noise_multiplier / 2.0, p.num_steps) for p in phases)
