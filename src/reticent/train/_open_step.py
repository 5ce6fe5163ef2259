"""One logical batch between the opening of a step and its release: chunk by chunk into one sum.

Room: train. May import torch, `reticent.{plan,clip}` and the floors below.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from torch import Tensor, nn

from reticent.clip import SumsOnDemand
from reticent.errors import StepError
from reticent.plan import LogicalBatch

from . import _rows
from ._rows import Rows
from ._sums import Sums

if TYPE_CHECKING:
    from ._step import PrivateStep

_ANY_ROW: Final = np.zeros(1, dtype=np.int64)

LossPerExample: TypeAlias = Callable[[nn.Module, Any], Tensor]


class OpenStep:
    """One logical batch between the opening of a step and its release; made by `PrivateStep.step`."""

    def __init__(self, owner: "PrivateStep", batch: LogicalBatch) -> None:
        self._owner, self._batch = owner, batch
        self._state = "fresh"  # -> "chunking" -> "exhausted" -> "closed"
        self._pending: Rows | None = None
        self._handed: _rows.Seal | None = None
        self._counts = True
        total = owner._holding.zeros(owner._watch.trainable)
        # On demand: none takes memory while a forward runs, and a first sum is written, not added to zeros.
        total = SumsOnDemand(owner._watch.trainable) if total is None else total
        self._sums = Sums.empty(total, num_norms=len(owner.clip_norms))

    def __repr__(self) -> str:  # neither the batch nor its size
        return f"OpenStep(step={self._batch.step}, {self._state})"

    def chunks(self) -> Iterator[Rows]:
        """Yield the batch's rows in physical chunks, each to be given to `backward` once.

        An empty batch yields nothing, and the step is a pure noise step. The chunks depend on
        private data: do not log them, their sizes or their number.

        Raises:
            StepError[chunks-twice]: called a second time on this step.
            StepError[chunk-unused]: the next chunk was asked for before `backward` had the last one.
        """
        if self._state != "fresh":
            raise StepError(
                f"chunks() was called on a step that is already {self._state}: each example may enter the "
                "sum once. Open a new step for a new batch.",
                code="chunks-twice",
            )
        self._state = "chunking"
        return self._chunks()

    def backward(self, loss_per_example: LossPerExample, chunk: Rows) -> None:
        """Add the clipped gradients of `chunk`'s examples to this step's sum.

        The joint calls the loss itself, so that before the first step it can compare single examples
        with whole batches; `.grad` is not touched.

        Args:
            loss_per_example: called as `loss_per_example(model, rows)`; returns one loss for each row, shape
                (B,), in which row b depends on example b only (no mean over the batch).
            chunk: the very object that `chunks` yielded last.

        Raises:
            StepError[foreign-chunk]: another object than the chunk yielded last, or one given twice; or its
                tensors are others now, or hold something else.
            StepError[step-closed]: the step's block has been left.
            StepError[chunk-failed]: an earlier call raised, and the block was not left.
        """
        if self._state == "closed":
            raise StepError("backward was called after the step's block was left.", code="step-closed")
        if self._state == "failed":
            self._require_used()
        same = self._pending is not None and chunk is self._pending
        if not same or self._handed is None or not self._handed.holds_for(chunk):
            raise StepError(
                "backward takes the chunk that step.chunks() yielded last, unchanged, once. Change rows with "
                "PrivateStep(transform=...) or inside the loss instead.",
                code="foreign-chunk",
            )
        # Until all of it is in the sums: a retry would count twice.
        self._pending, self._handed, self._state = None, None, "failed"
        self._owner._check_once(loss_per_example, self._batch)
        self._owner._add(loss_per_example, chunk, self._sums, counts=self._counts)
        self._state = "chunking"

    def _chunks(self) -> Iterator[Rows]:
        size, ranks = self._owner.physical_batch_size, self._owner.ranks
        share = ranks.share(self._batch.indices)
        for start in range(0, ranks.num_passes_over(self._batch.indices), size):
            self._require_used()
            # Numbers apart for chunks of other rows, from which their transform is seeded.
            number = start * ranks.size + ranks.data_rank
            mine = share[start : start + size]
            self._counts = len(mine) > 0  # else any row, in a pass that other ranks need
            self._pending = self._owner._rows(self._batch, mine if len(mine) else _ANY_ROW, number)
            self._handed = _rows.Seal.of(self._pending)
            yield self._pending
        self._require_used()
        self._state = "exhausted"

    def _require_used(self) -> None:
        if self._state == "failed":
            raise StepError(
                "step.backward failed on a chunk, a part of which may be in the sums already: neither going "
                "on nor trying the chunk again would be right. Let the error leave the step's block, which "
                "spends nothing, and open the step again.",
                code="chunk-failed",
            )
        if self._pending is not None:
            raise StepError(
                "A chunk was not given to step.backward: its examples would be missing from the sum. Call "
                "step.backward(loss_per_example, chunk) once for every chunk.",
                code="chunk-unused",
            )

    def _require_complete(self) -> None:
        self._require_used()
        if self._state != "exhausted":
            raise StepError(
                "The step's block was left before step.chunks() was read to its end. Loop over all of it, "
                "also when the batch is empty.",
                code="chunks-left",
            )

    def _close(self) -> Sums:
        """End this step and hand over its raw sums; nothing of them stays here."""
        sums, self._sums = self._sums, Sums.empty({}, num_norms=0)
        self._state, self._pending = "closed", None
        return sums
