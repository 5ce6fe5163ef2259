"""Private training behind Lightning's `Trainer`: its loop, callbacks and loggers, our steps.

Room: lightning. Imports lightning when it is imported, so import it by name:

    from reticent.lightning import PrivateTrainer
"""

from ._arguments import ARGUMENTS, Use
from ._trainer import PrivateTrainer

__all__ = ["ARGUMENTS", "PrivateTrainer", "Use"]
