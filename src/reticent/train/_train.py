"""`train` and `resume`: a whole private run, with its folder.

Room: train. May import torch, `reticent.{plan,clip,noise,sample,account}` and the floors below.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.account import verify_traces
from reticent.account.ledger import Ledger, verify_contains
from reticent.clip import ClipEngine
from reticent.dist import ALONE, Ranks, RanksLedger, together
from reticent.errors import CheckpointError, ConfigError
from reticent.noise import CipherNoise
from reticent.plan import Plan
from reticent.records import EpsilonReport
from reticent.sample import SampleStream

from ._adapt import ClipNorms
from ._begin import check_low_memory, check_physical_batch_size
from ._checkpoint import Checkpoint, load_checkpoint
from ._evaluate import Evaluation
from ._files import drop_torn_line, finite, write_json
from ._folder import (
    RunDescription,
    left_by_steps,
    new_folder,
    read_run,
    removed_if_empty,
    removed_unless_spent,
    write_run,
)
from ._guards import check_optimizer, trainable
from ._ledger import check_ledger, create_ledger, ledger_epsilon, new_run_id
from ._loop import Companion, TrainSettings, fit
from ._open_step import LossPerExample
from ._physical import largest_physical_batch_size
from ._progress import Spent, silent_or_bar
from ._rows import Transform, fetch
from ._step import DEFAULT_PHYSICAL_BATCH_SIZE, PrivateStep
from ._track import check_tracking, tracked


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a private run ended with; all of it may be published, except under `show_loss`, but for `seconds`.

    Args:
        run: the run's folder.
        private: whether the epsilon below protects anyone; False in reproducible mode.
        epsilon: read from the ledger; infinite if not private.
        num_steps: steps spent, lost ones included.
        num_lost: steps spent whose updates a crash lost.
        ledger_head: hash of the ledger's last entry.
        seconds: time spent in steps, that before a resume to the minute. Where batches are drawn, it depends
            on how many rows were.
        weights: which weights the scores to report belong to, "ema" if there is such an average.
        scores: "last" and, if on, "ema" and "polyak" -> name -> mean score on the public test data.
        kept: alike, what `Evaluation.kept` asks for of every public test row; of `weights`, and in no file.
    """

    run: Path
    private: bool
    epsilon: EpsilonReport
    num_steps: int
    num_lost: int
    ledger_head: str
    seconds: float
    weights: str
    scores: Mapping[str, Mapping[str, float]]
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for `result.json`: what is not finite becomes null."""
        best = self.scores.get(self.weights, {})
        return {
            "private": self.private,
            "epsilon": finite(self.epsilon.epsilon),
            "delta": self.epsilon.delta,
            "neighbouring_relation": str(self.epsilon.neighbouring_relation),
            "accountant": self.epsilon.accountant,
            "num_steps": self.num_steps,
            "num_lost": self.num_lost,
            "ledger_head": self.ledger_head,
            **{f"test_{name}": finite(value) for name, value in best.items()},
            "weights": self.weights,
            "scores": finite(self.scores),
            "seconds": round(self.seconds, 3),
            "run": str(self.run),
        }


def train(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    plan: Plan,
    dataset: Any,
    loss_per_example: LossPerExample,
    out: Path | str,
    evaluation: Evaluation | None = None,
    settings: TrainSettings | None = None,
    physical_batch_size: int | Literal["auto"] = DEFAULT_PHYSICAL_BATCH_SIZE,
    memory_budget: int | None = None,
    noise_seed: int | None = None,
    transform: Transform | None = None,
    check_batch: Any = None,
    description: RunDescription | None = None,
    console: Console | None = None,
    ranks: Ranks = ALONE,
    companion: Companion | None = None,
) -> TrainResult:
    """Train privately to the end of a plan, and keep a run folder.

    Args:
        model: what to train, in the modes (train, eval) its layers shall have.
        optimizer: over exactly its trainable parameters.
        plan: what will run.
        dataset: private rows, in any form `PrivateStep` takes.
        loss_per_example: called as `loss_per_example(model, rows)`; returns (B,) losses.
        out: the run's folder; new or empty.
        evaluation: what to measure, on which PUBLIC data.
        settings: evaluation, checkpoints, average, public seed.
        physical_batch_size: rows that go through the model at once; "auto" finds what fits, from rows of
            zeros in the shapes of `check_batch`, or of the data set's first row.
        memory_budget: bytes for "auto"; see `largest_physical_batch_size`.
        noise_seed: fixes noise and sampling, for tests and research: the run is then NOT private, and
            its ledger, report and result say so.
        transform: `transform(rows, generator)` on each chunk, row by row.
        check_batch: public rows for the engine's self-check.
        description: public facts to keep in `run.json`.
        console: where to draw a progress bar; none by default.
        ranks: the processes that train together, each calling this alike; see `PrivateStep`. The leader
            alone writes the folder, evaluates and has scores in its result.
        companion: is called around every step, and may end the run early.

    Returns:
        The ledger's epsilon and the scores.

    Guarantee:
        That of `PrivateStep`, for everything in the folder: weights, averages, checkpoints, metrics. An
        error before the first step leaves no folder behind and spends nothing. A run killed at any
        instant can be resumed, and its ledger holds at least the steps whose updates were kept.

    Raises:
        ConfigError[out-exists]: the folder exists and is not empty.
        ReticentError: as `PrivateStep` and its steps.
    """
    with together(ranks):
        ranks.settle(model)
        check_optimizer(model, optimizer)
        if physical_batch_size == "auto" and ranks.shards:
            raise ConfigError(
                "physical_batch_size='auto' measures a whole model in one process, and this one is sharded. "
                "Give a number of rows.",
                code="physical-batch-size",
            )
    settings = settings or TrainSettings()
    if settings.low_memory:
        check_low_memory(plan.clipping)
    if physical_batch_size == "auto":
        if settings.compile:
            raise ConfigError(
                "physical_batch_size='auto' measures ClipEngine, and settings.compile runs another engine, "
                "whose memory is not known before it is compiled for a size. Give a number of rows, or leave "
                "out compile.",
                code="physical-batch-size",
            )
        rows = fetch(dataset, np.zeros(1, dtype=np.int64)) if check_batch is None else check_batch
        physical_batch_size = _what_fits(
            model, loss_per_example, rows, plan, transform, memory_budget, low_memory=settings.low_memory
        )
    elif memory_budget is not None:
        raise ConfigError(
            f"memory_budget is only read with physical_batch_size='auto', which is {physical_batch_size!r}.",
            code="memory-budget",
        )
    check_physical_batch_size(physical_batch_size)
    check_tracking(settings.log)
    if settings.show_loss and ranks.size > 1:
        raise ConfigError(
            "show_loss needs a single process: each rank has some of the rows whose loss it shows.",
            code="several-ranks",
        )
    folder, run_id, size = Path(out), new_run_id(), physical_batch_size

    def begin() -> None:
        new_folder(folder)
        with removed_if_empty(folder):
            write_run(
                folder,
                run_id=run_id,
                description=description or RunDescription(),
                plan=plan.describe(),
                settings=settings,
                physical_batch_size=size,
                noise_seed=noise_seed,
                model=model,
                private=noise_seed is None,
                num_ranks=ranks.size,
            )

    def new_ledger() -> Ledger:
        return create_ledger(
            folder / "ledger.jsonl",
            plan,
            run_id=run_id,
            reproducible=noise_seed is not None,
            not_private=settings.not_private,
        )

    ranks.first(begin)
    with removed_unless_spent(folder) if ranks.leads else nullcontext():
        with closing(_shared(ranks, new_ledger, plan)) as ledger:
            private = PrivateStep(
                model,
                optimizer,
                plan=plan,
                ledger=ledger,
                physical_batch_size=physical_batch_size,
                noise=_noise(noise_seed, start=0, ranks=ranks),
                seed=settings.seed,
                transform=transform,
                check_batch=check_batch,
                compile=settings.compile,
                low_memory=settings.low_memory,
                show_norms=settings.show_norms,
                ranks=ranks,
            )
            return _run(
                private,
                folder,
                dataset,
                loss_per_example,
                evaluation,
                settings,
                noise_seed,
                None,
                console,
                companion,
            )


def resume(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    dataset: Any,
    loss_per_example: LossPerExample,
    out: Path | str,
    evaluation: Evaluation | None = None,
    transform: Transform | None = None,
    check_batch: Any = None,
    physical_batch_size: int | None = None,
    console: Console | None = None,
    ranks: Ranks = ALONE,
    companion: Companion | None = None,
) -> TrainResult:
    """Go on with a run that was stopped, to the end of its plan.

    Plan and settings come from `run.json`, weights and optimizer state from the newest whole
    checkpoint. Give the model, optimizer, data set and functions that the run began with. The number of ranks
    may be another one; each of them reads the folder, which the leader writes. So may `physical_batch_size`,
    for a run that was stopped because memory ran out; None: as it began.

    Guarantee:
        The ledger is never shortened: steps after the checkpoint are lost and stay spent, and the run
        stops when the ledger holds the planned number, so epsilon never exceeds the plan's. Noise and
        sampling are drawn from fresh keys; nothing is replayed.

    Raises:
        ConfigError[not-a-run]: the folder holds no run.
        LedgerError: the ledger is damaged, missing or locked, was cut, or belongs to another plan.
        CheckpointError: no checkpoint is whole, or it does not fit.
    """
    folder = Path(out)
    with together(ranks):
        about = read_run(folder)
        plan = Plan.from_dict(about["plan"])
        began_with, noise_seed, settings = _settings(about)
        at_once = began_with if physical_batch_size is None else physical_batch_size
        check_physical_batch_size(at_once)
        check_tracking(settings.log)
        checkpoint = load_checkpoint(folder, say=lambda text: _say(console, text))

    def reopen() -> Ledger:
        ledger = _reopen_ledger(folder, plan, about["run_id"], noise_seed, settings)
        with _closed_if_refused(ledger):
            check_ledger(
                ledger,
                plan,
                reproducible=noise_seed is not None,
                run_id=about["run_id"],
                not_private=settings.not_private,
            )
            _check_chain(ledger, checkpoint, folder)
            verify_traces(ledger, folder)
        return ledger

    with closing(_shared(ranks, reopen, plan)) as ledger:
        ranks.agree("the checkpoint", None if checkpoint is None else checkpoint.about)
        start = ledger.num_steps
        private = PrivateStep(
            model,
            optimizer,
            plan=plan,
            ledger=ledger,
            physical_batch_size=at_once,
            noise=_noise(noise_seed, start=start, ranks=ranks),
            seed=settings.seed,
            transform=transform,
            check_batch=check_batch,
            compile=settings.compile,
            low_memory=settings.low_memory,
            show_norms=settings.show_norms,
            ranks=ranks,
        )
        ledger.append_resume(checkpoint_step=0 if checkpoint is None else checkpoint.step)
        _check_updates(ledger, checkpoint)
        ranks.first(lambda: _drop_torn_lines(folder))
        return _run(
            private,
            folder,
            dataset,
            loss_per_example,
            evaluation,
            settings,
            noise_seed,
            checkpoint,
            console,
            companion,
        )


def _run(
    private: PrivateStep,
    folder: Path,
    dataset: Any,
    loss_per_example: LossPerExample,
    evaluation: Evaluation | None,
    settings: TrainSettings,
    noise_seed: int | None,
    checkpoint: Checkpoint | None,
    console: Console | None,
    companion: Companion | None,
) -> TrainResult:
    """Take the steps that are left, and write the result down."""
    ledger, plan, start, ranks = private.ledger, private.plan, private.num_steps, private.ranks
    stream = (
        SampleStream.fresh() if noise_seed is None else SampleStream.reproducible(noise_seed, start=start)
    )
    budget = None if plan.budget is None else plan.budget.epsilon
    spent = Spent(lambda: private.epsilon().epsilon, plan.num_steps, budget=budget)
    shown = silent_or_bar(
        console,
        "private",
        plan.num_steps,
        epsilon=spent,
        rows_at_once=lambda: private.physical_batch_size,
        device=next(private.model.parameters()).device,
    )
    log = settings.log if ranks.leads else "none"
    with shown as seen, tracked(seen, log, folder, epsilon=spent) as watcher:
        done = fit(
            private,
            plan.batches(dataset, start=start, stream=stream),
            loss_per_example=loss_per_example,
            folder=folder,
            settings=settings,
            watcher=watcher,
            evaluation=evaluation,
            checkpoint=checkpoint,
            companion=companion,
        )
    result = TrainResult(
        run=folder,
        private=not ledger.reproducible,
        epsilon=ledger_epsilon(ledger, final=True),
        num_steps=ledger.num_steps,
        num_lost=ledger.num_lost,
        ledger_head=ledger.head,
        seconds=done.seconds,
        weights="ema" if settings.ema else "last",
        scores=done.scores,
        kept=done.kept,
    )
    ranks.first(lambda: write_json(folder / "result.json", result.to_dict()))
    return result


def _what_fits(
    model: nn.Module,
    loss_per_example: LossPerExample,
    rows: Any,
    plan: Plan,
    transform: Transform | None,
    memory_budget: int | None,
    *,
    low_memory: bool,
) -> int:
    """The physical batch size for "auto"."""
    generator = torch.Generator().manual_seed(0)

    def loss(model: nn.Module, given: Any) -> Tensor:
        return loss_per_example(model, given if transform is None else transform(given, generator))

    norms = ClipNorms(plan.clipping, {name: p.numel() for name, p in trainable(model).items()})
    expected = plan.largest_batch_size
    return largest_physical_batch_size(
        model,
        loss,
        rows,
        memory_budget=memory_budget,
        largest=min(4096, math.ceil(expected + 6 * math.sqrt(expected))),
        engine=ClipEngine(model, clipping=norms.now(), method="ghost" if low_memory else "book-keeping"),
    )


def _noise(noise_seed: int | None, *, start: int, ranks: Ranks) -> CipherNoise:
    """A fresh key for every process; a resumed reproducible run, and every rank, has a stream of its own."""
    if noise_seed is None:
        return CipherNoise.fresh()
    return CipherNoise.reproducible(noise_seed, start=start, rank=ranks.rank)


def _shared(ranks: Ranks, open_ledger: Callable[[], Ledger], plan: Plan) -> Ledger | RanksLedger:
    """The run's ledger: the leader's, for all ranks."""
    if ranks.size == 1:
        return open_ledger()
    return RanksLedger(ranks, ranks.first(open_ledger), planned=plan.segments())


@contextmanager
def _closed_if_refused(ledger: Ledger) -> Iterator[None]:
    """Let go of a ledger if what is checked in the block refuses it."""
    try:
        yield
    except BaseException:
        ledger.close()
        raise


def _drop_torn_lines(folder: Path) -> None:
    for name in ("metrics.jsonl", "not-private.jsonl"):
        drop_torn_line(folder / name)


def _settings(about: Mapping[str, Any]) -> tuple[int, int | None, TrainSettings]:
    values = dict(about["settings"])
    try:
        return values.pop("physical_batch_size"), values.pop("noise_seed"), TrainSettings(**values)
    except (KeyError, TypeError) as e:
        raise ConfigError(
            "The settings in run.json are damaged, or of another version. Restore it.", code="not-a-run"
        ) from e


def _reopen_ledger(
    folder: Path, plan: Plan, run_id: str, noise_seed: int | None, settings: TrainSettings
) -> Ledger:
    """The run's ledger; a new one if the run was stopped before it had one."""
    path = folder / "ledger.jsonl"
    if not left_by_steps(folder) and (not path.exists() or b"\n" not in path.read_bytes()):
        return create_ledger(
            path,
            plan,
            run_id=run_id,
            reproducible=noise_seed is not None,
            not_private=settings.not_private,
        )
    return Ledger.open(path)


