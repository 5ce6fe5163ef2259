"""Joining the process group that a launcher set up.

Room: dist. May import torch.

Sources:
    [1] PyTorch issue 135712.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

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
        parallel: how they share the work: "fsdp2" makes `Shards`, "tp" `TensorParallel`, the others
            `Replicas`.
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
    _begin("nccl" if on_gpus else "gloo")
    try:
        yield make()
    finally:
        dist.destroy_process_group()


def _begin(backend: str) -> None:
    """`init_process_group`; after a restart under names of their own.

    torchrun keeps one store over its restarts, in which a rank could find another's address of before, and
    wait for it until the time-out [1]. On one machine all ranks know alike how often they were started; on
    several, the environment must say TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    c10d: Any = dist  # what follows is in its documentation, and not among its typed names
    store, rank, size = next(iter(c10d.rendezvous("env://")))
    store = c10d.PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
