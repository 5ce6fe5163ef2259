"""What a private run would take on given hardware: rates fitted to measurements, and the shapes of a model.

Room: cost. May import torch, `reticent.{clip,train,plan,noise}` and the floors below.
"""

from reticent.cost._estimate import Estimate, Held, Parallel, Sliced, check_ranks, estimate
from reticent.cost._features import Features, features_of, on_meta, shapes_alone
from reticent.cost._hardware import Hardware, read_hardware, write_hardware
from reticent.cost._measure import measure

__all__ = [
    "Estimate",
    "Features",
    "Hardware",
    "Held",
    "Parallel",
    "Sliced",
    "check_ranks",
    "estimate",
    "features_of",
    "measure",
    "on_meta",
    "read_hardware",
    "shapes_alone",
    "write_hardware",
]
