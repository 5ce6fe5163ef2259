"""Joining the process group that a launcher set up.

Room: dist. May import torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist

from ._ranks import ALONE, Ranks
from ._replicas import Replicas
from ._shards import Shards
from ._tensor_parallel import TensorParallel

Parallel = Literal["none", "ddp", "fsdp2", "tp"]


@contextmanager
def joined(*, parallel: Parallel = "none") -> Iterator[Ranks]:
    """The ranks that torchrun started this process with: `ALONE` without it, or with one process.

    Joins the process group (NCCL where every rank of the machine has a GPU of its own, else gloo) unless the
    program has done so, and leaves it again.

    Args:
        parallel: how they share the work: "fsdp2" makes `Shards`, "tp" `TensorParallel`, the others `Replicas`.
    """
    make = {"fsdp2": Shards, "tp": TensorParallel}.get(parallel, Replicas)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield make()
        return
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    if on_gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield make()
    finally:
        dist.destroy_process_group()
