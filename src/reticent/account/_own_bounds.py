"""Bounds of samplers whose steps are no Gaussian phases: truncated Poisson, and a fixed size.

Room: account. May import `reticent.records` and dp-accounting; never torch.

| scheme | bound | under |
|---|---|---|
| truncated Poisson | PLD, with a public number of examples [1] | zero-out |
| fixed size without replacement | RDP, at half the noise [2]; at most that of a full batch | replace-one |

Zeroing out an example leaves it in its place in the draw. Where the others alone fill a batch, it takes the
place of another one: the sum moves by up to two bounds, which is what [1]'s second component allows for.

Neither is known to compose with other kinds of steps here, and nothing is offered for that.

Sources:
    [1] Chua et al. 2025, arXiv:2508.15089 (truncated Poisson).
    [2] Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087 (subsampled RDP).
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

import dp_accounting
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from reticent.account._bounds import gaussian_bound, largest_loss, pld_epsilon, pld_interval, pld_margin
from reticent.account._events import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    Phase,
    Segments,
    check_num_steps,
)
from reticent.errors import AccountingError
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme

_MAX_POINTS: Final = 250_000
_LEAST_NOISE: Final = 0.1  # of a truncated step: below, a grid that holds its losses would be too large
_OWN: Final = (SamplingScheme.TRUNCATED_POISSON, SamplingScheme.FIXED_SIZE)


def simplified(segments: Segments) -> list[tuple[Mechanism, int]]:
    """The same steps, with what never cuts as plain Poisson, and what draws everybody as full batch."""
    return [(_simpler(mechanism), check_num_steps(count)) for mechanism, count in segments]


def _simpler(m: Mechanism) -> Mechanism:
    whole = m.scheme in _OWN and m.batch_size is not None and m.batch_size >= (m.num_examples or 0)
    if not whole and m.noise_multiplier >= MIN_NOISE_MULTIPLIER:
        return m
    if m.scheme is SamplingScheme.TRUNCATED_POISSON:
        return Mechanism(
            scheme=SamplingScheme.POISSON,
            sampling_prob=m.sampling_prob,
            noise_multiplier=m.noise_multiplier,
        )
    if m.scheme is SamplingScheme.FIXED_SIZE:
        return Mechanism(
            scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=m.noise_multiplier
        )
    return m


def own_history(segments: Sequence[tuple[Mechanism, int]]) -> tuple[Mechanism, int] | None:
    """The one mechanism of this file that all of the steps have, and their number; None if none has.

    Raises:
        AccountingError[no-bound]: such steps beside others.
    """
    own = [(m, n) for m, n in segments if m.scheme in _OWN and n]
    if not own:
        return None
    first = own[0][0]
    if any(m != first for m, n in segments if n):
        raise AccountingError(
            f"No trustworthy epsilon is known for {first.scheme} batches together with other steps. Poisson "
            "batches compose with everything.",
            code="no-bound",
        )
    return first, sum(n for _, n in own)


def own_epsilon(mechanism: Mechanism, num_steps: int, *, delta: float) -> EpsilonReport:
    """Epsilon of a history of one such mechanism, at least one step, with noise.

    Raises:
        AccountingError[no-bound]: PLD cannot be trusted here.
    """
    bound = _truncated if mechanism.scheme is SamplingScheme.TRUNCATED_POISSON else _fixed_size
    return bound(mechanism, num_steps, delta)


def _truncated(m: Mechanism, num_steps: int, delta: float) -> EpsilonReport:
    assert m.num_examples is not None and m.batch_size is not None
    sigma = min(m.noise_multiplier, MAX_NOISE_MULTIPLIER)
    phases = (Phase(m.sampling_prob, sigma / 2.0, num_steps),)  # for the grid: a cut moves two examples
    margin = pld_margin(phases)
    if margin > delta / 4.0 or sigma < _LEAST_NOISE:
        raise AccountingError(
            f"No trustworthy epsilon is known for truncated batches here: delta {delta:.3g} is too small "
            f"beside the rounding of PLD ({margin:.2g}), or there is hardly any noise.",
            code="no-bound",
        )
    interval = max(pld_interval(phases, 5.0), largest_loss(phases) / _MAX_POINTS)
    cut = dp_event.TruncatedSubsampledGaussianDpEvent(m.num_examples, m.sampling_prob, m.batch_size, sigma)
    value = pld_epsilon(dp_accounting.SelfComposedDpEvent(cut, num_steps), delta - margin, interval)
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=None,
        epsilon_pld=value,
        neighbouring_relation=NeighbouringRelation.ZERO_OUT,
        accountant=f"PLD of truncated Poisson (dp-accounting {version('dp-accounting')})",
        num_steps=num_steps,
        notes=(f"{m.num_examples} examples are public; batches were cut at {m.batch_size}.",),
    )


def _fixed_size(m: Mechanism, num_steps: int, delta: float) -> EpsilonReport:
    assert m.num_examples is not None and m.batch_size is not None
    sigma = min(m.noise_multiplier, MAX_NOISE_MULTIPLIER)
    drawn = dp_accounting.SampledWithoutReplacementDpEvent(
        m.num_examples, m.batch_size, dp_accounting.GaussianDpEvent(sigma / 2.0)
    )
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    rdp = float(accountant.compose(drawn, num_steps).get_epsilon(delta)) * (1.0 + 1e-12)
    everybody = gaussian_bound((Phase(1.0, sigma / 2.0, num_steps),), delta=delta).epsilon
    return EpsilonReport(
        epsilon=rdp if everybody is None else min(rdp, everybody),  # sampling never costs more than none
        delta=delta,
        epsilon_rdp=rdp,
        epsilon_pld=None,
        neighbouring_relation=NeighbouringRelation.REPLACE_ONE,
        accountant=f"RDP without replacement (dp-accounting {version('dp-accounting')})",
        num_steps=num_steps,
        notes=(f"{m.batch_size} of {m.num_examples} examples in each step, both public.",),
    )
