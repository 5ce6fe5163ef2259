"""Time of a private step over one without privacy on the same ranks, by turns; and what a rank holds.

    torchrun --nproc-per-node 2 -m benchmarks.scaling --case gpt2-tiny --parallel fsdp2 --json out.json
    torchrun --nproc-per-node 2 -m benchmarks.scaling --case gpt2-4 --parallel tp --chunks 4
    python -m benchmarks.scaling --case gpt2-tiny --parallel none

Weak scaling: every rank has the case's whole batch, however many ranks there are; under tensor parallel all
ranks have the same one, and share the work of it. The step without privacy is DistributedDataParallel's, or
FSDP2's, or that of torch's `parallelize_module`, or a plain one; the private one is `PrivateStep`'s with
`Replicas`, `Shards`, `TensorParallel`, or alone, with noise and ledger. Both take AdamW's step. Steps take
turns in alternating order after some that are not counted; the ratio is taken within a round, and medians are
reported, of the slowest rank's wall time. Where ranks share processor cores, both slow down alike.
`noise_share` is the share of the private step that drawing the noise takes on rank 0: noise costs the same
for any batch, and is shared among ranks.

With `--chunks K` a logical batch is K of the case's batches on each rank, one pass after another; noise, the
ledger's entry and the optimizer's step come once. The step without privacy accumulates K gradients: under DDP
ranks exchange them after the last (`no_sync` before), under FSDP2 after each, as `PrivateStep` does.

Under tensor parallel both models are cut alike: linear layers and embeddings along their outputs, which are
gathered, but between an MLP's two layers hidden units stay in slices; and the tied head along its inputs.
torch's own styles know no `Conv1D`, which is a linear layer in the model without privacy.

`--device cuda` puts each rank on a GPU of its own, with NCCL between them.

Bytes are those of tensors that stay on a rank between steps: parameters and the optimizer's state.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from benchmarks import small, text, vision
from benchmarks.private import Private, private_step
from benchmarks.work import Work
from reticent.dist import ALONE, Ranks, Replicas, Shards, TensorParallel

CASES: Final[dict[str, Callable[[], Work]]] = {
    "mlp": lambda: small.mlp(num_examples=64),
    "gpt2-tiny": lambda: text.gpt2(
        num_layers=4, num_examples=16, length=64, width=256, num_heads=4, vocabulary=8000
    ),
    "gpt2-4": lambda: text.gpt2(num_layers=4, num_examples=8, length=64),
    "wrn-16-4": lambda: vision.wide_resnet(depth=16, widen=4, num_examples=8),
}


_WAYS: Final[dict[str, Callable[[], Ranks]]] = {
    "none": lambda: ALONE,
    "ddp": Replicas,
    "fsdp2": Shards,
    "tp": TensorParallel,
}


def measure(
    case: str,
    parallel: str,
    rounds: int,
    folder: Path,
    *,
    chunks: int = 1,
    warm: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Medians over rounds, the same on every rank; a step is of `chunks` batches on each rank."""
    ranks = _WAYS[parallel]()
    plain, plain_adam, unsynced = _plain(case, ranks, device)
    private = _private(case, ranks, rounds + warm, folder, chunks, device)
    noise = private.noise

    def without() -> None:
        plain_adam.zero_grad()
        for chunk in range(chunks):
            with unsynced() if chunk < chunks - 1 else contextlib.nullcontext():
                (plain.losses(plain.batch).mean() / chunks).backward()
        plain_adam.step()

    times: dict[str, list[float]] = {"without": [], "private": []}
    for turn in range(rounds + warm):
        noise.seconds = noise.seconds if turn > warm else 0.0
        order = (("without", without), ("private", private.step))
        for name, step in order if turn % 2 else reversed(order):
            times[name].append(_slowest(step, ranks, device))
    kept = {name: seconds[warm:] for name, seconds in times.items()}
    ratios = [p / w for p, w in zip(kept["private"], kept["without"], strict=True)]
    return {
        "case": case,
        "parallel": parallel,
        "ranks": ranks.size,
        "chunks": chunks,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": {name: statistics.median(seconds) for name, seconds in kept.items()},
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "noise_share": noise.seconds / sum(kept["private"]),
        "held_mib": {
            "without": _held(plain.model, plain_adam) / 2**20,
            "private": _held(private.joint.model, private.joint.optimizer) / 2**20,
        },
        "load": os.getloadavg()[0],
    }


