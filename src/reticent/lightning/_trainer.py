"""`PrivateTrainer`: Lightning's `Trainer`, whose training is private.

Room: lightning. Imports lightning; may import torch and every room below.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource, _request_dataloader
from torch import Tensor, nn

from reticent.account import verify_traces
from reticent.account.ledger import Ledger, verify_contains
from reticent.errors import BudgetExhausted, CheckpointError, ConfigError
from reticent.noise import CipherNoise
from reticent.plan import LogicalBatch, Plan
from reticent.report import write_report
from reticent.sample import SampleStream
from reticent.train import (
    PrivateStep,
    RunDescription,
    TrainResult,
    TrainSettings,
    Transform,
    check_ledger,
    create_ledger,
    ledger_epsilon,
    new_folder,
    new_run_id,
    read_run,
    removed_if_empty,
    removed_unless_spent,
    save_tensors,
    write_json,
    write_run,
)

from ._arguments import check_arguments, check_made
from ._checks import check_callbacks, check_module, rows_of
from ._optimization import PrivateOptimization

_KEY: Final = "reticent"  # of what a Lightning checkpoint holds of us
_ROWS_AT_ONCE: Final = 256


class PrivateTrainer(Trainer):
    """A `Trainer` whose `fit()` is differentially private; everything else is as in Lightning.

        from reticent.lightning import PrivateTrainer

        trainer = PrivateTrainer(plan=plan, out="runs/a")
        trainer.fit(module, train_set, public_loader)

    Lightning's own loop runs: callbacks, loggers, validation, learning rate schedules, checkpoints. Where it
    would call `training_step`, backward and the optimizer, one private step of the plan is taken instead.
    The module stays as it is, except that `training_step` must return one loss for each row.

    Args:
        plan: what will run; its number of steps is `max_steps`, unless that is given and smaller.
        out: the run's folder: ledger, weights, report. New or empty, except to go on with `ckpt_path`.
        physical_batch_size: rows that go through the model at once; by default the `batch_size` of the
            training loader, or 256 for a data set.
        transform: `transform(rows, generator)` on each chunk, row by row; see `PrivateStep`.
        low_memory: clip by two backwards, between which nothing is kept; see `PrivateStep`.
        check_batch: public rows for the self-check before the first step; see `PrivateStep`.
        noise_seed: fixes noise and sampling, for tests and research: the run is then NOT private.
        trainer_arguments: of Lightning's `Trainer`; `reticent.lightning.ARGUMENTS` says what becomes of each.

    Guarantee:
        That of `PrivateStep` for weights, checkpoints, the folder `out` and what Lightning logs. Not for
        what the module itself writes from inside `training_step` by other ways than `self.log`, nor for what
        it keeps in other places than its own attributes (those of layers, global variables).
        Validation, test and prediction data are taken as PUBLIC.

    Raises:
        ConfigError[lightning-argument]: an argument or a callback has no place here.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        out: Path | str,
        physical_batch_size: int | None = None,
        transform: Transform | None = None,
        low_memory: bool = False,
        check_batch: Any = None,
        noise_seed: int | None = None,
        **trainer_arguments: Any,
    ) -> None:
        check_arguments(trainer_arguments)
        steps = trainer_arguments.get("max_steps", -1)
        if not isinstance(steps, int) or steps > plan.num_steps:
            raise ConfigError(
                f"max_steps = {steps!r}, and the plan allows {plan.num_steps}: leave it out, or make a plan "
                "for as many.",
                code="lightning-argument",
            )
        if steps == -1:
            trainer_arguments["max_steps"] = plan.num_steps
        super().__init__(**trainer_arguments)
        check_made(self)
        self.plan: Final = plan
        self.out: Final = Path(out)
        self.private_result: TrainResult | None = None
        self._physical_batch_size, self._transform = physical_batch_size, transform
        self._low_memory = low_memory
        self._check_batch, self._noise_seed = check_batch, noise_seed
        self._private: PrivateStep | None = None
        self._batches: Iterator[LogicalBatch] = iter(())
        self._dataset: Any = None
        self._at_once = _ROWS_AT_ONCE
        self._going_on = False
        self._loaded: dict[str, Any] | None = None
        self._seconds, self._updates = 0.0, 0
        _callbacks_of(self).insert(0, _Keeper())
        self.fit_loop.epoch_loop.automatic_optimization = PrivateOptimization(self, self._take)

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train privately to the end of the plan, or until Lightning stops; keep the run in `out`.

        Args:
            model: its `training_step` returns (B,) losses.
            train_dataloaders: the private rows: a data set, or a `DataLoader` of one, whose `batch_size` is
                read as rows at once. Rows are drawn by the plan.
            val_dataloaders: PUBLIC rows.
            datamodule: as in Lightning.
            ckpt_path: a checkpoint of this run, to go on from: steps since it stay spent.
            weights_only: as in Lightning.

        Raises:
            ConfigError[lightning-module]: the module takes part in optimization itself, logs or keeps
                something of training rows, or returns no loss for each row.
            ConfigError[lightning-argument]: a callback, or the training loader, has no place here.
            ConfigError[out-exists]: `out` holds something, and this is no resume.
            ConfigError[lightning-resume]: the checkpoint and `out` are not of one run, or of another plan.
            ReticentError: as `PrivateStep`, before anything is spent.
        """
        if isinstance(train_dataloaders, LightningDataModule):
            datamodule, train_dataloaders = train_dataloaders, None
        if not isinstance(model, LightningModule):
            raise ConfigError(
                f"fit takes a lightning.pytorch.LightningModule that is not compiled, got "
                f"{type(model).__name__}.",
                code="lightning-module",
            )
        check_module(model, datamodule)
        check_callbacks(_callbacks_of(self))
        self._going_on, self._loaded, self._private = ckpt_path is not None, None, None
        self.private_result = None
        if self._going_on:
            self._check_folder()
        else:
            new_folder(self.out)
        try:
            with nullcontext() if self._going_on else removed_if_empty(self.out):
                with nullcontext() if self._going_on else removed_unless_spent(self.out):
                    super().fit(
                        model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only
                    )
            if self._private is not None:
                self._finish(self._private)
        finally:
            if self._private is not None:
                self._private.close()

    # ---- called by `_Keeper`, in Lightning's order ---------------------------------------------------

    def _take_over_rows(self) -> None:
        """Once data are there: keep the data set, and count steps in place of its loader."""
        check_callbacks(_callbacks_of(self))  # again: the module may have brought some
        self._dataset, at_once = rows_of(_request_dataloader(self.fit_loop._data_source))
        wanted = self._physical_batch_size
        if wanted is not None and at_once is not None and wanted != at_once:
            raise ConfigError(
                f"physical_batch_size = {wanted}, and the training loader's batch_size, which is read as the "
                f"same, is {at_once}: one of them would be ignored.",
                code="lightning-argument",
            )
        self._at_once = wanted or at_once or _ROWS_AT_ONCE
        steps = _Steps(max(1, math.ceil(1.0 / self.plan.at(0).sampler.sampling_prob)))
        self.fit_loop._data_source = _DataLoaderSource(steps, "")
        self.fit_loop._combined_loader = None

    def _begin(self, module: LightningModule) -> None:
        """After sanity checks and restored states: ledger and private step."""
        check_callbacks(_callbacks_of(self))
        if self._going_on != (self._loaded is not None):
            raise ConfigError(
                "The checkpoint is not of a private run, or Lightning found one by itself: give the "
                "checkpoint of the run in `out` as ckpt_path.",
                code="lightning-resume",
            )
        seed = self._noise_seed
        ledger = self._reopen() if self._loaded is not None else self._new_ledger(module)
        start = ledger.num_steps
        if start >= self.plan.num_steps:
            ledger.close()
            raise BudgetExhausted(
                f"The ledger in '{self.out}' holds all {self.plan.num_steps} steps of the plan: nothing is "
                "left to spend. Make a new plan, and a new run.",
                code="budget-exhausted",
            )
        noise = CipherNoise.fresh() if seed is None else CipherNoise.reproducible(seed, start=start)
        try:
            self._private = private = PrivateStep(
                module,
                self.optimizers[0],
                plan=self.plan,
                ledger=ledger,
                physical_batch_size=self._at_once,
                noise=noise,
                transform=self._transform,
                low_memory=self._low_memory,
                check_batch=self._check_batch,
            )
            if self._loaded is not None:
                ledger.append_resume(checkpoint_step=self._loaded["step"])
                _require_updates(ledger, self._loaded)
                private.restore_clip_norms(self._loaded["clip_norms"])
        except BaseException:
            ledger.close()
            raise
        self._updates = 0 if self._loaded is None else self._loaded["updates"]
        self._seconds = 0.0 if self._loaded is None else self._loaded["seconds"]
        stream = SampleStream.fresh() if seed is None else SampleStream.reproducible(seed, start=start)
        self._batches = iter(self.plan.batches(self._dataset, start=start, stream=stream))

    def _state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of us: no key, and nothing of a batch."""
        private = self._private
        if private is None:
            return None
        return {
            "run_id": private.ledger.run_id,
            "step": private.num_steps,
            "updates": self._updates,
            "ledger_head": private.head,
            "clip_norms": list(private.clip_norms),
            "seconds": 60.0 * round(self._seconds / 60.0),  # one step's time would tell its rows
        }

    def _take(self, loss_per_example: Callable[[nn.Module, Any], Tensor]) -> None:
        private = self._private
        assert private is not None  # `_begin` has run
        began = time.perf_counter()
        with private.step(next(self._batches)) as step:
            for chunk in step.chunks():
                step.backward(loss_per_example, chunk)
        self._updates += 1
        self._seconds += time.perf_counter() - began
        if private.num_steps >= self.plan.num_steps:
            self.should_stop = True

    # ---- the folder ----------------------------------------------------------------------------------

    def _new_ledger(self, module: LightningModule) -> Ledger:
        reproducible, run_id = self._noise_seed is not None, new_run_id()
        write_run(
            self.out,
            run_id=run_id,
            description=RunDescription(
                config={"model": type(module).__name__, "precision": self.precision},
                data={"name": "training data of a Lightning Trainer"},
            ),
            plan=self.plan.describe(),
            settings=TrainSettings(checkpoint_every=0, low_memory=self._low_memory),
            physical_batch_size=self._at_once,
            noise_seed=self._noise_seed,
            model=module,
            private=not reproducible,
        )
        return create_ledger(self.out / "ledger.jsonl", self.plan, run_id=run_id, reproducible=reproducible)

    def _check_folder(self) -> None:
        if read_run(self.out)["plan"] != self.plan.describe():
            raise ConfigError(
                f"The run in '{self.out}' has another plan: go on with the one that it began with.",
                code="lightning-resume",
            )

    def _reopen(self) -> Ledger:
        about, loaded = read_run(self.out), self._loaded
        assert loaded is not None
        if loaded["run_id"] != about["run_id"]:
            raise ConfigError(
                f"The checkpoint belongs to another run than '{self.out}'.", code="lightning-resume"
            )
        if about["settings"]["noise_seed"] != self._noise_seed:
            raise ConfigError(
                f"The run in '{self.out}' began with noise_seed = {about['settings']['noise_seed']!r}, this "
                f"is {self._noise_seed!r}.",
                code="lightning-resume",
            )
        ledger = Ledger.open(self.out / "ledger.jsonl")
        try:
            check_ledger(ledger, self.plan, reproducible=self._noise_seed is not None, run_id=about["run_id"])
            verify_contains(ledger, head=loaded["ledger_head"], num_steps=loaded["step"])
            verify_traces(ledger, self.out)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _finish(self, private: PrivateStep) -> None:
        """Weights, result and report, as `reticent.train` leaves them."""
        ledger = private.ledger
        place = {"step": ledger.num_steps, "ledger_head": ledger.head}
        save_tensors(self.out / "weights.safetensors", private.model.state_dict(), header=place)
        self.private_result = result = TrainResult(
            run=self.out,
            private=not ledger.reproducible,
            epsilon=ledger_epsilon(ledger, final=True),
            num_steps=ledger.num_steps,
            num_lost=ledger.num_lost,
            ledger_head=ledger.head,
            seconds=self._seconds,
            weights="last",
            scores={},
        )
        write_json(self.out / "result.json", result.to_dict())
        write_report(self.out)


