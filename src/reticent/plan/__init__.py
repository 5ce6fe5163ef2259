"""Plans: sampling, noise, clipping and privacy budget, fixed together so that they cannot disagree.

Room: plan (floor 2). May import `reticent.account`, `reticent.sample` and floor 0; never torch.
"""

from reticent.plan._batches import LogicalBatch
from reticent.plan._checks import problem, raise_together
from reticent.plan._plan import ROW, Plan
from reticent.plan._steps import PlannedStep
from reticent.sample import Sampler, Stage, StagedSampler

__all__ = [
    "ROW",
    "LogicalBatch",
    "Plan",
    "PlannedStep",
    "Sampler",
    "Stage",
    "StagedSampler",
    "problem",
    "raise_together",
]
