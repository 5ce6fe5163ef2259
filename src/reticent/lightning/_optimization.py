"""What stands where Lightning runs `training_step`, backward and optimizer: one private step.

Room: lightning. Imports lightning; may import torch and `reticent.{train,plan,errors}`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from torch import Tensor, nn

from reticent.errors import ConfigError

from ._checks import kept_by, updates_of_metrics


class PrivateOptimization(_AutomaticOptimization):
    """Lightning's automatic optimization, whose every run is one private step.

    Args:
        trainer: whose loop it belongs to.
        take: takes one step, given a loss for each example.
    """

    def __init__(self, trainer: Trainer, take: Callable[[Callable[[nn.Module, Any], Tensor]], None]) -> None:
        super().__init__(trainer)
        self._take = take

    def run(self, optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Any]:
        """Take a step; nothing computed from its rows is handed on."""
        module, more = self.trainer.lightning_module, list(kwargs.values())[1:]
        self.optim_progress.optimizer.step.increment_ready()
        self._take(self._loss_per_example(module, more))
        self.optim_progress.optimizer.step.increment_completed()
        return {}

    def _loss_per_example(
        self, module: LightningModule, more: list[Any]
    ) -> Callable[[nn.Module, Any], Tensor]:
        def loss(model: nn.Module, rows: Any) -> Tensor:
            with self.trainer.precision_plugin.train_step_context(), _silent(module):
                made = module.training_step(rows, *more)
            losses = made.get("loss") if isinstance(made, dict) else made
            if not isinstance(losses, Tensor) or losses.dim() != 1:
                shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(made).__name__
                raise ConfigError(
                    f"{type(module).__name__}.training_step must return one loss for each row, shape (B,), "
                    f"and returned {shape}. Let the loss not average over the batch, e.g. "
                    'cross_entropy(..., reduction="none").',
                    code="lightning-module",
                )
            return losses

        return loss


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """A block in which the module sees private rows: it may not log, update a metric, or keep anything."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConfigError(
            f"{type(module).__name__}.training_step calls self.log or self.log_dict: what it computes from "
            "training rows is not private. Log in validation_step, on public rows, and epsilon is logged by "
            "itself.",
            code="lightning-module",
        )

    before, had = updates_of_metrics(module), kept_by(module)
    module.__dict__["log"] = module.__dict__["log_dict"] = refuse
    try:
        yield
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]
    updated = [name for name, n in updates_of_metrics(module).items() if n != before.get(name)]
    if updated:
        raise ConfigError(
            f"{type(module).__name__}.training_step updates the metric '{updated[0]}' with training rows: "
            "its value is not private. Leave it out, or measure on public rows in validation_step.",
            code="lightning-module",
        )
    has = kept_by(module)
    kept = sorted(name for name in has.keys() | had.keys() if has.get(name) != had.get(name))
    if kept:
        raise ConfigError(
            f"{type(module).__name__}.training_step changes '{kept[0]}' of the module: what it keeps of "
            "training rows is not private, nor is what is logged of it later, nor how often it was called. "
            "Keep nothing there, make caches in __init__, and count steps by self.global_step.",
            code="lightning-module",
        )
