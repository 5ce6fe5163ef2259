"""Sums of gradients that carry the bound on one unit's influence.

Room: bounded (floor 0). May import torch and `reticent.errors`.

Noise asks the value for its bound; nobody re-derives C.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundedSum:
    """A sum over privacy units in which one unit moves `total` by at most `bound`.

    Args:
        total: parameter name -> tensor of the parameter's shape: the sum of clipped gradients.
        bound: L2 sensitivity of `total`, over all parameters together, to adding or removing one
            unit (to rounding in the sum's dtype).
        norms: each unit's gradient norm before clipping, shape (B,), rounded up, infinite for a
            unit that counted as zero because its gradient was not finite. Depends on private
            data: never log or release it.
        group_norms: the same for each of L groups of parameters that were clipped apart, shape (B, L);
            None where there is one.

    A value of this class is not private: it becomes so when noise scaled to `bound` is added.
    """

    total: Mapping[str, Tensor]
    bound: float
    norms: Tensor = field(repr=False)
    group_norms: Tensor | None = field(default=None, repr=False)
