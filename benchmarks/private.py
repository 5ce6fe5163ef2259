"""A case's work as whole private steps: clipped sums, noise, a ledger's entry and the optimizer's step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.work import Work
from reticent.clipping import FlatClipping
from reticent.dist import ALONE, Ranks
from reticent.noise import CipherNoise
from reticent.plan import Plan
from reticent.sample import FullBatchSampler
from reticent.train import PrivateStep


class TimedNoise:
    """A cipher's noise, and how long it took."""

    private = True

    def __init__(self) -> None:
        self._inner, self.seconds = CipherNoise.fresh(), 0.0

    def normal(self, shape: Any, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        start = time.perf_counter()
        drawn = self._inner.normal(shape, dtype=dtype, device=device)
        self.seconds += time.perf_counter() - start
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Private:
    """Steps that can be taken one by one, and how long their noise took."""

    joint: PrivateStep
    noise: TimedNoise
    losses: Any
    batches: Iterator[Any]

    def step(self) -> None:
        """The next one."""
        with self.joint.step(next(self.batches)) as step:
            for chunk in step.chunks():
                step.backward(lambda _, rows: self.losses(rows), chunk)


def private_step(
    work: Work,
    optimizer: torch.optim.Optimizer,
    *,
    num_steps: int,
    folder: Path,
    copies: int = 1,
    ranks: Ranks = ALONE,
    compile: bool = False,
) -> Private:
    """Full-batch steps of flat clipping on the work's batch, taken several times over.

    Args:
        work: its batch is a physical one.
        optimizer: over the model's trainable parameters.
        num_steps: at most so many.
        folder: of the ledger.
        copies: physical batches in a step, over all ranks.
        ranks: the processes.
        compile: whether sums are formed in a compiled graph.
    """
    one = isinstance(work.batch, Tensor)
    batch = (work.batch,) if one else work.batch
    everything = tuple(t.repeat(copies, *[1] * (t.dim() - 1)) for t in batch)
    noise = TimedNoise()
    plan = Plan(
        sampler=FullBatchSampler(num_examples=len(everything[0])),
        num_steps=num_steps,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-5,
        budget=None,
    )
    joint = PrivateStep(
        work.model,
        optimizer,
        plan=plan,
        ledger=folder,
        noise=noise,
        physical_batch_size=len(batch[0]),
        ranks=ranks,
        compile=compile,
    )
    return Private(
        joint=joint,
        noise=noise,
        losses=lambda rows: work.losses(rows[0] if one else tuple(rows)),
        batches=iter(plan.batches(everything)),
    )
