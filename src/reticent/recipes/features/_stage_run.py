"""Runs the stages of a last-layer method: sum, ledger, noise, in that order, and keeps a run folder.

Room: recipes. May import torch, `reticent.{train,plan,noise,sample,account}` and the floors below.

Guarantee of the whole: what a run folder holds of the training rows was computed from noised sums whose
releases the ledger had counted, durably, before. Features and labels go nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from reticent.account.ledger import Ledger
from reticent.dist import ALONE
from reticent.errors import CheckpointError, StepError
from reticent.noise import NoiseSource, add_noise
from reticent.plan import LogicalBatch
from reticent.sample import FullBatchSampler, SampleStream
from reticent.train import (
    Checkpoint,
    Evaluation,
    FitResult,
    TrainSettings,
    Watcher,
    ema_start,
    fit,
    load_checkpoint,
)

from ._methods import Method
from ._rows import block_rows, raw_blocks
from ._stage_plan import PlannedStage
from ._stages import Released, Stage
from ._store import Split
from ._sums import part_noise_std, rows_of_a_block, sum_of, unscaled


class StageStep:
    """One release of a stage after the other, in the shape of `PrivateStep`, for `reticent.train.fit`.

    Guarantee:
        The ledger holds a release before its noise is drawn. Without a ledger no noise is added, and the
        run says that it is not private.
    """

    clip_norms: tuple[float, ...] = ()
    last_not_private: dict[str, Any] | None = None
    ranks = ALONE

    def __init__(
        self,
        method: Method,
        *,
        stage: Stage,
        planned: PlannedStage,
        ledger: Ledger | None,
        noise: NoiseSource,
        num_steps: int,
    ) -> None:
        self.model: nn.Module = method.head
        self.optimizer = method.optimizer
        self.physical_batch_size = block_rows(method.head.dim)
        self._head, self._stage, self._planned = method.head, stage, planned
        self._ledger, self._noise = ledger, noise
        self._num_steps = num_steps

    @property
    def num_steps(self) -> int:
        """Releases spent so far, lost ones included."""
        return self._num_steps if self._ledger is None else self._ledger.num_steps

    @property
    def head(self) -> str | None:
        """The ledger's head."""
        return None if self._ledger is None else self._ledger.head

    def restore_clip_norms(self, norms: Sequence[float]) -> None:
        """There are none: nothing adapts."""

    @contextmanager
    def step(self, batch: LogicalBatch) -> Iterator["_NoChunks"]:
        """One release from the batch's rows."""
        yield _NoChunks()
        self._release(batch)

    def _release(self, batch: LogicalBatch) -> None:
        statistics = self._stage.statistics(self._head)
        preparation = self._stage.preparation(self._head)
        split = batch.dataset
        assert isinstance(split, Split)
        whole = isinstance(batch.sampler, FullBatchSampler)
        size = rows_of_a_block(statistics, self.physical_batch_size)
        raw = raw_blocks(split, block_rows=size, indices=None if whole else batch.indices)
        bounded = sum_of((preparation.apply(x, y) for x, y in raw), statistics)
        noise = self._planned.noise_multiplier
        if self._ledger is not None:
            self._ledger.append_step(self._planned.mechanism)
        noised = add_noise(bounded, noise_multiplier=noise, source=self._noise)
        self._stage.apply(
            self._head,
            Released(
                values=unscaled(noised, statistics),
                noise_std=part_noise_std(statistics, noise),
                num_examples=batch.expected_batch_size,
            ),
        )
        self._num_steps += 1


class _NoChunks:
    """A release reads its rows itself, in blocks."""

    def chunks(self) -> Iterator[Any]:
        return iter(())

    def backward(self, loss_per_example: Any, chunk: Any) -> NoReturn:
        raise StepError("A release takes no gradients from outside.", code="step-closed")


def run_stages(
    method: Method,
    train_split: Split,
    *,
    ledger: Ledger | None,
    noise: NoiseSource,
    stream: SampleStream,
    folder: Path,
    settings: TrainSettings,
    watcher: Watcher,
    evaluation: Evaluation | None,
    checkpoint: Checkpoint | None,
) -> FitResult:
    """Run what is left of a method's stages.

    Args:
        method: what to run.
        train_split: private rows.
        ledger: of the run; None without privacy.
        noise: where noise comes from.
        stream: where samples come from.
        folder: the run's.
        settings: how the loop goes; its average and learning-rate decay are the last stage's.
        watcher: is told of every release.
        evaluation: on public rows; after the last stage, and during it if the settings say so. None for none.
        checkpoint: where to go on from.

    Raises:
        CheckpointError[release-lost]: a release that the method cannot do without was spent and lost.
    """
    spent = (checkpoint.step if checkpoint else 0) if ledger is None else ledger.num_steps
    refuse_lost_release(method, checkpoint_step=checkpoint.step if checkpoint else 0, num_steps=spent)
    done, first = None, 0
    pairs = list(zip(method.stages, method.plan.stages, strict=True))
    for stage, planned in pairs:
        start, first = max(spent - first, 0), first + planned.num_steps
        last = stage is method.stages[-1]
        if start >= planned.num_steps and not last:
            continue
        here = settings if last else replace(settings, ema=0.0, lr_decay_steps=0, eval_every=0)
        stepper = StageStep(
            method,
            stage=stage,
            planned=planned,
            ledger=ledger,
            noise=noise,
            num_steps=first - planned.num_steps + start,
        )
        done = fit(
            stepper,
            _batches(planned, train_split, start=start, stream=stream),
            loss_per_example=_none,
            folder=folder,
            settings=here,
            watcher=watcher,
            evaluation=evaluation if last else None,
            checkpoint=_with_average(checkpoint, method, averaged=bool(here.ema)),
        )
        checkpoint = load_checkpoint(folder, say=watcher.say)
    assert done is not None, "a method has stages"
    return done


def refuse_lost_release(method: Method, *, checkpoint_step: int, num_steps: int) -> None:
    """Refuse to go on where a crash lost the only release of a stage.

    Raises:
        CheckpointError[release-lost]: as said.
    """
    first = 0
    for planned in method.plan.stages:
        lost = min(num_steps, first + planned.num_steps) - max(checkpoint_step, first)
        if lost > 0 and not planned.repeatable:
            raise CheckpointError(
                f"The run was stopped between spending the release '{planned.name}' and keeping its result. "
                "The method cannot go on without it, and releasing it again would cost more than the plan's "
                "epsilon. What the ledger holds stays spent; start a new run with what is left of the "
                "budget.",
                code="release-lost",
            )
        first += planned.num_steps


def _batches(
    planned: PlannedStage, split: Split, *, start: int, stream: SampleStream
) -> Iterator[LogicalBatch]:
    sampler = planned.sampler
    for step in range(start, planned.num_steps):
        yield LogicalBatch(
            step=step,
            indices=sampler.draw(len(split), stream, step=step),
            dataset=split,
            expected_batch_size=sampler.expected_batch_size,
            sampler=sampler,
            private=stream.private,
        )


def _with_average(checkpoint: Checkpoint | None, method: Method, *, averaged: bool) -> Checkpoint | None:
    """A checkpoint of an earlier stage has no average: the last stage's begins at its weights."""
    if checkpoint is None or not averaged or checkpoint.averages:
        return checkpoint
    weight: Tensor = checkpoint.model["weight"]
    return replace(checkpoint, averages={"ema": ema_start({"weight": weight})})


def _none(model: nn.Module, rows: Any) -> NoReturn:
    raise AssertionError("a release asks for no losses")
