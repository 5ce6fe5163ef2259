"""The loop around steps: averages, evaluation, checkpoints, metrics. Knows no privacy of its own.

Room: train. May import torch, `reticent.{plan,sample,optim}` and the floors below.

Whether a run is private is its stepper's business: the loop hands over batches and never sees a
gradient. So a run without privacy, for comparison, goes through the very same lines.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.dist import Ranks, Shards, TensorParallel
from reticent.errors import CheckpointError, ConfigError
from reticent.optim import Lamb
from reticent.plan import LogicalBatch

from ._checkpoint import Checkpoint, filled, save_checkpoint, save_in_parts, save_tensors
from ._ema import Average, ema_start, ema_update
from ._evaluate import Evaluation, Measured, check_scores, evaluate
from ._files import append_line, finite
from ._guards import trainable
from ._open_step import LossPerExample
from ._progress import Watcher
from ._seeds import mix_seed

Tracking = Literal["none", "tensorboard", "mlflow"]


class Companion(Protocol):
    """Goes along with a loop: a schedule of learning rates, another library's callbacks.

    It is handed no row and no gradient, so it costs no privacy. Where several ranks train together, each
    calls its own, and all of them must answer alike.
    """

    def before(self, stepper: "Stepper") -> bool:
        """Before a step; may set the optimizer's learning rates. False ends the loop here."""
        ...

    def after(self, stepper: "Stepper", loss: float | None) -> bool:
        """After a step, with the loss if it is shown. True asks for a checkpoint now."""
        ...

    def saved(self, stepper: "Stepper") -> None:
        """A checkpoint was written."""
        ...


class StepInProgress(Protocol):
    """What a stepper's block works with."""

    def chunks(self) -> Iterator[Any]:
        """Physical chunks of the batch."""
        ...

    def backward(self, loss_per_example: LossPerExample, chunk: Any) -> None:
        """Take one chunk's gradients."""
        ...


