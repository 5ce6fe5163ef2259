"""Epsilon of ways to choose batches that our loops do not draw: for who brings batches of their own.

Room: account. May import `reticent.records` and dp-accounting; never torch.

`participation_epsilon`: cyclic batches, shuffled ones, balls in bins. No amplification of these can be
    trusted; what counts is how often one example takes part.
`truncated_poisson_epsilon`: Poisson, cut at a largest size at random. PLD, with a public number of
    examples [1].
`without_replacement_epsilon`: a fixed number without replacement. RDP, under replace-one only [2].

With replacement, and anything else: nothing is known to us, and nothing is offered.

Sources:
    [1] Chua et al. 2025, arXiv:2508.15089 (truncated Poisson).
    [2] Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087 (subsampled RDP).
"""

from importlib.metadata import version
from numbers import Integral
from typing import Final

import dp_accounting
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from reticent.account._bounds import largest_loss, pld_epsilon, pld_interval, pld_margin
from reticent.account._epsilon import epsilon
from reticent.account._events import MIN_NOISE_MULTIPLIER, Phase, check_num_steps
from reticent.errors import AccountingError, ConfigError
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme, check_delta

_MAX_POINTS: Final = 250_000


def participation_epsilon(
    *,
    num_participations: int,
    noise_multiplier: float,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ZERO_OUT,
) -> EpsilonReport:
    """Epsilon where every example takes part in at most so many steps, in whatever order.

    In E epochs of shuffled or cyclic batches, or of balls in bins, an example takes part in at most E steps
    (one more, if the last epoch is begun and a shuffle is drawn anew after a restart). The steps it is not in
    do not depend on it; those it is in are a Gaussian mechanism each. Nobody gains from not knowing which:
    amplification by shuffling has no bound that we trust.

    Args:
        num_participations: the most steps that any one example takes part in.
        noise_multiplier: noise over the bound of the sum.
        delta: strictly between 0 and 1.
        relation: zero-out or replace-one; an example that is added would move the others to other batches.

    Guarantee:
        Exact for the worst order: not below the true epsilon.

    Raises:
        ConfigError[relation]: add-or-remove-one.
        ConfigError: as `epsilon`.
    """
    if relation == NeighbouringRelation.ADD_OR_REMOVE:
        raise ConfigError(
            "Batches of a fixed partition have no epsilon under add-or-remove-one: one more example moves "
            "others to other batches. State it for zero-out-one or replace-one.",
            code="relation",
        )
    step = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=noise_multiplier)
    return epsilon([(step, num_participations)], delta=delta, relation=relation)


def truncated_poisson_epsilon(
    *,
    num_examples: int,
    sampling_prob: float,
    max_batch_size: int,
    noise_multiplier: float,
    num_steps: int,
    delta: float,
) -> EpsilonReport:
    """Epsilon of Poisson batches of which a random subset is kept where they are too large [1].

    The number of examples must be public, and the statement is for zero-out-one.

    Args:
        num_examples: N, public.
        sampling_prob: probability q before the cut.
        max_batch_size: the largest batch kept.
        noise_multiplier: noise over the bound of one example.
        num_steps: steps performed.
        delta: strictly between 0 and 1.

    Guarantee:
        Not below the true epsilon, up to the measured margin of PLD (as `epsilon`).

    Raises:
        ConfigError[num-examples, sampling-prob, noise-multiplier, num-steps, delta]: a bad setting.
        AccountingError[no-bound]: PLD cannot be trusted here.
    """
    check_delta(delta)
    steps, size = check_num_steps(num_steps), _positive("max_batch_size", max_batch_size)
    total = _positive("num_examples", num_examples)
    step = Mechanism(
        scheme=SamplingScheme.POISSON, sampling_prob=sampling_prob, noise_multiplier=noise_multiplier
    )
    if steps == 0 or noise_multiplier < MIN_NOISE_MULTIPLIER or size >= total:
        return epsilon([(step, steps)], delta=delta, relation=NeighbouringRelation.ZERO_OUT)
    phases = (Phase(sampling_prob, noise_multiplier / 2.0, steps),)  # for the grid: a cut moves two examples
    margin = pld_margin(phases)
    interval = max(pld_interval(phases, 5.0), largest_loss(phases) / _MAX_POINTS)
    if margin > delta / 4.0 or noise_multiplier < 0.1:
        raise AccountingError(
            f"No trustworthy epsilon is known for truncated batches here: delta {delta:.3g} is too small "
            f"beside the rounding of PLD ({margin:.2g}), or there is hardly any noise.",
            code="no-bound",
        )
    cut = dp_event.TruncatedSubsampledGaussianDpEvent(total, sampling_prob, size, noise_multiplier)
    value = pld_epsilon(dp_accounting.SelfComposedDpEvent(cut, steps), delta - margin, interval)
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=None,
        epsilon_pld=value,
        neighbouring_relation=NeighbouringRelation.ZERO_OUT,
        accountant=f"PLD of truncated Poisson (dp-accounting {version('dp-accounting')})",
        num_steps=steps,
        notes=(f"{total} examples are public; batches were cut at {size}.",),
    )


def without_replacement_epsilon(
    *, num_examples: int, batch_size: int, noise_multiplier: float, num_steps: int, delta: float
) -> EpsilonReport:
    """Epsilon of batches of a fixed size, drawn without replacement anew for each step [2].

    Only replace-one has a bound: the size is public, so one example less would mean another one more. The
    sum then moves by up to twice the bound, and the accountant is given half the noise.

    Args:
        num_examples: N, public.
        batch_size: examples in each step, at most N.
        noise_multiplier: noise over the bound of *one* example.
        num_steps: steps performed.
        delta: strictly between 0 and 1.

    Guarantee:
        Not below the true epsilon under replace-one.

    Raises:
        ConfigError[num-examples, noise-multiplier, num-steps, delta]: a bad setting.
    """
    check_delta(delta)
    steps = check_num_steps(num_steps)
    total, size = _positive("num_examples", num_examples), _positive("batch_size", batch_size)
    if size > total:
        raise ConfigError(f"batch_size {size} is more than num_examples {total}.", code="num-examples")
    step = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=noise_multiplier)
    everybody = epsilon([(step, steps)], delta=delta, relation=NeighbouringRelation.REPLACE_ONE)
    if steps == 0 or noise_multiplier < MIN_NOISE_MULTIPLIER or size == total:
        return everybody
    drawn = dp_accounting.SampledWithoutReplacementDpEvent(
        total, size, dp_accounting.GaussianDpEvent(noise_multiplier / 2.0)
    )
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    rdp = float(accountant.compose(drawn, steps).get_epsilon(delta))
    value = min(rdp * (1.0 + 1e-12), everybody.epsilon)  # sampling never costs more than none
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=rdp,
        epsilon_pld=None,
        neighbouring_relation=NeighbouringRelation.REPLACE_ONE,
        accountant=f"RDP without replacement (dp-accounting {version('dp-accounting')})",
        num_steps=steps,
        notes=(f"{size} of {total} examples in each step, both public.",),
    )


def _positive(name: str, value: int) -> int:
    ok = isinstance(value, Integral) and not isinstance(value, bool)
    if not ok or not 1 <= value <= 10**15:
        raise ConfigError(f"{name} must be an integer from 1 to 1e15, got {value!r}.", code="num-examples")
    return int(value)
