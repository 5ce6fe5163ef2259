"""A step WITHOUT privacy: what a run is compared with. No clipping, no noise, no ledger.

Room: recipes. May import torch, `reticent.{plan,train}` and the floors below.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reticent.dist import ALONE
from reticent.plan import LogicalBatch
from reticent.train import Transform, augment, chunks_of, mix_seed


class PlainStep:
    """Ordinary optimizer steps in the shape of `PrivateStep`, for `reticent.train.fit`.

    The gradient is the sum over the batch divided by the expected batch size, as in a private run,
    and batches are drawn in the same way, so that nothing but clipping and noise differs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        physical_batch_size: int,
        num_steps: int = 0,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ranks = ALONE
        self.num_steps = num_steps
        self.head = None
        self.clip_norms: tuple[float, ...] = ()
        self.last_not_private: dict[str, Any] | None = None
        self.physical_batch_size = physical_batch_size
        self._transform, self._seed = transform, seed

    def restore_clip_norms(self, norms: Sequence[float]) -> None:
        """There are none: nothing is clipped."""

    @contextmanager
    def step(self, batch: LogicalBatch) -> Iterator["_PlainChunks"]:
        """One update from the batch's plain gradient."""
        self.optimizer.zero_grad()
        yield _PlainChunks(self.model, batch, self.physical_batch_size, self._transform, self._seed)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1


class _PlainChunks:
    def __init__(
        self,
        model: nn.Module,
        batch: LogicalBatch,
        physical_batch_size: int,
        transform: Transform | None,
        seed: int,
    ) -> None:
        self._model, self._batch, self._size = model, batch, physical_batch_size
        self._transform, self._seed = transform, seed

    def chunks(self) -> Iterator[Any]:
        device = next(self._model.parameters()).device
        chunks = chunks_of(self._batch.dataset, self._batch.indices, size=self._size, device=device)
        for number, rows in enumerate(chunks):
            if self._transform is None:
                yield rows
                continue
            seed = mix_seed(self._seed, "transform", self._batch.step, number * self._size)
            yield augment(rows, self._transform, torch.Generator().manual_seed(seed))

    def backward(self, loss_per_example: Any, chunk: Any) -> None:
        loss = loss_per_example(self._model, chunk).sum() / self._batch.expected_batch_size
        torch.autograd.backward(loss)
