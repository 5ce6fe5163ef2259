"""Joining the process group that a launcher set up.

Room: dist. May import torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ._ranks import ALONE, Ranks
from ._replicas import Replicas


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started this process with: `ALONE` without it, or with one process.

    Joins the process group (NCCL where every rank of the machine has a GPU of its own, else gloo) unless the
    program has done so, and leaves it again.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield Replicas()
        return
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    if on_gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Replicas()
    finally:
        dist.destroy_process_group()