class Stepper(Protocol):
    """What takes steps: `PrivateStep`, or a stand-in without privacy."""

    @property
    def physical_batch_size(self) -> int:
        """Rows that go through the model at once, from the next step on; it may be set."""
        ...

    @physical_batch_size.setter
    def physical_batch_size(self, size: int) -> None: ...

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """What updates it."""
        ...

    @property
    def ranks(self) -> Ranks:
        """The processes that take steps together; their leader writes and measures."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps taken so far, lost ones included."""
        ...

    @property
    def head(self) -> str | None:
        """The ledger's head, or None where there is no ledger."""
        ...

    @property
    def clip_norms(self) -> tuple[float, ...]:
        """Clipping norms of the next step, if they adapt, else ()."""
        ...

    @property
    def last_not_private(self) -> dict[str, Any] | None:
        """Figures of the last step that are not private, if it was asked for them."""
        ...

    def restore_clip_norms(self, norms: Sequence[float]) -> None:
        """Go on with the norms of a checkpoint."""
        ...

    def step(self, batch: LogicalBatch) -> AbstractContextManager[StepInProgress]:
        """Open a step on one logical batch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a loop goes; nothing here changes what is private.

    Args:
        eval_every: steps between evaluations; 0 for one at the end only.
        checkpoint_every: steps between checkpoints; 0 for one at the start and one at the end.
        ema: the average's final decay mu in [0, 1), or "polyak" for the plain mean of the weights after every
            update; 0 for no average. Whichever it is, files and metrics call it `ema`, and it is what the
            run reports.
        polyak: keep the plain mean as well, and evaluate it beside the others as `polyak`.
        ema_start: updates before the averages begin; until then they are the last weights.
        lr_decay_steps: steps over which every learning rate falls from its own value to zero; 0 keeps it
            constant.
        lr_decay: how it falls: step t of T runs at 1 - t / T of it ("linear"), or at
            (1 + cos(pi t / T)) / 2 of it ("cosine").
        lr_warmup_steps: steps over which it rises first: step t of W runs at (t + 1) / W of what it would be.
        seed: public seed of dropout and other random layers.
        compile: clip in a compiled graph of one physical batch; see `PrivateStep`.
        low_memory: clip by two backwards, between which nothing is kept; see `PrivateStep`.
        show_loss: show the training loss. It is computed from private rows and is NOT private.
        show_norms: write down how long the units' gradients were: share clipped, quantiles, and the
            clipped sum against its noise, in all and by parameter. NOT private either.
        log: a tracker to tell of the run as well, "tensorboard" or "mlflow": of its settings, epsilon and
            scores on test data.

    Raises:
        ConfigError[train-settings]: a value is out of range.
    """

    eval_every: int = 0
    checkpoint_every: int = 100
    ema: Average = 0.0
    polyak: bool = False
    ema_start: int = 0
    lr_decay_steps: int = 0
    lr_decay: Literal["linear", "cosine"] = "linear"
    lr_warmup_steps: int = 0
    seed: int = 0
    compile: bool = False
    low_memory: bool = False
    show_loss: bool = False
    show_norms: bool = False
    log: Tracking = "none"

    @property
    def not_private(self) -> tuple[str, ...]:
        """What is shown of the training rows without noise."""
        shown = (("loss", self.show_loss), ("norms", self.show_norms))
        return tuple(name for name, is_shown in shown if is_shown)

    @property
    def averages(self) -> dict[str, Average]:
        """Name of each average of the weights that is kept -> its final decay."""
        kept: dict[str, Average] = {"ema": self.ema} if self.ema else {}
        return {**kept, "polyak": "polyak"} if self.polyak else kept

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be an integer >= 0, got {value!r}"
            for name, value in (
                ("eval_every", self.eval_every),
                ("checkpoint_every", self.checkpoint_every),
                ("lr_decay_steps", self.lr_decay_steps),
                ("lr_warmup_steps", self.lr_warmup_steps),
                ("ema_start", self.ema_start),
            )
            if not isinstance(value, int) or isinstance(value, bool) or value < 0
        ]
        if self.lr_decay not in ("linear", "cosine"):
            problems.append(f"lr_decay must be 'linear' or 'cosine', got {self.lr_decay!r}")
        if self.ema != "polyak" and not (isinstance(self.ema, int | float) and 0.0 <= self.ema < 1.0):
            problems.append(f"ema must be in [0, 1) or 'polyak', got {self.ema!r}")
        if self.polyak and self.ema == "polyak":
            problems.append("polyak would keep the average twice: ema is 'polyak'")
        if self.low_memory and self.compile:
            problems.append("low_memory would be ignored: compile makes an engine that takes one backward")
        if self.ema_start and not self.averages:
            problems.append("ema_start would be ignored: ema is 0")
        if self.log not in get_args(Tracking):
            problems.append(f"log must be one of {', '.join(get_args(Tracking))}, got {self.log!r}")
        if problems:
            raise ConfigError("; ".join(problems) + ".", code="train-settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a loop ended with.

    Args:
        updates: updates that the weights hold.
        seconds: time spent in steps, without evaluation and checkpoints.
        scores: "last" and, if on, "ema" and "polyak" -> name -> mean score on the public test data.
        kept: alike, name -> what `Evaluation.kept` asks for of every public test row; of the weights that are
            reported only, on the leader.
    """

    updates: int
    seconds: float
    scores: Mapping[str, Mapping[str, float]]
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(eq=False, slots=True, kw_only=True)
class _State:
    """What the loop itself carries from step to step."""

    updates: int = 0
    seconds: float = 0.0
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    measured: tuple[int, dict[str, Measured]] = (-1, {})  # at which step, and what


def fit(
    stepper: Stepper,
    batches: Iterable[LogicalBatch],
    *,
    loss_per_example: LossPerExample,
    folder: Path,
    settings: TrainSettings,
    watcher: Watcher,
    evaluation: Evaluation | None = None,
    checkpoint: Checkpoint | None = None,
    companion: Companion | None = None,
) -> FitResult:
    """Take a step on every batch, and keep a run folder's metrics, checkpoints and weights.

    Args:
        stepper: takes the steps.
        batches: the logical batches that are left.
        loss_per_example: called as `loss_per_example(model, rows)`, returns (B,) losses.
        folder: where files go; it exists.
        settings: how the loop goes.
        watcher: is told of every step.
        evaluation: what to measure on which public data.
        checkpoint: where to go on from; its weights replace the model's.
        companion: is called around every step, and may end the loop early.

    Guarantee:
        Writes no number computed from training rows, except what `settings.not_private` names, in
        `not-private.jsonl`. torch's global generator is seeded from `settings.seed` for each step and
        afterwards is as it was before.

    Raises:
        CheckpointError[checkpoint-mismatch]: the checkpoint does not fit the model or the optimizer.
        ConfigError[scores]: `evaluation.scores` does not give one value for each row.
    """
    state = _State(averages={name: ema_start(trainable(stepper.model)) for name in settings.averages})
    if evaluation is not None and stepper.ranks.size == 1:
        with torch.random.fork_rng():
            check_scores(stepper.model, evaluation)
    with _own_rates(stepper.optimizer) as rates, torch.random.fork_rng():
        if checkpoint is None:
            _save(stepper, state, folder)
        else:
            _restore(stepper, state, checkpoint)  # its rates are those of a step: `rates` stand
        for batch in batches:
            _set_rates(stepper.optimizer, rates, settings, batch.step)
            if companion is not None and not companion.before(stepper):
                break
            loss = _take_what_fits(stepper, batch, loss_per_example, settings, state)
            spent = stepper.num_steps
            shown = {} if loss is None else {"loss": loss}
            shown |= (stepper.last_not_private or {}) if settings.show_norms else {}
            if shown:
                append_line(folder / "not-private.jsonl", {"step": spent, "split": "train", **shown})
            watcher.step(spent, loss)
            asked = companion is not None and companion.after(stepper, loss)
            if asked or (settings.checkpoint_every and spent % settings.checkpoint_every == 0):
                _save(stepper, state, folder)
                if companion is not None:
                    companion.saved(stepper)
            if evaluation is not None and settings.eval_every and spent % settings.eval_every == 0:
                stepper.ranks.measure(
                    stepper.model, lambda: _measure(stepper, state, evaluation, folder, watcher)
                )
    return _finish(stepper, state, evaluation, folder, watcher)


@contextmanager
def _own_rates(optimizer: Optimizer) -> Iterator[list[float]]:
    """The learning rates that an optimizer came with; it has them again afterwards, after an error too."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        yield rates
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _set_rates(optimizer: Optimizer, rates: list[float], settings: TrainSettings, step: int) -> None:
    """The learning rates of one step, from those that the optimizer came with."""
    share = rate_share(settings, step)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = share * rate


def rate_share(settings: TrainSettings, step: int) -> float:
    """Share of its own value that a learning rate has in step t = 0, 1, ..."""
    share = 1.0
    if settings.lr_decay_steps:
        gone = min(1.0, step / settings.lr_decay_steps)
        share = 1.0 - gone if settings.lr_decay == "linear" else (1.0 + math.cos(math.pi * gone)) / 2.0
    if settings.lr_warmup_steps:
        share *= min(1.0, (step + 1) / settings.lr_warmup_steps)
    return share


def _take_what_fits(
    stepper: Stepper,
    batch: LogicalBatch,
    loss_per_example: LossPerExample,
    settings: TrainSettings,
    state: _State,
) -> float | None:
    """One step; where the device runs out of memory, the whole step again in chunks of half the size.

    A step that raises has thrown its sums away and spent nothing, so no example can count twice.
    """
    spent = stepper.num_steps
    while True:
        try:
            return _take(stepper, batch, loss_per_example, settings, state)
        except torch.OutOfMemoryError:
            if stepper.physical_batch_size < 2 or stepper.num_steps != spent:
                raise
        stepper.physical_batch_size //= 2  # outside the handler, which would keep the failed step's tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _take(
    stepper: Stepper,
    batch: LogicalBatch,
    loss_per_example: LossPerExample,
    settings: TrainSettings,
    state: _State,
) -> float | None:
    """One step, its update's share in the averages, and the mean loss if it was asked for."""
    total, count = 0.0, 0
    began = time.perf_counter()
    torch.manual_seed(_layers_seed(stepper, settings, batch))
    with stepper.step(batch) as step:
        for chunk in step.chunks():
            if settings.show_loss:
                losses = _look(stepper.model, loss_per_example, chunk)
                total, count = total + float(losses.double().sum()), count + len(losses)
            step.backward(loss_per_example, chunk)
    for name, mu in settings.averages.items():
        t = state.updates - settings.ema_start
        ema_update(state.averages[name], trainable(stepper.model), t=t, mu=mu)
    state.updates += 1
    state.seconds += time.perf_counter() - began
    return total / count if count else None


