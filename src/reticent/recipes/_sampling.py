"""The sampler that a training recipe's settings ask for.

Room: recipes. May import `reticent.sample`.
"""

from reticent.records import SamplingScheme
from reticent.sample import Sampler, StagedSampler, sampler_of

from ._training_config import TrainingConfig


def sampler_for(config: TrainingConfig, *, num_examples: int) -> Sampler | StagedSampler:
    """How steps draw examples; of a partition, with as many batches as come nearest to `expected_batch_size`.

    Raises:
        ConfigError[batch-schedule]: one of its stages would have no step.
        ConfigError: a setting that the sampler may not have, as a fixed size that is no integer.
    """
    if config.batch_schedule is not None:
        return StagedSampler.from_schedule(
            config.batch_sizes, num_examples=num_examples, num_steps=config.num_steps
        )
    scheme = SamplingScheme(config.sampler)
    return sampler_of(
        scheme,
        num_examples=num_examples,
        expected_batch_size=None if scheme is SamplingScheme.FULL_BATCH else config.expected_batch_size,
        max_batch_size=config.max_batch_size,
        seed=config.seed,
    )
