"""What a request to train is made into: plan, model, optimizer, losses, the run's settings.

Room: recipes. May import torch, `reticent.{plan,train,optim}` and the floors below.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from reticent.clip import ClipEngine
from reticent.errors import ConfigError
from reticent.optim import Lamb, clip_units, decayed_sgd
from reticent.plan import Plan
from reticent.records import Budget
from reticent.train import ClipNorms, TrainSettings, largest_physical_batch_size, mix_seed

from ._clipping import clipping_of
from ._memory import measure_memory
from ._recipe import Request
from ._sampling import sampler_for
from ._training_config import TrainingConfig

if TYPE_CHECKING:
    from ._training import Losses, TrainingRecipe

_MEASURED_ROWS: Final = 32
_MOST_SCORED: Final = 1024


def asked_of(asked: Request) -> "tuple[TrainingRecipe, TrainingConfig]":
    """A training request's recipe and settings, as what they are."""
    assert isinstance(asked.config, TrainingConfig), "only training recipes have such settings"
    return cast("TrainingRecipe", asked.recipe), asked.config


def available(recipe: "TrainingRecipe", config: TrainingConfig) -> dict[str, int]:
    """The number of units that those to train on were chosen among, where it matters: public too."""
    found = recipe.num_available(config)
    return {} if found is None else {"num_available": found}


def plan_of(asked: Request) -> Plan:
    """The plan of a request; reads no data. With `epsilon = inf`, one with noise multiplier 0.

    Raises:
        AccountingError, ConfigError: no noise multiplier meets the budget.
    """
    recipe, config = asked_of(asked)
    sampler = sampler_for(config, num_examples=recipe.num_examples(config))
    clipping = clipping_of(config)
    if math.isinf(config.epsilon):
        return Plan(
            sampler=sampler,
            num_steps=config.num_steps,
            noise_multiplier=0.0,
            clipping=clipping,
            delta=config.delta,
            budget=None,
            unit=recipe.unit(config),
        )
    budget = Budget(epsilon=config.epsilon, delta=config.delta)
    if config.noise_multiplier is not None:
        return Plan(
            sampler=sampler,
            num_steps=config.num_steps,
            noise_multiplier=config.noise_multiplier,
            clipping=clipping,
            delta=config.delta,
            budget=budget,
            unit=recipe.unit(config),
        )
    return Plan.calibrate(
        budget=budget,
        sampler=sampler,
        num_steps=config.num_steps,
        clipping=clipping,
        unit=recipe.unit(config),
    )


def build_model(recipe: "TrainingRecipe", config: TrainingConfig) -> nn.Module:
    """The recipe's model, its first weights fixed by the public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(config.seed, "weights"))
        return recipe.build(config)


def private_optimizer_of(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """What updates the weights that are trained from the noised means of clipped gradients."""
    return optimizer_of(model, config, lr=config.lr, scale=config.gradient_scale)


def optimizer_of(model: nn.Module, config: TrainingConfig, *, lr: float, scale: float = 1.0) -> Optimizer:
    """What updates the weights that are trained, as the settings ask for it.

    Args:
        model: holds the weights.
        config: names the optimizer.
        lr: learning rate for gradients over `scale`.
        scale: only sgd depends on it, and `agc`.
    """
    decay = None if config.weight_decay is None else config.weight_decay * scale
    optimizer = _plain_optimizer(model, config, lr=lr / scale, decay=decay)
    return clip_units(optimizer, config.agc * scale) if config.agc else optimizer


def _plain_optimizer(
    model: nn.Module, config: TrainingConfig, *, lr: float, decay: float | None
) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    match config.optimizer:
        case "sgd":
            return decayed_sgd(
                trained,
                lr=lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=decay or 0.0,
            )
        case "adam":
            return Adam(trained, lr=lr)
        case "adamw":
            return AdamW(trained, lr=lr, weight_decay=0.01 if decay is None else decay)
        case "lamb":
            return Lamb(trained, lr=lr, weight_decay=decay or 0.0)


def losses_of(recipe: "TrainingRecipe", config: TrainingConfig) -> "Losses":
    """The recipe's losses, in the precision that the settings ask for."""
    losses = recipe.loss_per_example(config)
    if config.precision == "float32":
        return losses

    def in_half(model: nn.Module, rows: Any) -> Tensor:
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            return losses(model, rows)

    return in_half


