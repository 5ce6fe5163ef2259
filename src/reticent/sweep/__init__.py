"""Sweeps: one recipe with many settings, in parallel, with what choosing among them costs.

Room: sweep (floor 6). May import rich and the floors below.
"""

from ._choice import Choice
from ._run import sweep
from ._spec import Sweep, read_sweep

__all__ = ["Choice", "Sweep", "read_sweep", "sweep"]
