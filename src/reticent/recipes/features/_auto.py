"""`method=auto`: a method and its settings from the data's public shape and the budget alone.

Room: recipes. Imports nothing of ours: it may not even see a data set.
"""

from collections.abc import Mapping
from typing import Any


def chosen_for(
    *, num_examples: int, dim: int, num_classes: int, epsilon: float, delta: float
) -> Mapping[str, Any]:
    """Settings of `last-layer`, `method` among them.

    Args:
        num_examples: N.
        dim: D.
        num_classes: K.
        epsilon: of the budget; infinite for a run without privacy.
        delta: of the budget.
    """
    return {"method": "least-squares"}
