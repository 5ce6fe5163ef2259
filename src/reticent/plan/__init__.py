"""Plans: sampling, noise, clipping and privacy budget, fixed together so that they cannot disagree.

Room: plan (floor 2). May import `reticent.account`, `reticent.sample` and floor 0; never torch.
"""

from reticent.plan._batches import LogicalBatch
from reticent.plan._checks import problem, raise_together
from reticent.plan._plan import ROW, Plan
from reticent.sample import Sampler

__all__ = ["ROW", "LogicalBatch", "Plan", "Sampler", "problem", "raise_together"]
