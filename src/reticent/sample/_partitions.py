"""Batches that go through all examples before any comes again: in order, shuffled, or balls in bins.

Room: sample. May import NumPy, `reticent.records`, `reticent.errors`.

Sources:
    [1] Chua et al. 2024, arXiv:2403.17673 (what shuffling is worth), arXiv:2412.16802 (balls and bins).
    [2] Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reticent.errors import ConfigError
from reticent.records import PARTITIONS, RELATIONS, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample._checks import check_available, check_count, is_integer
from reticent.sample.stream import SampleStream


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSampler:
    """The examples cut into k batches; an epoch of k steps takes each of them once.

    | order | batch j of an epoch |
    |---|---|
    | `cyclic` | examples i with i mod k = j: the same in every epoch |
    | `shuffled` | the j-th part of a permutation, a new one for each epoch; sizes differ by one at most |
    | `balls-in-bins` | the examples that chose j, each by itself, anew for each epoch; perhaps none |

    Which examples are together is public: it is fixed by `seed`, so that a run that goes on after a crash
    goes on with the very same batches. Nothing is lost by that, as nothing is gained from secrecy here: no
    bound on amplification by shuffling or by bins is one that we trust [1]. What is accounted for is how
    often one example takes part: in T steps at most ceil(T / k) times. `PoissonSampler` needs far less noise.

    Args:
        num_examples: N, declared a public constant; an integer >= 1.
        num_batches: k; an integer from 1 to N. N / k is the public divisor of the noised sum.
        order: one of the table.
        seed: of permutations or bins, an integer; None (and only None) for `cyclic`. Public.

    Guarantee:
        The batches depend on N, k, order and seed only, never on what the examples hold: the guarantee is
        for zeroing out an example, or for replacing one.

    Raises:
        ConfigError[num-examples]: N is not an integer >= 1.
        ConfigError[sampler-parameters]: k is not an integer from 1 to N, or the order is not known.
        ConfigError[seed]: a seed is missing, idle, or no integer.
    """

    num_examples: int
    num_batches: int
    order: SamplingScheme
    seed: int | None = None

    def __post_init__(self) -> None:
        check_count("num_batches", self.num_batches, self.num_examples)
        if not isinstance(self.order, str) or self.order not in PARTITIONS:
            raise ConfigError(
                f"order must be one of {', '.join(sorted(PARTITIONS))}, got {self.order!r}.",
                code="sampler-parameters",
            )
        object.__setattr__(self, "order", SamplingScheme(self.order))
        cyclic = self.order is SamplingScheme.CYCLIC
        if (self.seed is not None) if cyclic else not is_integer(self.seed):
            raise ConfigError(
                f"{self.order} batches take {'no seed' if cyclic else 'a seed, an integer'}; got "
                f"{self.seed!r}.",
                code="seed",
            )

    @property
    def sampling_prob(self) -> float:
        """Share 1 / k of the steps that an example takes part in; nothing is sampled."""
        return 1.0 / self.num_batches

    @property
    def expected_batch_size(self) -> float:
        """N / k, the public divisor of the noised sum."""
        return self.num_examples / self.num_batches

    @property
    def scheme(self) -> SamplingScheme:
        """How an accountant knows this sampler."""
        return self.order

    @property
    def relation(self) -> NeighbouringRelation:
        """Zero-out: the number of examples is public."""
        return self.relations[0]

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Which statements can be made of such batches; `relation` is the first."""
        return RELATIONS[self.order]

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What one step of this sampler does to the data, for the ledger and the accountant."""
        return Mechanism(
            scheme=self.order,
            sampling_prob=self.sampling_prob,
            noise_multiplier=noise_multiplier,
            num_batches=self.num_batches,
        )

    def draw(self, num_available: int, stream: SampleStream, *, step: int) -> npt.NDArray[np.int64]:
        """The examples of a step, sorted and distinct; the same whenever it is asked for.

        Args:
            num_available: number of examples there are; equal to `num_examples`.
            stream: not used.
            step: number of the step, from 0; k of them are an epoch.

        Raises:
            ConfigError[data-size]: `num_available` differs from `num_examples`.
        """
        check_available(num_available, self.num_examples)
        epoch, batch = divmod(step, self.num_batches)
        if self.order is SamplingScheme.CYCLIC:
            return np.arange(batch, num_available, self.num_batches, dtype=np.int64)
        bits = self._bits(epoch)
        if self.order is SamplingScheme.SHUFFLED:
            return np.sort(np.argsort(bits, kind="stable")[batch :: self.num_batches]).astype(np.int64)
        return np.flatnonzero(bits % np.uint64(self.num_batches) == np.uint64(batch)).astype(np.int64)

    def _bits(self, epoch: int) -> npt.NDArray[np.uint64]:
        """64 bits for each example: the raw stream of Philox [2], which stays the same over versions."""
        text = f"reticent partition, public: seed {self.seed}, epoch {epoch}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        return np.random.Philox(key=key).random_raw(self.num_examples)
