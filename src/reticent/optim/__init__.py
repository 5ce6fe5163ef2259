"""Optimizers that torch does not have. They take any gradient and know no privacy.

Room: optim (floor 1). May import torch and `reticent.errors`.

What an optimizer makes of a noised gradient is post-processing: it costs nothing, as long as it
reads nothing else that depends on the private rows.
"""

from ._agc import clip_units
from ._lamb import Lamb
from ._sgd import decayed_sgd

__all__ = ["Lamb", "clip_units", "decayed_sgd"]
