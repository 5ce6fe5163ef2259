"""Samplers: which examples take part in a step, drawn exactly and, where it matters, in secret.

Room: sample (floor 1). May import NumPy and floor 0, never torch.
"""

from reticent.sample._named import Sampler, sampler_of
from reticent.sample._partitions import PartitionSampler
from reticent.sample._sizes import FixedSizeSampler, TruncatedPoissonSampler
from reticent.sample._stages import Stage, StagedSampler, read_batch_schedule
from reticent.sample.samplers import FullBatchSampler, PoissonSampler
from reticent.sample.stream import SampleStream

__all__ = [
    "FixedSizeSampler",
    "FullBatchSampler",
    "PartitionSampler",
    "PoissonSampler",
    "SampleStream",
    "Sampler",
    "Stage",
    "StagedSampler",
    "TruncatedPoissonSampler",
    "read_batch_schedule",
    "sampler_of",
]