def _layers_seed(stepper: Stepper, settings: TrainSettings, batch: LogicalBatch) -> int:
    """Of a step's random layers; another one on each rank that has other examples."""
    rank = stepper.ranks.data_rank
    return mix_seed(settings.seed, "layers", batch.step, *((rank,) if rank else ()))


@torch.no_grad()
def _look(model: nn.Module, loss_per_example: LossPerExample, chunk: Any) -> Tensor:
    """A chunk's losses, without disturbing what random layers draw in the step itself."""
    with torch.random.fork_rng():
        return loss_per_example(model, chunk)


def _measure(
    stepper: Stepper, state: _State, evaluation: Evaluation, folder: Path, watcher: Watcher
) -> dict[str, Measured]:
    """Evaluate the last and the averaged weights, once a step, and write the metrics down."""
    if state.measured[0] == stepper.num_steps:
        return state.measured[1]
    state.measured = (-1, {})  # what was kept of every row goes before there is more of it
    reported = "ema" if "ema" in state.averages else "last"

    def evaluated(weights: str) -> Measured:
        found = evaluate(stepper.model, evaluation, halve=not stepper.ranks.shards)
        stepper.ranks.settle(
            stepper.model
        )  # else names lead to gathered parameters, which averages do not fit
        return found if weights == reported and stepper.ranks.leads else replace(found, kept={})

    found = {"last": evaluated("last")}
    for name, average in state.averages.items():
        with averaged(stepper.model, average):
            found[name] = evaluated(name)
    trusts = stepper.optimizer.trust_ratios(stepper.model) if isinstance(stepper.optimizer, Lamb) else None
    for weights, measured in found.items() if stepper.ranks.leads else ():
        line = {"step": stepper.num_steps, "split": "test", "weights": weights, **measured.means}
        if stepper.clip_norms:
            line["clip_norms"] = list(stepper.clip_norms)
        if weights == "last" and trusts is not None:
            line["trust_ratios"] = finite(trusts)
        append_line(folder / "metrics.jsonl", line)
        watcher.measured(stepper.num_steps, weights, measured.means)
    state.measured = stepper.num_steps, found
    return found


