"""How many rows fit in memory at once: found by measuring small batches and never trying a large one.

On a CPU, running out of memory is a kill, so sizes are not tried until one fails: the bytes of
tensors at a few small sizes give a line, and the line says what fits. What is measured are rows of
zeros in the shapes of the data, so that nothing depends on anybody's values.

Room: train. May import torch, psutil, `reticent.{clip,clipping}` and the floors below.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reticent.clip import ClipEngine
from reticent.clipping import FlatClipping, StepClipping
from reticent.errors import ConfigError

from ._memory import PeakMemory

# The share of free memory that a run takes by default: the rest is for what tensors do not count.
DEFAULT_SHARE: Final = 0.6
_SIZES: Final = (1, 2, 4)
_MARGIN: Final = 1.15  # workspace inside operations, and what the line misses


def available_memory(device: torch.device) -> int:
    """Bytes that could be taken now on a device: in a container, what its limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no control group, or one without limit ("max")
        return free


def largest_physical_batch_size(
    model: nn.Module,
    loss_per_example: Callable[[nn.Module, Any], Tensor],
    rows: Any,
    *,
    memory_budget: int | None = None,
    largest: int = 4096,
    clipping: StepClipping | None = None,
    engine: ClipEngine | None = None,
) -> int:
    """The largest number of rows whose clipped sum fits in a number of bytes.

    Args:
        model: what will be trained; left as it is.
        loss_per_example: called as `loss_per_example(model, rows)`; returns (B,) losses.
        rows: one row or more in the shapes and dtypes of the data; their values are not used.
        memory_budget: bytes for everything that a sum needs beside the model and the data; None: 60 %
            of what is free on the model's device (within its container's limit).
        largest: never more than this.
        clipping: how units are clipped; flat by default. Per-layer clipping needs less memory.
        engine: an engine of the model's, if another than the default will run.

    Returns:
        Between 1 and `largest`. It depends on the model, the shapes and the budget alone.

    Raises:
        ConfigError[memory-budget]: not even one row fits; the message says how much is missing.
    """
    device = next(model.parameters()).device
    budget = int(DEFAULT_SHARE * available_memory(device)) if memory_budget is None else memory_budget
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ConfigError(
            f"memory_budget must be a positive number of bytes, got {memory_budget!r}.", code="memory-budget"
        )
    sizes = [n for n in _SIZES if n <= largest]
    peaks: dict[int, float] = {}
    for n in sizes:
        used = (
            ClipEngine(model, clipping=clipping or FlatClipping(max_norm=1.0)) if engine is None else engine
        )
        peaks[n] = _MARGIN * _peak(used, model, loss_per_example, _zeros(rows, n))
        if peaks[n] > budget:
            break
    if peaks[1] > budget:
        raise ConfigError(
            f"One row needs about {_mib(peaks[1])} beside the model, and the memory budget is "
            f"{_mib(budget)}: short by {_mib(peaks[1] - budget)}. Raise memory_budget to at least "
            f"{int(peaks[1]) + 1} bytes, use "
            "activation checkpointing, method='ghost' or per-layer clipping, or train fewer parameters.",
            code="memory-budget",
        )
    fitting = [n for n in peaks if peaks[n] <= budget]
    if len(fitting) < len(sizes):
        return max(fitting)
    return _extrapolated(peaks, budget, largest)


def _extrapolated(peaks: dict[int, float], budget: float, largest: int) -> int:
    """Where the steepest line through two measured sizes meets the budget."""
    sizes = sorted(peaks)
    if len(sizes) < 2:
        return sizes[-1]
    slopes = [(peaks[b] - peaks[a]) / (b - a) for a, b in itertools.pairwise(sizes)]
    slope = max(*slopes, 1.0)
    return max(1, min(largest, int(sizes[-1] + (budget - peaks[sizes[-1]]) / slope)))


def _peak(
    engine: ClipEngine, model: nn.Module, loss_per_example: Callable[[nn.Module, Any], Tensor], rows: Any
) -> int:
    """Bytes of tensors of the first sum, which also proves the layouts, and of the next."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), PeakMemory() as peak:
        for _ in range(2):
            engine.clipped_sum(lambda given: loss_per_example(model, given), rows)
    return peak.bytes


def _zeros(rows: Any, size: int) -> Any:
    return tree_map_only(Tensor, lambda t: t.new_zeros(size, *t.shape[1:]), rows)


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
