"""Time and memory of each rank, for a plan, a model's shapes and a device.

Room: cost. May import `reticent.{plan,errors}`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from reticent.cost._features import Features
from reticent.cost._hardware import Hardware
from reticent.errors import ConfigError
from reticent.plan import Plan

_SUM_BYTES = 4  # of a coordinate of a clipped sum, and of its noise
_NOISE_BLOCK = 16 << 20  # bytes of draws at a time, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a model and its optimizer hold.

    Args:
        num_parameters: all of them.
        num_trained: those that are trained.
        parameter_bytes: bytes of all parameters and buffers.
        optimizer_bytes: bytes of the optimizer's state.
        averaged: an average of the weights is kept.
        largest_part: bytes of the largest part that is put together at once where parameters are sharded.
    """

    num_parameters: int
    num_trained: int
    parameter_bytes: int
    optimizer_bytes: int
    averaged: bool
    largest_part: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one rank; no overlap of arithmetic and communication is assumed.

    Args:
        memory: name -> bytes; `total` is the peak of a step.
        fits: whether `total` is within the device's memory.
        chunks: physical batches of a step of expected size.
        compute_seconds, noise_seconds, communication_seconds: of a step.
        step_seconds: their sum.
        device_hours: of all ranks and all steps together.
    """

    memory: dict[str, int]
    fits: bool
    chunks: int
    compute_seconds: float
    noise_seconds: float
    communication_seconds: float
    step_seconds: float
    device_hours: float


def estimate(
    plan: Plan,
    held: Held,
    batch: Features,
    hardware: Hardware,
    *,
    ranks: int = 1,
    parallel: Literal["none", "ddp", "fsdp2"] = "none",
) -> Estimate:
    """Estimate a run.

    Args:
        plan: what would run. Of stages, a step is one of their mean batch size.
        held: by the model and its optimizer.
        batch: what one physical batch asks for, on one rank, all of its views included.
        hardware: of each rank.
        ranks: number of processes, a device each.
        parallel: how they share the work.

    Raises:
        ConfigError[hardware]: a number of ranks that does not fit `parallel`, or no bandwidth between them.
    """
    if ranks < 1 or (parallel == "none") != (ranks == 1):
        raise ConfigError(
            f"{ranks} ranks and parallel = {parallel}: one rank is 'none', several are 'ddp' or 'fsdp2'.",
            code="hardware",
        )
    if ranks > 1 and hardware.bandwidth is None:
        raise ConfigError(
            "Several ranks need the bandwidth between them, in bytes a second: give --bandwidth, or write "
            "it into the hardware file.",
            code="hardware",
        )
    memory = _memory(held, batch, hardware, ranks if parallel == "fsdp2" else 1)
    chunks = max(1, math.ceil(plan.mean_batch_size / ranks / batch.num_units))
    chunk = (
        batch.operations * hardware.seconds_per_operation
        + batch.bytes * hardware.seconds_per_byte
        + batch.calls * hardware.seconds_per_call
    )
    compute = plan.mean_batch_size / ranks / batch.num_units * chunk
    noise = held.num_trained / ranks * hardware.noise_seconds
    traffic = _traffic(held, parallel, chunks) * (ranks - 1) / ranks
    communication = traffic / hardware.bandwidth if hardware.bandwidth is not None else 0.0
    step = compute + noise + communication
    return Estimate(
        memory=memory,
        fits=memory["total"] <= hardware.memory,
        chunks=chunks,
        compute_seconds=compute,
        noise_seconds=noise,
        communication_seconds=communication,
        step_seconds=step,
        device_hours=step * plan.num_steps * ranks / 3600,
    )


def _memory(held: Held, batch: Features, hardware: Hardware, shards: int) -> dict[str, int]:
    sums = _SUM_BYTES * held.num_trained
    found = {
        "parameters": held.parameter_bytes // shards + (held.largest_part if shards > 1 else 0),
        "clipped_sums": sums // shards,
        "noise": 2 * sums // shards + min(_NOISE_BLOCK, 4 * sums),
        "optimizer_state": held.optimizer_bytes // shards,
        "ema": (sums if held.averaged else 0) // shards,
        "activations": int(batch.bytes * hardware.memory_factor),
    }
    lasting = sum(found[name] for name in ("parameters", "clipped_sums", "optimizer_state", "ema"))
    return {**found, "total": lasting + max(found["noise"], found["activations"])}


def _traffic(held: Held, parallel: str, chunks: int) -> float:
    """Bytes of a step that a rank sends, over the share (N - 1) / N that leaves it."""
    sums = _SUM_BYTES * held.num_trained
    if parallel == "ddp":
        return 2.0 * sums  # scattered, and the noised sum gathered
    if parallel == "fsdp2":
        return chunks * (2.0 * held.parameter_bytes + sums)  # gathered twice, and sums scattered, a chunk
    return 0.0
