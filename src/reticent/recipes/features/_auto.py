"""`method=auto`: a method and its settings from the data's public shape and the budget alone.

Room: recipes. Imports nothing of ours: it may not even see a data set.

Everything follows from the signal, N epsilon / sqrt(D K): the number of examples over the noise of D K
weights. Where it is high, DP-FC: a private second moment, a tenth of the budget, makes all directions of
the features equally long, so that one learning rate fits all data. The Hessian of the softmax loss is at
most half the second moments, so that a rate below 4 does not overshoot. How far to go, rate times steps,
grows with the signal. Where it is low, the second moments are mostly noise, and Adam, which scales each
weight by its own gradients, does better. The constants were chosen on `digits`, `adult` and the pixels of
Fashion-MNIST; docs/transfer.md says how far from the best of a sweep they are.

Before either, a private mean is subtracted, from a twentieth of the budget, unless its own noise would be a
third of a row's length: what all rows have in common takes most of their length, and says nothing about
their classes. A small intercept then stands for how common each class is.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

_LOW_SIGNAL: Final = 150.0
_LARGEST_RATE: Final = 3.0
_STEPS: Final = (40, 120)
_WITHOUT_NOISE: Final = 1e4
_CLEAR_MEAN: Final = 50.0
CENTRE_SHARE: Final = 0.05


def chosen_for(
    *, num_examples: int, dim: int, num_classes: int, epsilon: float, delta: float
) -> Mapping[str, Any]:
    """Settings of `last-layer`, `method` among them; an intercept is for rows of norm 1.

    Args:
        num_examples: N.
        dim: D.
        num_classes: K.
        epsilon: of the budget; infinite for a run without privacy.
        delta: of the budget.
    """
    centring = {}
    if num_examples * epsilon >= _CLEAR_MEAN * math.sqrt(dim):
        centring = {"centre": "private", "centre_share": CENTRE_SHARE, "intercept": 0.5}
    signal = min(num_examples * epsilon / math.sqrt(dim * num_classes), _WITHOUT_NOISE)
    if signal < _LOW_SIGNAL:
        return {"method": "adam", "num_steps": 50, "lr": 0.1, **centring}
    way = _STEPS[0] * math.sqrt(signal / 100.0)
    lr = min(_LARGEST_RATE, way / _STEPS[0])
    num_steps = min(_STEPS[1], max(_STEPS[0], round(way / lr)))
    return {"method": "fc", "num_steps": num_steps, "lr": round(lr, 3), "gram_share": 0.1, **centring}
