"""Private training behind the `Trainer` of transformers: two lines of a script change.

Room: hf. Imports transformers (and accelerate through it) when it is imported, so import it by name:

    from reticent.hf import PrivacyArguments, PrivateTrainer
"""

from ._fields import FIELDS, Use
from ._losses import per_example_loss
from ._privacy import PrivacyArguments
from ._sft import SFT_FIELDS, PrivateSFTTrainer
from ._trainer import PrivateTrainer

__all__ = [
    "FIELDS",
    "SFT_FIELDS",
    "PrivacyArguments",
    "PrivateSFTTrainer",
    "PrivateTrainer",
    "Use",
    "per_example_loss",
]