@contextmanager
def averaged(model: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in which the model has averaged parameters."""
    params = trainable(model)
    kept = {name: p.detach().clone() for name, p in params.items()}
    try:
        _copy_into(params, average)
        yield
    finally:
        _copy_into(params, kept)


@torch.no_grad()
def _copy_into(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, p in params.items():
        p.copy_(values[name])


def _finish(
    stepper: Stepper, state: _State, evaluation: Evaluation | None, folder: Path, watcher: Watcher
) -> FitResult:
    _save(stepper, state, folder)
    _keep(stepper, folder / "weights.safetensors")
    for name, average in state.averages.items():
        with averaged(stepper.model, average):
            _keep(stepper, folder / f"{name}.safetensors")
    found = None
    if evaluation is not None:
        found = stepper.ranks.measure(
            stepper.model, lambda: _measure(stepper, state, evaluation, folder, watcher)
        )
    return FitResult(
        updates=state.updates,
        seconds=state.seconds,
        scores={weights: measured.means for weights, measured in (found or {}).items()},
        kept={weights: measured.kept for weights, measured in (found or {}).items()},
    )


def _keep(stepper: Stepper, path: Path) -> None:
    """Write the model's whole tensors to a file, on the leader, with their place in the ledger."""
    ranks = stepper.ranks
    whole = ranks.gather(stepper.model.state_dict())
    place = {"step": stepper.num_steps, "ledger_head": stepper.head}
    ranks.first(lambda: save_tensors(path, whole, header=place))


def _save(stepper: Stepper, state: _State, folder: Path) -> None:
    checkpoint = Checkpoint(
        step=stepper.num_steps,
        updates=state.updates,
        ledger_head=stepper.head,
        seconds=60.0 * round(state.seconds / 60.0),  # one step's time would tell how many rows it drew
        model=stepper.model.state_dict(),
        averages=state.averages,
        optimizer=stepper.optimizer.state_dict(),
        clip_norms=stepper.clip_norms,
    )
    if isinstance(stepper.ranks, Shards | TensorParallel):
        save_in_parts(folder, checkpoint, stepper.ranks)
    else:
        stepper.ranks.first(lambda: save_checkpoint(folder, checkpoint))


def _restore(stepper: Stepper, state: _State, checkpoint: Checkpoint) -> None:
    try:
        checkpoint = filled(checkpoint, stepper.model, stepper.optimizer, state.averages)
        stepper.model.load_state_dict(dict(checkpoint.model))
        stepper.optimizer.load_state_dict(dict(checkpoint.optimizer))
    except (RuntimeError, ValueError, KeyError, IndexError) as e:
        raise CheckpointError(
            f"The checkpoint at step {checkpoint.step} does not fit this model and optimizer. Resume with "
            "the ones the run began with.",
            code="checkpoint-mismatch",
        ) from e
    if _shapes(checkpoint.averages) != _shapes(state.averages):
        raise CheckpointError(
            "The checkpoint's averaged weights are not those of this model. Resume with the run's settings.",
            code="checkpoint-mismatch",
        )
    stepper.restore_clip_norms(checkpoint.clip_norms)
    device = next(stepper.model.parameters()).device
    state.averages = {
        name: {n: t.to(device) for n, t in average.items()}  # sharded ones too
        for name, average in checkpoint.averages.items()
    }
    state.updates, state.seconds = checkpoint.updates, checkpoint.seconds


def _shapes(averages: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, torch.Size]]:
    return {name: {n: t.shape for n, t in average.items()} for name, average in averages.items()}
