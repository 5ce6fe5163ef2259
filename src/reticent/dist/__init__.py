"""Several processes, one private step: how batches, sums, noise and the ledger cross ranks.

Room: dist. May import torch, NumPy, `reticent.{noise,account}` and the floors below.

`Alone` is the one process of an ordinary run, `Replicas` a process group whose ranks each hold the whole
model and a share of every logical batch (data parallel), `Shards` one whose ranks each hold a part of every
parameter as well (FSDP2), `TensorParallel` one whose ranks run the same rows, each through its slices of the
layers. Code above speaks to all of them through `Ranks`, so that it has no branches for ranks.
"""

from ._join import joined
from ._ledger import RanksLedger
from ._parts import described_parts, read_parts, require_all_parts, sharded_like
from ._ranks import ALONE, Alone, Holding, Ranks, together
from ._replicas import Replicas
from ._shards import Shards, blocks_of
from ._tensor_parallel import TensorParallel
from ._tensor_shapes import SlicedShapes, sliced_shapes

__all__ = [
    "ALONE",
    "Alone",
    "Holding",
    "Ranks",
    "RanksLedger",
    "Replicas",
    "Shards",
    "SlicedShapes",
    "TensorParallel",
    "blocks_of",
    "described_parts",
    "joined",
    "read_parts",
    "require_all_parts",
    "sharded_like",
    "sliced_shapes",
    "together",
]