def _check_chain(ledger: Ledger, checkpoint: Checkpoint | None, folder: Path) -> None:
    """Refuse a checkpoint whose place in the ledger's chain is gone."""
    if checkpoint is None:
        if ledger.num_steps:
            raise CheckpointError(
                f"The ledger of '{folder}' holds {ledger.num_steps} steps and there is no checkpoint: their "
                "weights are gone and the steps stay spent. Restore the checkpoints, or start a new run with "
                "what is left of the budget.",
                code="checkpoint-missing",
            )
        return
    if checkpoint.ledger_head is None:
        raise CheckpointError(
            f"The checkpoint of '{folder}' belongs to a run without a ledger.", code="checkpoint-mismatch"
        )
    verify_contains(ledger, head=checkpoint.ledger_head, num_steps=checkpoint.step)


def _check_updates(ledger: Ledger | RanksLedger, checkpoint: Checkpoint | None) -> None:
    """Refuse a checkpoint whose weights hold another number of updates than the ledger's history of it."""
    updates = 0 if checkpoint is None else checkpoint.updates
    if ledger.num_steps - ledger.num_lost != updates:
        raise CheckpointError(
            f"The checkpoint counts {updates} updates, and by the ledger it holds "
            f"{ledger.num_steps - ledger.num_lost}. Restore the checkpoint that the run wrote.",
            code="checkpoint-mismatch",
        )


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, style="bold yellow", markup=False, highlight=False)
