"""The part of a `Trainer`'s loop that sees no private row: schedule, callbacks, logs, evaluation.

Room: hf. Imports transformers; may import `reticent.train`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from reticent.errors import ConfigError
from reticent.records import EpsilonReport
from reticent.train import PrivateStep, Stepper, append_line

# Called where gradients exist: there is no such place in a private step.
_NEVER_CALLED: Final = ("on_pre_optimizer_step", "on_optimizer_step", "on_substep_end")


def refuse_unheard(callbacks: list[TrainerCallback]) -> None:
    """Refuse callbacks that wait for an event that never comes.

    Raises:
        ConfigError[trainer-argument]: names callback and event.
    """
    for callback in callbacks:
        for event in _NEVER_CALLED:
            if getattr(type(callback), event, None) is not getattr(TrainerCallback, event, None):
                raise ConfigError(
                    f"The callback {type(callback).__name__} has {event}, which is never called: "
                    f"gradients are "
                    "clipped and noised inside one step, and nobody sees them before. Use on_step_end.",
                    code="trainer-argument",
                )


def rate_factor(args: TrainingArguments, num_steps: int) -> Callable[[int], float]:
    """Step -> what the learning rate is multiplied with, by the schedule of `args`.

    Raises:
        ConfigError[trainer-argument]: the schedule is no function of the step.
    """
    stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    more: Any = args.lr_scheduler_kwargs  # text was read by `TrainingArguments`
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer=stand_in,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=more,
    )
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        raise ConfigError(
            f"lr_scheduler_type = {SchedulerType(args.lr_scheduler_type).value} is no function of the "
            f"step alone.",
            code="trainer-argument",
        )
    return schedule.lr_lambdas[0]


class TrainerCompanion:
    """Calls a trainer's callbacks around every private step, and does what they ask for.

    What they may ask and cannot get, the end of an epoch before its last step, is refused
    (ConfigError[trainer-argument]).

    Args:
        trainer: a `PrivateTrainer`; its state, control and callbacks are used as `Trainer` uses them.
        folder: the run's folder.
        num_steps: of the plan.
        steps_per_epoch: of an expected pass over the data.
    """

    def __init__(self, trainer: Any, folder: Path, *, num_steps: int, steps_per_epoch: int) -> None:
        self._trainer, self._folder = trainer, folder
        self._steps_per_epoch = steps_per_epoch
        self._factor = rate_factor(trainer.args, num_steps)
        self._rates = [group["lr"] for group in trainer.optimizer.param_groups]
        self._began = False
        self._losses: list[float] = []
        self._sum_of_losses, self._num_losses = 0.0, 0
        self._logged = -1

    @property
    def began(self) -> bool:
        """Whether there was a step to take."""
        return self._began

    @property
    def mean_loss(self) -> float:
        """Mean training loss over steps, if it is shown, which is NOT private; else NaN."""
        return self._sum_of_losses / self._num_losses if self._num_losses else math.nan

    def before(self, stepper: Stepper) -> bool:
        """Set the step's learning rates; False once a callback has asked to stop."""
        trainer, step = self._trainer, stepper.num_steps
        if not self._began:
            self._began = True
            trainer.state.global_step = step
            self._call("on_train_begin")
        if trainer.control.should_training_stop:
            return False
        for group, rate in zip(stepper.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._factor(step)
        trainer.model.train()
        if step % self._steps_per_epoch == 0:
            self._call("on_epoch_begin")
        self._call("on_step_begin")
        return True

    def after(self, stepper: Stepper, loss: float | None) -> bool:
        """Tell the callbacks that a step is over; True if they ask for a checkpoint."""
        state, step = self._trainer.state, stepper.num_steps
        state.global_step, state.epoch = step, step / self._steps_per_epoch
        if loss is not None:
            self._losses.append(loss)
            self._sum_of_losses, self._num_losses = self._sum_of_losses + loss, self._num_losses + 1
        self._call("on_step_end")
        self._do_what_was_asked(stepper)
        save = self._trainer.control.should_save
        if step % self._steps_per_epoch == 0 or step == state.max_steps:
            self._trainer.control.should_save = False
            self._call("on_epoch_end")
            self._do_what_was_asked(stepper)
            save = save or self._trainer.control.should_save
        return save

    def saved(self, stepper: Stepper) -> None:
        """Tell the callbacks of a checkpoint."""
        self._call("on_save")

    def ended(self, metrics: dict[str, float]) -> None:
        """Log the run's figures and tell the callbacks of its end."""
        self._trainer.log(metrics)
        if self._began:
            self._call("on_train_end")

    def _call(self, event: str) -> None:
        trainer = self._trainer
        call = getattr(trainer.callback_handler, event)
        trainer.control = call(trainer.args, trainer.state, trainer.control)
        if trainer.control.should_epoch_stop:
            raise ConfigError(
                f"A callback set should_epoch_stop in {event}. Rows are drawn anew for every step, so an "
                "epoch is only a count of steps, and there is no rest of it to leave out: set "
                "should_training_stop to end the run. The steps so far are spent and kept.",
                code="trainer-argument",
            )

    def _do_what_was_asked(self, stepper: Stepper) -> None:
        trainer, step = self._trainer, stepper.num_steps
        if trainer.control.should_log and step != self._logged:
            self._logged = step
            shown = {"learning_rate": stepper.optimizer.param_groups[0]["lr"]}
            if isinstance(stepper, PrivateStep):
                shown |= spent(stepper.epsilon())
            if self._losses:  # shown on request only: NOT private
                shown["loss"] = sum(self._losses) / len(self._losses)
                self._losses = []
            trainer.log(shown)
        if trainer.control.should_evaluate:
            trainer.control.should_evaluate = False
            self._write_down(step, trainer.evaluate_for_callbacks())

    def _write_down(self, step: int, metrics: dict[str, float]) -> None:
        """The scores in the run's own metrics, for its report."""
        scores = {
            name: float(metrics[f"eval_{name}"])
            for name in ("loss", "accuracy")
            if isinstance(metrics.get(f"eval_{name}"), int | float)
        }
        if scores:
            append_line(
                self._folder / "metrics.jsonl", {"step": step, "split": "test", "weights": "last", **scores}
            )


def spent(report: EpsilonReport) -> dict[str, float]:
    """A ledger's epsilon as a log shows it; infinite in reproducible mode."""
    return {"epsilon": report.epsilon, "delta": report.delta}


def steps_of(args: TrainingArguments, num_units: int) -> tuple[int, int]:
    """(steps of the run, steps of an epoch), as `Trainer` counts them with the expected batch size."""
    expected = args.per_device_train_batch_size * args.gradient_accumulation_steps
    each = max(1, math.ceil(num_units / expected))
    return (args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * each)), each
