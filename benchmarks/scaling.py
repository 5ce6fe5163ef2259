"""Time of a private step over one without privacy on the same ranks, by turns; and what a rank holds.

    torchrun --nproc-per-node 2 -m benchmarks.scaling --case gpt2-tiny --parallel fsdp2 --json out.json
    python -m benchmarks.scaling --case gpt2-tiny --parallel none

Weak scaling: every rank has the case's whole batch, however many ranks there are. The step without privacy
is DistributedDataParallel's, or FSDP2's, or a plain one; the private one is `PrivateStep`'s with `Replicas`,
`Shards`, or alone, with noise and ledger. Both take AdamW's step. Steps take turns in alternating order after
two that are not counted; the ratio is taken within a round, and medians are reported, of the slowest rank's
wall time. Where ranks share processor cores, both slow down alike. `noise_share` is the share of the private
step that drawing the noise takes on rank 0: noise costs the same for any batch, and is shared among ranks.

Bytes are those of tensors that stay on a rank between steps: parameters and the optimizer's state.
"""

import argparse
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
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks import small, text, vision
from benchmarks.work import Work
from reticent.clipping import FlatClipping
from reticent.dist import ALONE, Ranks, Replicas, Shards
from reticent.noise import CipherNoise
from reticent.plan import Plan
from reticent.sample import FullBatchSampler
from reticent.train import PrivateStep

CASES: Final[dict[str, Callable[[], Work]]] = {
    "mlp": lambda: small.mlp(num_examples=64),
    "gpt2-tiny": lambda: text.gpt2(
        num_layers=4, num_examples=16, length=64, width=256, num_heads=4, vocabulary=8000
    ),
    "wrn-16-4": lambda: vision.wide_resnet(depth=16, widen=4, num_examples=8),
}


class _TimedNoise:
    """A cipher's noise, and how long it took."""

    private = True

    def __init__(self) -> None:
        self._inner, self.seconds = CipherNoise.fresh(), 0.0

    def normal(self, shape: Any, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        start = time.perf_counter()
        drawn = self._inner.normal(shape, dtype=dtype, device=device)
        self.seconds += time.perf_counter() - start
        return drawn


def measure(case: str, parallel: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians over rounds, the same on every rank."""
    ranks: Ranks = {"none": lambda: ALONE, "ddp": Replicas, "fsdp2": Shards}[parallel]()
    plain, plain_adam = _plain(case, ranks)
    private, noise, batches = _private(case, ranks, rounds + 2, folder)

    def without() -> None:
        plain_adam.zero_grad()
        plain.losses(plain.batch).mean().backward()
        plain_adam.step()

    def with_privacy() -> None:
        with private[0].step(next(batches)) as step:
            for chunk in step.chunks():
                step.backward(lambda _, rows: private[1].losses(rows), chunk)

    times: dict[str, list[float]] = {"without": [], "private": []}
    for turn in range(rounds + 2):
        noise.seconds = noise.seconds if turn > 2 else 0.0
        order = (("without", without), ("private", with_privacy))
        for name, step in order if turn % 2 else reversed(order):
            times[name].append(_slowest(step, ranks))
    kept = {name: seconds[2:] for name, seconds in times.items()}
    ratios = [p / w for p, w in zip(kept["private"], kept["without"], strict=True)]
    return {
        "case": case,
        "parallel": parallel,
        "ranks": ranks.size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": {name: statistics.median(seconds) for name, seconds in kept.items()},
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "noise_share": noise.seconds / sum(kept["private"]),
        "held_mib": {
            "without": _held(plain.model, plain_adam) / 2**20,
            "private": _held(private[1].model, private[0].optimizer) / 2**20,
        },
        "load": os.getloadavg()[0],
    }


def _work(case: str) -> Work:
    torch.manual_seed(0)
    return CASES[case]()


def _plain(case: str, ranks: Ranks) -> tuple[Work, torch.optim.Optimizer]:
    work = _work(case)
    model = work.model
    if isinstance(ranks, Shards):
        ranks.shard(model)
    elif ranks.size > 1:
        wrapped = DistributedDataParallel(model)
        inner, losses = model, work.losses

        def through_wrapper(batch: Any) -> Tensor:
            """The work's losses call the model itself; DDP must see that call."""
            forward = inner.forward
            inner.forward = lambda *a, **k: _unwrapped(inner, forward, wrapped, a, k)
            try:
                return losses(batch)
            finally:
                del inner.forward

        work = Work(model, through_wrapper, work.batch)
    return work, torch.optim.AdamW(model.parameters(), lr=1e-4)


def _unwrapped(inner: nn.Module, forward: Any, wrapped: nn.Module, args: Any, kwargs: Any) -> Any:
    inner.forward = forward
    return wrapped(*args, **kwargs)


def _private(case: str, ranks: Ranks, num_steps: int, folder: Path) -> tuple[Any, _TimedNoise, Any]:
    work = _work(case)
    if isinstance(ranks, Shards):
        ranks.shard(work.model)
    batch = work.batch if isinstance(work.batch, tuple) else (work.batch,)
    everything = tuple(t.repeat(ranks.size, *[1] * (t.dim() - 1)) for t in batch)
    one = isinstance(work.batch, Tensor)
    losses = work.losses
    work = Work(work.model, lambda rows: losses(rows[0] if one else tuple(rows)), work.batch)
    size = len(everything[0])
    plan = Plan(
        sampler=FullBatchSampler(num_examples=size),
        num_steps=num_steps,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-5,
        budget=None,
    )
    noise, adam = _TimedNoise(), torch.optim.AdamW(work.model.parameters(), lr=1e-4)
    private = PrivateStep(
        work.model, adam, plan=plan, ledger=folder, noise=noise, physical_batch_size=size, ranks=ranks
    )
    return (private, work), noise, iter(plan.batches(everything))


def _slowest(step: Callable[[], None], ranks: Ranks) -> float:
    if ranks.size > 1:
        dist.barrier()
    start = time.perf_counter()
    step()
    took = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
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
    parser.add_argument("--parallel", choices=("none", "ddp", "fsdp2"), default="none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("gloo")
    elif given.parallel != "none":
        parser.error("--parallel ddp and fsdp2 need torchrun")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.case, given.parallel, given.rounds, Path(folder) / "run")
    if not several or dist.get_rank() == 0:
        print(json.dumps(found))
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=2) + "\n")
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
