"""Samplers: which examples take part in a step, drawn exactly and in secret.

Room: sample (floor 1). May import NumPy and floor 0, never torch.
"""

from reticent.sample.samplers import FullBatchSampler, PoissonSampler
from reticent.sample.stream import SampleStream

__all__ = ["FullBatchSampler", "PoissonSampler", "SampleStream"]
