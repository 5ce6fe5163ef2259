"""Epsilon of batches that somebody else drew: what is true for a loop with a data loader of its own.

Room: account. May import `reticent.records`; never torch.

| a loader | function |
|---|---|
| in order, shuffled or not, each epoch once through the data | `participation_epsilon` |
| every example into one of k batches at random | `participation_epsilon` |
| Poisson, cut at a largest size at random | `truncated_poisson_epsilon` |
| a fixed number without replacement, anew in each step | `without_replacement_epsilon` |
| Poisson, or all examples in each step | `epsilon` |

With replacement, and anything else: nothing is known to us, and nothing is offered.
"""

from reticent.account._epsilon import epsilon
from reticent.errors import ConfigError
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme


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
    """Epsilon of Poisson batches of which a random subset is kept where they are too large.

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
        ConfigError[mechanism, sampling-prob, noise-multiplier, num-steps, delta]: a bad setting.
        AccountingError[no-bound]: PLD cannot be trusted here.
    """
    step = Mechanism(
        scheme=SamplingScheme.TRUNCATED_POISSON,
        sampling_prob=sampling_prob,
        noise_multiplier=noise_multiplier,
        num_examples=num_examples,
        batch_size=max_batch_size,
    )
    return epsilon([(step, num_steps)], delta=delta, relation=NeighbouringRelation.ZERO_OUT)


def without_replacement_epsilon(
    *, num_examples: int, batch_size: int, noise_multiplier: float, num_steps: int, delta: float
) -> EpsilonReport:
    """Epsilon of batches of a fixed size, drawn without replacement anew for each step.

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
    if not _whole(num_examples) or not _whole(batch_size) or batch_size > num_examples:
        raise ConfigError(
            f"A batch is an integer of at least 1 and at most num_examples; got batch_size {batch_size!r} "
            f"and num_examples {num_examples!r}.",
            code="num-examples",
        )
    step = Mechanism(
        scheme=SamplingScheme.FIXED_SIZE,
        sampling_prob=batch_size / num_examples,
        noise_multiplier=noise_multiplier,
        num_examples=num_examples,
        batch_size=batch_size,
    )
    return epsilon([(step, num_steps)], delta=delta, relation=NeighbouringRelation.REPLACE_ONE)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
