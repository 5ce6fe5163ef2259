"""Runs WITHOUT privacy: whole ones, as `epsilon = inf` asks for, and the twin of a private run.

Room: recipes. May import torch, rich, `reticent.{train,sample}` and the floors below.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reticent.errors import CheckpointError
from reticent.sample import SampleStream
from reticent.train import (
    FitResult,
    finite,
    fit,
    load_checkpoint,
    mix_seed,
    new_run_id,
    removed_unless_spent,
    silent_or_bar,
    tracked,
    write_json,
    write_run,
)

from ._job import Ended, Job, sayer
from ._parts import build_model, losses_of, optimizer_of, settings_of
from ._plain import PlainStep
from ._training_config import TrainingConfig


def train_plain(job: Job, out: Path, console: Console | None) -> Ended:
    """The whole run without privacy, as `epsilon = inf` asks."""
    config = job.config
    write_run(
        out,
        run_id=new_run_id(),
        description=job.description,
        plan=None,
        settings=settings_of(config),
        physical_batch_size=config.num_rows_at_once,
        noise_seed=config.noise_seed,
        model=job.model,
        private=False,
    )
    with removed_unless_spent(out):
        return resume_plain(job, out, console)


def resume_plain(job: Job, folder: Path, console: Console | None) -> Ended:
    say = sayer(console)
    checkpoint = load_checkpoint(folder, say=say)
    if checkpoint is not None and checkpoint.ledger_head is not None:
        raise CheckpointError(
            f"The checkpoint of '{folder}' belongs to a private run, whose ledger is gone.",
            code="checkpoint-mismatch",
        )
    start = 0 if checkpoint is None else checkpoint.step
    config = job.config
    stepper = PlainStep(
        job.model,
        job.optimizer,
        physical_batch_size=config.num_rows_at_once,
        num_steps=start,
        transform=job.recipe.transform(config),
        seed=config.seed,
    )
    shown = silent_or_bar(console, "without privacy", config.num_steps)
    with shown as seen, tracked(seen, config.log, folder, epsilon=None) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.material.train, start=start, stream=_public_stream(config, start)),
            loss_per_example=losses_of(job.recipe, job.config),
            folder=folder,
            settings=settings_of(config),
            watcher=watcher,
            evaluation=job.evaluation,
            checkpoint=checkpoint,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result, done.kept


def train_twin(job: Job, folder: Path, console: Console | None) -> dict[str, Any]:
    """The same recipe without clipping and noise, from the same first weights."""
    config = job.config
    folder.mkdir(exist_ok=True)
    model = build_model(job.recipe, config)
    stepper = PlainStep(
        model,
        optimizer_of(model, config, lr=config.twin_lr),
        physical_batch_size=config.num_rows_at_once,
        transform=job.recipe.transform(config),
        seed=config.seed,
    )
    settings = replace(settings_of(config), checkpoint_every=0, show_loss=False, show_norms=False, log="none")
    with silent_or_bar(console, "twin without privacy", config.num_steps) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.material.train, stream=_public_stream(config, 0)),
            loss_per_example=losses_of(job.recipe, job.config),
            folder=folder,
            settings=settings,
            watcher=watcher,
            evaluation=job.evaluation,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result


def _public_stream(config: TrainingConfig, start: int) -> SampleStream:
    """Draws of a run without privacy: repeatable, and unrelated to any private run's."""
    return SampleStream.reproducible(mix_seed(config.seed, "sampling without privacy"), start=start)


def _plain_result(done: FitResult, config: TrainingConfig, folder: Path) -> dict[str, Any]:
    weights = "ema" if config.ema else "last"
    return {
        "private": False,
        "epsilon": None,
        "delta": config.delta,
        "num_steps": done.updates,
        **{f"test_{name}": finite(value) for name, value in done.scores[weights].items()},
        "weights": weights,
        "scores": finite(done.scores),
        "seconds": round(done.seconds, 3),
        "run": str(folder),
    }