def _work(case: str, device: str = "cpu") -> Work:
    torch.manual_seed(0)
    work = CASES[case]()
    work.model.to(device)
    batch = work.batch
    moved = batch.to(device) if isinstance(batch, Tensor) else tuple(t.to(device) for t in batch)
    return Work(work.model, work.losses, moved)


def _plain(
    case: str, ranks: Ranks, device: str = "cpu"
) -> tuple[Work, torch.optim.Optimizer, Callable[[], Any]]:
    """The work without privacy, its optimizer, and a context in which gradients stay on their rank."""
    work, unsynced = _work(case, device), contextlib.nullcontext
    model = work.model
    if isinstance(ranks, Shards):
        ranks.shard(model)
    elif isinstance(ranks, TensorParallel):
        _cut_by_torch(model, ranks.size, device)
    elif ranks.size > 1:
        wrapped = DistributedDataParallel(model)
        inner, losses, unsynced = model, work.losses, wrapped.no_sync

        def through_wrapper(batch: Any) -> Tensor:
            """The work's losses call the model itself; DDP must see that call."""
            forward = inner.forward
            inner.forward = lambda *a, **k: _unwrapped(inner, forward, wrapped, a, k)
            try:
                return losses(batch)
            finally:
                del inner.forward

        work = Work(model, through_wrapper, work.batch)
    return work, _adam(model, ranks), unsynced


def _adam(model: nn.Module, ranks: Ranks) -> torch.optim.Optimizer:
    """Under tensor parallel some parameters are DTensors and others are not, which `foreach` refuses."""
    foreach = False if isinstance(ranks, TensorParallel) else None
    return torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=foreach)


def _cut_by_torch(model: Any, size: int, device: str = "cpu") -> None:
    """A GPT-2 by `parallelize_module`, in the slices that `TensorParallel` makes."""
    whole = ColwiseParallel(output_layouts=Replicate())
    for name, layer in [*model.named_modules()]:
        if type(layer).__name__ == "Conv1D":
            parent, _, last = name.rpartition(".")
            linear = nn.Linear(*layer.weight.shape, device=device)
            with torch.no_grad():
                linear.weight.copy_(layer.weight.T)
                linear.bias.copy_(layer.bias)
            setattr(model.get_submodule(parent), last, linear)
    ways: dict[str, Any] = {
        "transformer.wte": whole,
        "transformer.wpe": whole,
        "transformer.h.*.attn.c_attn": whole,
        "transformer.h.*.attn.c_proj": whole,
        "transformer.h.*.mlp.c_fc": ColwiseParallel(),
        "transformer.h.*.mlp.c_proj": RowwiseParallel(),
        "lm_head": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, init_device_mesh(device, (size,)), ways)
    model.lm_head.weight = model.transformer.wte.weight  # it was one tensor before, and is again


def _unwrapped(inner: nn.Module, forward: Any, wrapped: nn.Module, args: Any, kwargs: Any) -> Any:
    inner.forward = forward
    return wrapped(*args, **kwargs)


def _private(
    case: str, ranks: Ranks, num_steps: int, folder: Path, chunks: int, device: str = "cpu"
) -> Private:
    work = _work(case, device)
    if isinstance(ranks, Shards | TensorParallel):
        ranks.shard(work.model)
    copies = chunks if isinstance(ranks, TensorParallel) else chunks * ranks.size
    return private_step(
        work, _adam(work.model, ranks), num_steps=num_steps, folder=folder, copies=copies, ranks=ranks
    )


def _slowest(step: Callable[[], None], ranks: Ranks, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if ranks.size > 1:
        dist.barrier()
    wait()
    start = time.perf_counter()
    step()
    wait()
    took = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=device)
    if ranks.size > 1:
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took)


def _held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in (*model.parameters(), *state)]
    return sum(t.nbytes for t in local)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, default="gpt2-tiny")
    parser.add_argument("--parallel", choices=_WAYS, default="none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--chunks", type=int, default=1, help="of the case's batch, on each rank and step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm", type=int, default=2, help="rounds before, that are not counted")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if given.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if several:
        dist.init_process_group("nccl" if given.device == "cuda" else "gloo")
    elif given.parallel != "none":
        parser.error("--parallel ddp, fsdp2 and tp need torchrun")
    if given.parallel == "tp" and not given.case.startswith("gpt2"):
        parser.error("--parallel tp: how torch cuts a model is spelled out for the gpt2 cases only")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            given.case,
            given.parallel,
            given.rounds,
            Path(folder) / "run",
            chunks=given.chunks,
            warm=given.warm,
            device=given.device,
        )
    if not several or dist.get_rank() == 0:
        print(json.dumps(found))
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=2) + "\n")
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
