"""Which examples take part in a step: frozen descriptions, and exact draws from them.

Room: sample. May import NumPy, `reticent.records`, `reticent.errors`.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133, section 3.1 (Poisson sampled "lots").
    [2] Kairouz et al. 2021, arXiv:2103.00039, definition 1.1 ("zero-out" neighbours).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reticent.errors import ConfigError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample._checks import check_available, check_num_examples, checked_batch_size, checked_prob
from reticent.sample.stream import SampleStream


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class PoissonSampler:
    """Every example takes part in a step with probability q, independently of all else [1].

    Two ways to say q, which differ in what is public:

    | given | q | neighbouring relation | number of examples |
    |---|---|---|---|
    | `num_examples`, `expected_batch_size` | B / N | zero-out-one [2] | public: N, checked |
    | `sampling_prob`, `expected_batch_size` | as given | add-or-remove-one | secret: never stored |

    Args:
        num_examples: N, declared a public constant; an integer >= 1.
        expected_batch_size: B, the public divisor of the noised sum; > 0, and <= N if N is given.
        sampling_prob: q in (0, 1]. All three together are accepted if q is exactly B / N.

    Raises:
        ConfigError[sampler-parameters]: neither N nor q is given, or they contradict each other.
        ConfigError[num-examples]: N is not an integer >= 1.
        ConfigError[expected-batch-size]: B is missing, not finite, not positive, or above N.
        ConfigError[sampling-prob]: q is outside (0, 1].
    """

    num_examples: int | None
    expected_batch_size: float
    sampling_prob: float

    def __init__(
        self,
        *,
        num_examples: int | None = None,
        expected_batch_size: float | int | None = None,
        sampling_prob: float | int | None = None,
    ) -> None:
        if num_examples is None and sampling_prob is None:
            raise ConfigError(
                "A Poisson sampler needs num_examples (then it is public) or sampling_prob (then the "
                "number of examples stays secret), and expected_batch_size.",
                code="sampler-parameters",
            )
        size = checked_batch_size(expected_batch_size, num_examples)
        if num_examples is not None:
            derived = size / num_examples
            if sampling_prob is not None and sampling_prob != derived:
                raise ConfigError(
                    f"sampling_prob {sampling_prob!r} is not expected_batch_size / num_examples = "
                    f"{derived!r}. Leave one of the three out.",
                    code="sampler-parameters",
                )
            sampling_prob = derived
        object.__setattr__(self, "num_examples", num_examples)
        object.__setattr__(self, "expected_batch_size", size)
        object.__setattr__(self, "sampling_prob", checked_prob(sampling_prob))

    @property
    def scheme(self) -> SamplingScheme:
        """How an accountant knows this sampler."""
        return SamplingScheme.POISSON

    @property
    def relation(self) -> NeighbouringRelation:
        """Zero-out if the number of examples is public, add-or-remove otherwise."""
        return self.relations[0]

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Which statements can be made of batches drawn so; `relation` is the first."""
        secret = self.num_examples is None
        usual = NeighbouringRelation.ADD_OR_REMOVE if secret else NeighbouringRelation.ZERO_OUT
        return usual, NeighbouringRelation.REPLACE_ONE

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What one step of this sampler does to the data, for the ledger and the accountant."""
        return Mechanism(
            scheme=self.scheme, sampling_prob=self.sampling_prob, noise_multiplier=noise_multiplier
        )

    def draw(self, num_available: int, stream: SampleStream, *, step: int = 0) -> npt.NDArray[np.int64]:
        """Draw one step's examples.

        A Binomial(num_available, q) count, then a uniform subset of that size: the same law as one
        independent coin each, with no grid that would round a small q (32-bit uniforms make
        1e-7 into 1.2e-7).

        Args:
            num_available: number of examples there are; equal to `num_examples` if that is set.
            stream: where the randomness comes from.
            step: not used; every step is drawn alike.

        Returns:
            Sorted distinct indices in [0, num_available), int64; empty when no example was drawn.
            An empty batch is a step like any other: noise is added to a sum of zero.

        Guarantee:
            P[i is drawn] = q for each i, independently over examples and calls, up to float64
            rounding in NumPy's binomial. The indices and their number are secret.

        Raises:
            ConfigError[data-size]: `num_available` differs from the public `num_examples`, or is
                negative.
        """
        check_available(num_available, self.num_examples)
        rng = stream.generator()
        count = rng.binomial(num_available, self.sampling_prob)
        drawn = rng.choice(num_available, size=count, replace=False, shuffle=False)
        return np.sort(drawn.astype(np.int64, copy=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class FullBatchSampler:
    """Every example takes part in every step; nothing is random and nothing is amplified.

    Args:
        num_examples: N, declared a public constant; an integer >= 1.

    Raises:
        ConfigError[num-examples]: N is not an integer >= 1.
    """

    num_examples: int

    def __post_init__(self) -> None:
        check_num_examples(self.num_examples)

    @property
    def sampling_prob(self) -> float:
        """Always 1."""
        return 1.0

    @property
    def expected_batch_size(self) -> float:
        """All examples: N, the public divisor of the noised sum."""
        return float(self.num_examples)

    @property
    def scheme(self) -> SamplingScheme:
        """How an accountant knows this sampler."""
        return SamplingScheme.FULL_BATCH

    @property
    def relation(self) -> NeighbouringRelation:
        """Zero-out: the number of examples is public."""
        return self.relations[0]

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Which statements can be made of full batches; `relation` is the first."""
        return NeighbouringRelation.ZERO_OUT, NeighbouringRelation.REPLACE_ONE

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What one step of this sampler does to the data, for the ledger and the accountant."""
        return Mechanism(scheme=self.scheme, sampling_prob=1.0, noise_multiplier=noise_multiplier)

    def draw(self, num_available: int, stream: SampleStream, *, step: int = 0) -> npt.NDArray[np.int64]:
        """All indices, 0 to N - 1; neither `stream` nor `step` is used.

        Raises:
            ConfigError[data-size]: `num_available` differs from `num_examples`.
        """
        check_available(num_available, self.num_examples)
        return np.arange(num_available, dtype=np.int64)
