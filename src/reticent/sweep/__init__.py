"""Sweeps: one recipe with many settings, in parallel, with what choosing among them costs.

Room: sweep (floor 6). May import rich and the floors below.
"""

from ._choice import Choice
from ._run import sweep
from ._simulations import Simulations, read_simulations, simulate_each
from ._spec import Sweep, read_sweep

__all__ = ["Choice", "Simulations", "Sweep", "read_simulations", "read_sweep", "simulate_each", "sweep"]
