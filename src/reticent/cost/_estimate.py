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
        num_averages: averages of the weights that are kept.
        largest_part: bytes of the largest part that is put together at once where parameters are sharded.
    """

    num_parameters: int
    num_trained: int
    parameter_bytes: int
    optimizer_bytes: int
    num_averages: int
    largest_part: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliced:
    """What one rank has under tensor parallel; the rank that leads, which noises what is whole.

    Args:
        num_trained: trained numbers in its slices, and those that every rank has whole.
        num_whole: of these, the whole ones.
        parameter_bytes: bytes of its slices, and of whole parameters and buffers.
        sent: bytes that it sends in the forward and backward of one physical batch.
    """

    num_trained: int
    num_whole: int
    parameter_bytes: int
    sent: float


Parallel = Literal["none", "ddp", "fsdp2", "tp"]


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
    parallel: Parallel = "none",
    num_replicas: int = 1,
    sliced: Sliced | None = None,
) -> Estimate:
    """Estimate a run.

    Args:
        plan: what would run. Of stages, a step is one of their mean batch size.
        held: by the whole model and its optimizer.
        batch: what one physical batch asks for, on one rank, all of its views included; of a model in
            slices, as they are.
        hardware: of each rank.
        ranks: number of processes, a device each.
        parallel: how they share the work.
        num_replicas: copies of a sharded model, each on ranks / num_replicas of them.
        sliced: what a rank has under tensor parallel; needed there.

    Raises:
        ConfigError[hardware]: a number of ranks that does not fit `parallel`, or no bandwidth between them;
            copies of a model that is not sharded.
        ConfigError[num-replicas]: not a positive divisor of the number of ranks.
    """
    check_ranks(ranks, parallel, num_replicas)
    if (sliced is None) == (parallel == "tp"):
        raise ConfigError("Slices go with parallel = tp, which needs them.", code="hardware")
    if ranks > 1 and hardware.bandwidth is None:
        raise ConfigError(
            "Several ranks need the bandwidth between them, in bytes a second: give --bandwidth, or write "
            "it into the hardware file.",
            code="hardware",
        )
    memory = _memory(held, batch, hardware, ranks // num_replicas if parallel == "fsdp2" else 1, sliced)
    passes = plan.mean_batch_size / (1 if parallel == "tp" else ranks) / batch.num_units
    chunks = max(1, math.ceil(passes))
    chunk = (
        batch.operations * hardware.seconds_per_operation
        + batch.bytes * hardware.seconds_per_byte
        + batch.calls * hardware.seconds_per_call
    )
    compute = passes * chunk
    noised = held.num_trained / ranks if sliced is None else sliced.num_trained
    noise = noised * hardware.noise_seconds
    if sliced is None:
        traffic = _traffic(held, parallel, chunks, ranks, num_replicas)
    else:
        traffic = passes * sliced.sent + _SUM_BYTES * sliced.num_whole  # noised by one, and sent to all
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


def check_ranks(ranks: int, parallel: Parallel, num_replicas: int) -> None:
    """Refuse numbers of ranks and copies that no run has; see `estimate`."""
    if ranks < 1 or (parallel == "none") != (ranks == 1):
        raise ConfigError(
            f"{ranks} ranks and parallel = {parallel}: one rank is 'none', several are 'ddp', 'fsdp2' or "
            "'tp'.",
            code="hardware",
        )
    if num_replicas != 1 and parallel != "fsdp2":
        raise ConfigError(
            f"num_replicas = {num_replicas} is the number of copies of a sharded model: it goes with "
            f"parallel = fsdp2, and this is {parallel}.",
            code="hardware",
        )
    if num_replicas < 1 or ranks % num_replicas:
        raise ConfigError(
            f"num_replicas={num_replicas} copies of the model cannot share {ranks} ranks alike. Choose a "
            "divisor of their number.",
            code="num-replicas",
        )


def _memory(
    held: Held, batch: Features, hardware: Hardware, shards: int, sliced: Sliced | None
) -> dict[str, int]:
    sums, parameters, states = _SUM_BYTES * held.num_trained, held.parameter_bytes, held.optimizer_bytes
    if sliced is not None:
        sums, parameters = _SUM_BYTES * sliced.num_trained, sliced.parameter_bytes
        states = states * sliced.num_trained // max(1, held.num_trained)
    found = {
        "parameters": parameters // shards + (held.largest_part if shards > 1 else 0),
        "clipped_sums": sums // shards,
        "noise": 2 * sums // shards + min(_NOISE_BLOCK, 4 * sums),
        "optimizer_state": states // shards,
        "averages": held.num_averages * sums // shards,
        "activations": int(batch.bytes * hardware.memory_factor),
    }
    lasting = sum(found[name] for name in ("parameters", "clipped_sums", "optimizer_state", "averages"))
    return {**found, "total": lasting + max(found["noise"], found["activations"])}


def _traffic(held: Held, parallel: Parallel, chunks: int, ranks: int, num_replicas: int) -> float:
    """Bytes that a rank sends in a step: of what N ranks gather or scatter, (N - 1) / N leaves it."""
    sums, shards = _SUM_BYTES * held.num_trained, ranks // num_replicas
    if parallel == "ddp":
        return 2.0 * sums * (ranks - 1) / ranks  # scattered, and the noised sum gathered
    if parallel == "fsdp2":
        within = chunks * (2.0 * held.parameter_bytes + sums)  # gathered twice, and sums scattered, a chunk
        across = 2.0 * sums / shards  # a shard's sum, scattered over the copies, and gathered with its noise
        return within * (shards - 1) / shards + across * (num_replicas - 1) / num_replicas
    return 0.0