class _Keeper(Callback):
    """Calls the trainer where Lightning's loop is; logs epsilon, and keeps checkpoints tied to the ledger."""

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        trainer._take_over_rows()

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        trainer._begin(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, every = trainer._private.num_steps, trainer.log_every_n_steps
        if (every and steps % every == 0) or steps == trainer.plan.num_steps:
            epsilon = trainer._private.epsilon().epsilon
            pl_module.log(
                "epsilon", epsilon, on_epoch=False, prog_bar=True, logger=bool(trainer.loggers), batch_size=1
            )

    def on_save_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: Any) -> None:
        state = trainer._state()
        if state is not None:
            checkpoint[_KEY] = state

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: Any) -> None:
        trainer._loaded = checkpoint.get(_KEY)


class _Steps:
    """Stands for the training loader: as many nothings as an epoch has steps. Rows never pass through."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator["PrivateBatch"]:
        return iter([PrivateBatch()] * self._num_steps)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to go on from: the plan draws."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


class PrivateBatch:
    """What callbacks see where a batch would be."""

    def __repr__(self) -> str:
        return "PrivateBatch()"


def _callbacks_of(trainer: Any) -> list[Callback]:
    """A trainer's callbacks, which Lightning sets from another object."""
    return trainer.callbacks


def _require_updates(ledger: Ledger, loaded: dict[str, Any]) -> None:
    if ledger.num_steps - ledger.num_lost != loaded["updates"]:
        raise CheckpointError(
            f"The checkpoint counts {loaded['updates']} updates, and by the ledger it holds "
            f"{ledger.num_steps - ledger.num_lost}. Go on from a checkpoint that the run wrote.",
            code="checkpoint-mismatch",
        )
