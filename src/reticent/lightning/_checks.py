"""What a module, its callbacks and its loader may not do in private training.

Room: lightning. Imports lightning; may import torch and `reticent.{train,errors}`.
"""

import inspect
from collections import deque
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from reticent.errors import ConfigError
from reticent.train import UserRows

# Hooks that automatic optimization calls where gradients are, and a private step does not.
_NEVER_CALLED: Final = (
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_after_backward",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "optimizer_step",
    "optimizer_zero_grad",
)
# Hooks that change batches on their way: rows reach `training_step` without passing there.
_TRANSFER: Final = ("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device")
_MOST: Final = 1000  # items of a container that are looked at one by one
_CALLBACKS: Final = {
    "BatchSizeFinder": "it trains to try sizes; rows at once are physical_batch_size",
    "LearningRateFinder": "every rate it tries would be spent in the ledger: use `reticent sweep`",
    "GradientAccumulationScheduler": "a step takes the plan's whole batch",
    "StochasticWeightAveraging": "it reads training rows without noise, for batch statistics",
    "DeviceStatsMonitor": "memory and time tell how many rows were drawn",
    "ThroughputMonitor": "rows per second tell how many were drawn",
    "ModelPruning": "the parameters must stay the same while a run goes on",
    "OnExceptionCheckpoint": "a checkpoint in the middle of a step has no place in the ledger",
}


def check_module(module: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Refuse a module that takes part in optimization itself.

    Raises:
        ConfigError[lightning-module]: names what it has.
    """
    problems = []
    if not module.automatic_optimization:
        problems.append("automatic_optimization = False: it would call backward and step itself")
    problems += [f"{name} is never called" for name in _overridden(module, LightningModule, _NEVER_CALLED)]
    for owner, kind in ((module, LightningModule), (datamodule, LightningDataModule)):
        problems += [
            f"{type(owner).__name__}.{name}: rows do not pass there. Give PrivateTrainer(transform=...)"
            for name in (_overridden(owner, kind, _TRANSFER) if owner is not None else ())
        ]
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        problems.append("training_step(dataloader_iter): there is no loader whose batches it could take")
    if problems:
        raise ConfigError(
            f"{type(module).__name__} cannot be trained privately: {'; '.join(problems)}. Gradients are "
            "clipped and noised inside one step, and nobody sees them before.",
            code="lightning-module",
        )


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that wait for gradients, change training, or measure what is private.

    Raises:
        ConfigError[lightning-argument]: names callback and reason.
    """
    problems = []
    for callback in callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in _CALLBACKS:
                problems.append(f"{type(callback).__name__}: {_CALLBACKS[kind.__name__]}")
        problems += [
            f"{type(callback).__name__}.{name} is never called: use on_train_batch_end"
            for name in _overridden(callback, Callback, _NEVER_CALLED)
        ]
    if problems:
        raise ConfigError(f"Callbacks: {'; '.join(problems)}.", code="lightning-argument")


def rows_of(given: Any) -> tuple[Any, int | None]:
    """(data set, rows at once) of a training loader; a data set itself says nothing of the latter.

    Raises:
        ConfigError[lightning-argument]: it is no data set and no plain loader.
    """
    if not isinstance(given, DataLoader):
        if isinstance(given, UserRows):
            raise ConfigError(
                "Users as units: training_step is given rows. Use PrivateStep in a loop of your own, with "
                "over_users(loss).",
                code="lightning-argument",
            )
        return given, None
    named = {
        "batch_sampler": type(given.batch_sampler) not in (BatchSampler, type(None)),
        "sampler": type(given.sampler) not in (RandomSampler, SequentialSampler),
        "collate_fn": given.collate_fn is not default_collate,
        "drop_last": given.drop_last,
        "generator": given.generator is not None,
        "worker_init_fn": given.worker_init_fn is not None,
    }
    problems = [name for name, is_set in named.items() if is_set]
    if isinstance(given.sampler, RandomSampler) and given.sampler.replacement:
        problems.append("replacement")
    if problems or given.batch_size is None:
        raise ConfigError(
            f"The training DataLoader sets {', '.join(problems) or 'no batch_size'}: steps are drawn by the "
            "plan, row by row. Give the data set itself, with items that are tensors, numbers, or flat "
            "tuples or dicts of them.",
            code="lightning-argument",
        )
    return given.dataset, given.batch_size


def updates_of_metrics(module: nn.Module) -> dict[str, int]:
    """How often each torchmetrics metric of the module has seen a batch."""
    counts = {name: getattr(part, "_update_count", None) for name, part in module.named_modules()}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def kept_by(module: nn.Module) -> dict[str, Any]:
    """What a LightningModule, and those inside it, hold in attributes of the user's: by name, a mark of each.

    Two marks differ if a list grew, a number or a tensor is another one, or a meter in an attribute was told
    something. Not looked at: what layers hold beside buffers, whose changes the clip engine refuses (many
    keep tables there that depend on sizes alone); entries of arrays; what lies deeper than three levels.
    """
    return {
        f"{name}.{attribute}" if name else attribute: _mark(value, 3)
        for name, part in module.named_modules()
        if isinstance(part, LightningModule)
        for attribute, value in vars(part).items()
        if attribute not in _of_lightning()
    }


@cache
def _of_lightning() -> frozenset[str]:
    return frozenset(vars(LightningModule()))


def _mark(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    inside: Iterable[Any] = ()
    if isinstance(value, nn.Module):
        inside = (getattr(value, "_update_count", None),)
    elif isinstance(value, Mapping):
        inside = (*value.keys(), *value.values()) if len(value) <= _MOST else (len(value),)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        inside = value if len(value) <= _MOST else (len(value),)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        inside = tuple(vars(value).values())
    return (id(value), *(_mark(item, depth - 1) for item in inside)) if depth else id(value)


def _overridden(thing: Any, kind: type, names: Iterable[str]) -> list[str]:
    """Which of the hooks are not those of `kind`, by class or on the object itself."""
    found = []
    for name in names:
        plain = getattr(kind, name, None)
        hook = getattr(thing, name, None)
        if hook is not None and getattr(hook, "__func__", hook) is not plain:
            found.append(name)
    return found
