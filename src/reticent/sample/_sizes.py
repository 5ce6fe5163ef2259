"""Samplers whose batches have a size that is known: never above a largest one, or always the same.

Room: sample. May import NumPy, `reticent.records`, `reticent.errors`.

Sources:
    [1] Chua et al. 2025, arXiv:2508.15089 (truncated Poisson).
    [2] Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087 (without replacement).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reticent.records import RELATIONS, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample._checks import check_available, check_count, checked_batch_size
from reticent.sample.stream import SampleStream


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedPoissonSampler:
    """Poisson batches, of which a random subset is kept where they are larger than fits [1].

    For hardware that takes batches up to a fixed size. `PoissonSampler` needs no such cut, as a step may go
    through the model in pieces: it costs less epsilon.

    Args:
        num_examples: N, declared a public constant; an integer >= 1.
        expected_batch_size: B, before the cut, and the public divisor of the noised sum; > 0, and <= N.
        max_batch_size: M, the largest batch kept; an integer from 1 to N.

    Raises:
        ConfigError[num-examples]: N is not an integer >= 1.
        ConfigError[expected-batch-size]: B is not finite, not positive, or above N.
        ConfigError[sampler-parameters]: M is not an integer from 1 to N.
    """

    num_examples: int
    expected_batch_size: float
    max_batch_size: int

    def __post_init__(self) -> None:
        size = checked_batch_size(self.expected_batch_size, self.num_examples)
        check_count("max_batch_size", self.max_batch_size, self.num_examples)
        object.__setattr__(self, "expected_batch_size", size)

    @property
    def sampling_prob(self) -> float:
        """Probability B / N that an example is drawn, before the cut."""
        return self.expected_batch_size / self.num_examples

    @property
    def scheme(self) -> SamplingScheme:
        """How an accountant knows this sampler."""
        return SamplingScheme.TRUNCATED_POISSON

    @property
    def relation(self) -> NeighbouringRelation:
        """Zero-out: the number of examples is public."""
        return self.relations[0]

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Zero-out alone: no bound is known to us under another."""
        return RELATIONS[self.scheme]

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What one step of this sampler does to the data, for the ledger and the accountant."""
        return Mechanism(
            scheme=self.scheme,
            sampling_prob=self.sampling_prob,
            noise_multiplier=noise_multiplier,
            num_examples=self.num_examples,
            batch_size=self.max_batch_size,
        )

    def draw(self, num_available: int, stream: SampleStream, *, step: int = 0) -> npt.NDArray[np.int64]:
        """Draw one step's examples: sorted distinct indices, at most M, perhaps none. All of it is secret.

        Guarantee:
            A Binomial(N, q) count, cut to M, then a uniform subset of that size: the law of Poisson batches
            of which a uniform subset is kept.

        Raises:
            ConfigError[data-size]: `num_available` differs from `num_examples`.
        """
        check_available(num_available, self.num_examples)
        rng = stream.generator()
        count = min(rng.binomial(num_available, self.sampling_prob), self.max_batch_size)
        return _subset(rng, num_available, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSizeSampler:
    """Batches of one size, drawn without replacement, anew for each step [2].

    The guarantee is for replacing an example by another, and noise is counted over twice the bound: where
    the size is fixed, nobody can be left out without letting somebody else in.

    Args:
        num_examples: N, declared a public constant; an integer >= 1.
        batch_size: B, and the divisor of the noised sum; an integer from 1 to N.

    Raises:
        ConfigError[num-examples]: N is not an integer >= 1.
        ConfigError[sampler-parameters]: B is not an integer from 1 to N.
    """

    num_examples: int
    batch_size: int

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, self.num_examples)

    @property
    def expected_batch_size(self) -> float:
        """B, the public divisor of the noised sum."""
        return float(self.batch_size)

    @property
    def sampling_prob(self) -> float:
        """Probability B / N that an example takes part in a step."""
        return self.batch_size / self.num_examples

    @property
    def scheme(self) -> SamplingScheme:
        """How an accountant knows this sampler."""
        return SamplingScheme.FIXED_SIZE

    @property
    def relation(self) -> NeighbouringRelation:
        """Replace-one."""
        return self.relations[0]

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Replace-one alone: no bound is known to us under another."""
        return RELATIONS[self.scheme]

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What one step of this sampler does to the data, for the ledger and the accountant."""
        return Mechanism(
            scheme=self.scheme,
            sampling_prob=self.sampling_prob,
            noise_multiplier=noise_multiplier,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
        )

    def draw(self, num_available: int, stream: SampleStream, *, step: int = 0) -> npt.NDArray[np.int64]:
        """Draw one step's examples: B sorted distinct indices, each set of them equally likely. Secret.

        Raises:
            ConfigError[data-size]: `num_available` differs from `num_examples`.
        """
        check_available(num_available, self.num_examples)
        return _subset(stream.generator(), num_available, self.batch_size)


def _subset(rng: np.random.Generator, num_available: int, count: int) -> npt.NDArray[np.int64]:
    drawn = rng.choice(num_available, size=count, replace=False, shuffle=False)
    return np.sort(drawn.astype(np.int64, copy=False))