def scored_at_once(recipe: "TrainingRecipe", config: TrainingConfig) -> int:
    """Test rows that are scored at once: inputs that a physical batch holds at most, 1024 of them at most."""
    return min(_MOST_SCORED, config.num_rows_at_once * recipe.inputs_each(config))


def _largest_batch(config: TrainingConfig) -> int:
    """Rows of a step that a run hardly ever exceeds."""
    expected = max(size for _, size in config.batch_sizes)
    return math.ceil(expected + 6 * math.sqrt(expected))


def step_memory(asked: Request) -> dict[str, int]:
    """Bytes that a private step takes, by what they are for: `measure_memory` on random rows, no data.

    Args:
        asked: the recipe and its settings; the rows are as many as one physical batch of it may hold.
    """
    recipe, config = asked_of(asked)
    model = build_model(recipe, config)
    largest = _largest_batch(config)
    losses = losses_of(recipe, config)
    rows = recipe.random_rows(config, min(config.num_rows_at_once, largest, recipe.num_examples(config)))
    with torch.random.fork_rng(devices=[]):
        return measure_memory(
            model,
            private_optimizer_of(model, config),
            lambda rows: losses(model, rows),
            rows,
            clipping=clipping_of(config),
            num_averages=config.num_averages,
            low_memory=config.low_memory,
        )


def with_physical_batch(asked: Request, *, say: Callable[[str], None] = lambda text: None) -> Request:
    """The request with a number for `physical_batch_size=auto`: what fits in the memory budget.

    Raises:
        ConfigError[memory-budget]: not even one row fits.
    """
    recipe, config = asked_of(asked)
    if config.physical_batch_size != "auto":
        return asked
    model = build_model(recipe, config)
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    norms = ClipNorms(clipping_of(config), sizes)
    size = largest_physical_batch_size(
        model,
        losses_of(recipe, config),
        recipe.random_rows(config, 1),
        memory_budget=None if config.memory_budget is None else int(config.memory_budget),
        largest=min(4096, _largest_batch(config)),
        engine=ClipEngine(
            model, clipping=norms.now(), method="ghost" if config.low_memory else "book-keeping"
        ),
    )
    say(f"physical_batch_size=auto: {size} rows at once")
    found = {"physical_batch_size": size, "memory_budget": None}
    chosen = {k: v for k, v in asked.chosen.items() if k != "memory_budget"} | {"physical_batch_size": size}
    return Request(recipe=recipe, config=config.model_copy(update=found), chosen=chosen)


def with_measured_norm(asked: Request, *, say: Callable[[str], None] = lambda text: None) -> Request:
    """The request with `max_norm` measured, where its settings leave that to the recipe.

    It becomes the median gradient norm of made-up rows under the first weights, two digits of it: no data are
    read.

    Raises:
        ConfigError[clip-norm]: made-up rows have no gradient, or one that is not finite.
    """
    recipe, config = asked_of(asked)
    if not recipe.measures_norm(config):
        return asked
    model = build_model(recipe, config)
    rows = recipe.random_rows(config, min(_MEASURED_ROWS, config.num_rows_at_once))
    losses = losses_of(recipe, config)
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed(config.seed, "max_norm"))
        norms = ClipEngine(model, max_norm=1.0).clipped_sum(lambda given: losses(model, given), rows).norms
    median = float(norms.median())
    if not (math.isfinite(median) and median > 0):
        raise ConfigError(
            f"The median gradient norm of made-up rows is {median:g}, which no max_norm follows from: set "
            "max_norm yourself.",
            code="clip-norm",
        )
    found = float(f"{median:.2g}")
    say(f"max_norm: {found:g}, the median gradient norm of made-up rows")
    return replace(asked, config=config.model_copy(update={"max_norm": found}))


def settings_of(config: TrainingConfig) -> TrainSettings:
    """Schedule, average, evaluation and checkpoints, as the settings ask for them."""
    return TrainSettings(
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        ema=config.ema,
        polyak=config.polyak,
        ema_start=config.ema_start,
        lr_decay_steps=0 if config.lr_decay == "none" else config.num_steps,
        lr_decay="cosine" if config.lr_decay == "cosine" else "linear",
        lr_warmup_steps=round(config.lr_warmup * config.num_steps),
        seed=config.seed,
        compile=config.compile,
        low_memory=config.low_memory,
        show_loss=config.show_loss,
        show_norms=config.show_norms,
        log=config.log,
    )
