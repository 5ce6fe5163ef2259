"""What a trained model gives away, measured: secrets planted in the training data, and looked for after.

Room: audit (between train and recipes). May import torch and `reticent.errors`; knows no model: whoever asks
hands in a function from texts to log-likelihoods.

A measurement bounds nothing from above: that an attack fails is no proof that all do. The guarantee is the
ledger's epsilon; these figures show what a run without it risks.
"""

from ._exposure import Exposure, chance_of_exposure, exposure, extract
from ._secret import Secret, plant

__all__ = ["Exposure", "Secret", "chance_of_exposure", "exposure", "extract", "plant"]
