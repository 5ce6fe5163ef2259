"""The engine: per-unit gradients of any model, clipped and summed, in one forward and one backward.

Room: clip (floor 2). May import torch, `reticent.rules`, `reticent.bounded`, `reticent.errors`.
"""

from reticent.clip._batch import varied_rows
from reticent.clip._compiled import CompiledEngine
from reticent.clip._engine import ClipEngine, clipped_sum
from reticent.clip._refuse import FrozenBatchNorm, fix, refuse_unsupported
from reticent.clip._sums import SumsOnDemand

__all__ = [
    "ClipEngine",
    "CompiledEngine",
    "FrozenBatchNorm",
    "SumsOnDemand",
    "clipped_sum",
    "fix",
    "refuse_unsupported",
    "varied_rows",
]
