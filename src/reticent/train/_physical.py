"""How many rows fit in memory at once: found by measuring small batches and never trying a large one.

On a CPU, running out of memory is a kill, so sizes are not tried until one fails: the bytes of tensors at
a few small sizes say what larger ones need. What is measured are rows of zeros in the shapes of the data, so
that nothing depends on anybody's values.

A step's peak is not on a line through the peaks of small sizes: where parameters are large, the operation at
which two rows take most is not the one at which a hundred do. The operations are the same, though, and what
is alive at each is a + b n for n rows. So each has a line of its own, and the largest of these counts.

Room: train. May import torch, psutil, `reticent.{clip,clipping,noise}` and the floors below.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine, SumsOnDemand
from reticent.clipping import FlatClipping, StepClipping
from reticent.errors import ConfigError
from reticent.noise import CipherNoise, add_noise

from ._guards import trainable
from ._memory import PeakMemory

# The share of free memory that a run takes by default: the rest is for what tensors do not count.
DEFAULT_SHARE: Final = 0.6
_SIZES: Final = (1, 2, 4)
_MARGIN: Final = 1.15  # workspace inside operations, and what the lines miss
_NOISED_AT_ONCE: Final = 2 << 20  # numbers: two blocks of noise, the draws of both of which are alive


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
    """The largest number of rows with which a step's sums and release fit in a number of bytes.

    Args:
        model: what will be trained; left as it is.
        loss_per_example: called as `loss_per_example(model, rows)`; returns (B,) losses.
        rows: one row or more in the shapes and dtypes of the data; their values are not used.
        memory_budget: bytes for everything that a step needs beside the model, the data and the optimizer:
            the sum of one chunk after another, then noised sums and gradients. None: 60 % of what is free on
            the model's device (within its container's limit). Not in it: the first step's self-check, which
            takes up to four rows, however few fit, and what `show_norms` computes.
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
    used = ClipEngine(model, clipping=clipping or FlatClipping(max_norm=1.0)) if engine is None else engine
    sums = sum(_sum_bytes(p) for p in trainable(model).values())
    released = _release_bytes(model)  # nothing of it grows with the rows
    trails: dict[int, PeakMemory] = {}
    for n in (n for n in _SIZES if n <= largest):
        trails[n] = _trail(used, model, loss_per_example, _zeros(rows, n))
        if _MARGIN * trails[n].bytes > budget:
            break
    needed = max(_MARGIN * trails[1].bytes, released)
    if needed > budget:
        raise ConfigError(
            f"A step of one row needs about {_mib(needed)} beside the model, and the memory budget is "
            f"{_mib(budget)}: short by {_mib(needed - budget)}. Raise memory_budget to at least "
            f"{int(needed) + 1} bytes, use "
            "activation checkpointing, low_memory or per-layer clipping, or train fewer parameters.",
            code="memory-budget",
        )
    fitting = [n for n, peak in trails.items() if _MARGIN * peak.bytes <= budget]
    if len(fitting) < len(trails):
        return max(fitting)
    return _extrapolated(trails, sums, budget / _MARGIN, largest)


def _extrapolated(trails: dict[int, PeakMemory], sums: int, budget: float, largest: int) -> int:
    """Where the first of the lines through what was alive at two sizes meets the budget."""
    last = max(trails)
    before = max((n for n in trails if n < last), default=last)
    few, many = trails[before].trail, trails[last].trail
    if before < last and [by for by, _ in few] == [by for by, _ in many]:
        # What shrank is no line: it stays as it was.
        slopes = [(max(y - x, 0) / (last - before), y) for (_, x), (_, y) in zip(few, many, strict=True)]
    else:  # a loop over units, say: all but the sums then grows with the rows, which is never too little
        slopes = [((trails[last].bytes - min(sums, trails[last].bytes)) / last, trails[last].bytes)]
    more = min((int((budget - y) / slope) for slope, y in slopes if slope > 0), default=largest)
    return min(largest, last + more)


def _trail(
    engine: ClipEngine, model: nn.Module, loss_per_example: Callable[[nn.Module, Any], Tensor], rows: Any
) -> PeakMemory:
    """What is alive while a step adds up three chunks: each proves layouts anew, or runs as planned."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    engine.proofs.forget()
    with torch.random.fork_rng(devices=devices), PeakMemory() as peak:
        total = SumsOnDemand(trainable(model))
        for again in (False, False, True):  # the sums of all chunks before are alive
            if again:
                engine.proofs.forget()
            engine.clipped_sum(lambda given: loss_per_example(model, given), rows, out=total)
    return peak


def _release_bytes(model: nn.Module) -> int:
    """The most that is alive while sums are noised, one after the other, and gradients are made of them."""
    params = list(trainable(model).values())
    largest = max(params, key=_sum_bytes)
    some = torch.zeros(
        min(largest.numel(), _NOISED_AT_ONCE), dtype=_sum_dtype(largest), device=largest.device
    )
    with PeakMemory() as peak:
        nothing = BoundedSum(total={"": some}, bound=1.0, norms=torch.empty(0))
        add_noise(nothing, noise_multiplier=1.0, source=CipherNoise.fresh())
    draws = max(peak.bytes - some.nbytes, 0)  # beside the noised tensor itself
    sums = sum(map(_sum_bytes, params))
    gradients = sum(p.numel() * p.element_size() for p in params)
    return 2 * sums + max(draws, gradients + (_sum_bytes(largest) if gradients < sums else 0))


def _sum_bytes(param: Tensor) -> int:
    return param.numel() * _sum_dtype(param).itemsize


def _sum_dtype(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _zeros(rows: Any, size: int) -> Any:
    return tree_map_only(Tensor, lambda t: t.new_zeros(size, *t.shape[1:]), rows)


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
