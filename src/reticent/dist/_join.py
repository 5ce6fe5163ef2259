"""Joining the process group that a launcher set up.

Room: dist. May import torch and `reticent.errors`.

Sources:
    [1] PyTorch issue 135712.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Literal

import torch
import torch.distributed as dist

from reticent.errors import ConfigError

from ._ranks import ALONE, Ranks
from ._replicas import Replicas
from ._shards import Shards
from ._tensor_parallel import TensorParallel

Parallel = Literal["none", "ddp", "fsdp2", "tp"]

_TIMEOUT: Final = "RETICENT_RANK_TIMEOUT"
_SECONDS: Final = 600.0  # torch's own for NCCL, and a third of its own for gloo
_LONGEST: Final = 1e7  # four months: beyond it timers overflow


@contextmanager
def joined(*, parallel: Parallel = "none") -> Iterator[Ranks]:
    """The ranks that torchrun started this process with: `ALONE` without it, or with one process.

    Joins the process group (NCCL where every rank of the machine has a GPU of its own, else gloo) unless the
    program has done so, and leaves it again.

    Args:
        parallel: how they share the work: "fsdp2" makes `Shards`, "tp" `TensorParallel`, the others
            `Replicas`.

    Raises:
        ConfigError[rank-timeout]: RETICENT_RANK_TIMEOUT, after which a rank gives another up, is no number
            of seconds.
        ConfigError[no-process-group]: what torchrun sets in the environment, WORLD_SIZE or another, is no
            such number.
    """
    make = {"fsdp2": Shards, "tp": TensorParallel}.get(parallel, Replicas)
    if _number("WORLD_SIZE", 1, least=1) == 1:
        yield ALONE
        return
    if dist.is_initialized():
        yield make()
        return
    local, here = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1, least=1)
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    if on_gpus:
        torch.cuda.set_device(local)
    _begin("nccl" if on_gpus else "gloo")
    try:
        yield make()
    finally:
        dist.destroy_process_group()


def _number(name: str, without: int, *, least: int = 0) -> int:
    """A whole number that torchrun sets in the environment; `without` it, the other one."""
    said = os.environ.get(name, str(without))
    try:
        number = int(said)
    except ValueError:
        number = least - 1
    if number < least:
        raise ConfigError(
            f"{name} is {said!r}, and must be a whole number, {least} or more. torchrun sets it: start with "
            "torchrun, or unset it.",
            code="no-process-group",
        )
    return number


def _begin(backend: str) -> None:
    """`init_process_group`; after a restart under names of their own.

    torchrun keeps one store over its restarts, in which a rank could find another's address of before, and
    wait for it until the time-out [1]. On one machine all ranks know alike how often they were started; on
    several, the environment must say TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    timeout = _timeout()
    attempt = _number("TORCHELASTIC_RESTART_COUNT", 0)
    if attempt == 0 or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    c10d: Any = dist  # what follows is in its documentation, and not among its typed names
    store, rank, size = next(iter(c10d.rendezvous("env://")))
    store = c10d.PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _timeout() -> timedelta:
    """How long a rank waits for another. A matter of machines, not of the run, which resumes with any."""
    said = os.environ.get(_TIMEOUT, str(_SECONDS))
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= _LONGEST:
        raise ConfigError(
            f"{_TIMEOUT} is {said!r}. Give the seconds after which a rank that does not answer is given up, "
            f"above 0 and at most {_LONGEST:.0e}; without it they are {_SECONDS:g}.",
            code="rank-timeout",
        )
    return timedelta(seconds=seconds)
