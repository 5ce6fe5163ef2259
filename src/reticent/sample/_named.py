"""Samplers by the name of their scheme.

Room: sample. May import `reticent.records`, `reticent.errors`.
"""

from typing import Any, TypeAlias

from reticent.errors import ConfigError
from reticent.records import SamplingScheme
from reticent.sample._checks import checked_batch_size
from reticent.sample._partitions import PartitionSampler
from reticent.sample._sizes import FixedSizeSampler, TruncatedPoissonSampler
from reticent.sample.samplers import FullBatchSampler, PoissonSampler

Sampler: TypeAlias = (
    PoissonSampler | FullBatchSampler | TruncatedPoissonSampler | FixedSizeSampler | PartitionSampler
)


def sampler_of(
    scheme: SamplingScheme,
    *,
    num_examples: int,
    expected_batch_size: float | None,
    max_batch_size: int | None = None,
    seed: int = 0,
) -> Sampler:
    """The sampler of a scheme, for a public number of examples.

    Args:
        scheme: its name.
        num_examples: N, declared a public constant.
        expected_batch_size: B; a full batch takes none. A fixed size must be an integer; a partition has
            as many batches as bring N / k nearest to B.
        max_batch_size: M of truncated Poisson, and of nothing else.
        seed: of shuffles and bins; public.

    Raises:
        ConfigError[sampler-parameters]: M is missing or idle, or B is.
        ConfigError: as the sampler itself says.
    """
    scheme = SamplingScheme(scheme)
    full = scheme is SamplingScheme.FULL_BATCH
    size = float(num_examples) if full else checked_batch_size(expected_batch_size, num_examples)
    if full and expected_batch_size is not None:
        raise ConfigError(
            f"A full batch takes no expected_batch_size, got {expected_batch_size!r}.",
            code="sampler-parameters",
        )
    if (max_batch_size is None) == (scheme is SamplingScheme.TRUNCATED_POISSON):
        raise ConfigError(
            "max_batch_size belongs to truncated-poisson batches, which need one: "
            f"the sampler is {scheme}, max_batch_size {max_batch_size}.",
            code="sampler-parameters",
        )
    match scheme:
        case SamplingScheme.POISSON:
            return PoissonSampler(num_examples=num_examples, expected_batch_size=size)
        case SamplingScheme.FULL_BATCH:
            return FullBatchSampler(num_examples=num_examples)
        case SamplingScheme.FIXED_SIZE:
            whole: Any = int(size) if size.is_integer() else size  # else refused
            return FixedSizeSampler(num_examples=num_examples, batch_size=whole)
        case SamplingScheme.TRUNCATED_POISSON:
            assert max_batch_size is not None
            return TruncatedPoissonSampler(
                num_examples=num_examples, expected_batch_size=size, max_batch_size=max_batch_size
            )
        case _:
            return PartitionSampler(
                num_examples=num_examples,
                num_batches=max(1, round(num_examples / size)),
                order=scheme,
                seed=None if scheme is SamplingScheme.CYCLIC else seed,
            )
