"""The sampler that a training recipe's settings ask for.

Room: recipes. May import `reticent.sample`.
"""

from typing import Any

from reticent.records import SamplingScheme
from reticent.sample import (
    FixedSizeSampler,
    FullBatchSampler,
    PartitionSampler,
    PoissonSampler,
    Sampler,
    TruncatedPoissonSampler,
)

from ._training_config import TrainingConfig


def sampler_of(config: TrainingConfig, *, num_examples: int) -> Sampler:
    """How steps draw examples; of a partition, with as many batches as come nearest to `expected_batch_size`.

    Raises:
        ConfigError: a setting that the sampler may not have, as a fixed size that is no integer.
    """
    size = float(config.expected_batch_size)
    match SamplingScheme(config.sampler):
        case SamplingScheme.POISSON:
            return PoissonSampler(num_examples=num_examples, expected_batch_size=size)
        case SamplingScheme.FULL_BATCH:
            return FullBatchSampler(num_examples=num_examples)
        case SamplingScheme.FIXED_SIZE:
            whole: Any = int(size) if size.is_integer() else size  # else refused
            return FixedSizeSampler(num_examples=num_examples, batch_size=whole)
        case SamplingScheme.TRUNCATED_POISSON:
            assert config.max_batch_size is not None, "checked with the settings"
            return TruncatedPoissonSampler(
                num_examples=num_examples, expected_batch_size=size, max_batch_size=config.max_batch_size
            )
        case scheme:
            return PartitionSampler(
                num_examples=num_examples,
                num_batches=max(1, round(num_examples / size)),
                order=scheme,
                seed=None if scheme is SamplingScheme.CYCLIC else config.seed,
            )
