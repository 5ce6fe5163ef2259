"""What a private step checks before it begins: its settings, and that all ranks begin alike.

Room: train. May import torch, `reticent.{plan,dist}` and the floors below.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reticent.bounded import BoundedSum
from reticent.clipping import sensitivity
from reticent.dist import Ranks
from reticent.errors import ConfigError
from reticent.noise import NoiseSource, add_noise
from reticent.plan import Plan


def check_physical_batch_size(size: int) -> None:
    """Refuse a number of rows that is not a positive integer."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(
            f"physical_batch_size must be a positive integer, got {size!r}.", code="physical-batch-size"
        )


def check_noise(source: NoiseSource, plan: Plan) -> None:
    """Refuse noise that could not be added, before a step is spent on finding out."""
    if plan.noise_multiplier <= 0:
        raise ConfigError(
            "PrivateStep needs a plan with noise_multiplier > 0: without noise there is no privacy. To "
            "train without privacy use a plain torch loop, or epsilon=inf in a recipe.",
            code="no-noise",
        )
    if not isinstance(source, NoiseSource):
        raise ConfigError(
            f"noise must be a NoiseSource (private, normal), got {type(source).__name__}. Leave it out for "
            "a fresh cipher.",
            code="noise-source",
        )
    nothing = BoundedSum(total={}, bound=sensitivity(plan.clipping), norms=torch.empty(0))
    add_noise(nothing, noise_multiplier=plan.gradient_noise_multiplier, source=source)


def require_alike(
    ranks: Ranks,
    model: nn.Module,
    optimizer: Optimizer,
    plan: Plan,
    *,
    seed: int,
    physical_batch_size: int,
) -> None:
    """Refuse ranks that would not do the same.

    Raises:
        ConfigError[ranks-differ]: they differ in their plan, in names, shapes or dtypes of parameters and
            buffers, in the optimizer's class or settings, or in the seed; or, where each pass needs all
            ranks, in the physical batch size.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    ranks.agree("the plan", plan.describe())
    ranks.agree(
        "the model's parameters and buffers",
        [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in tensors],
    )
    ranks.agree("the optimizer and its settings", _described(optimizer, dict(model.named_parameters())))
    ranks.agree("seed", seed)
    if ranks.shards:
        ranks.agree("physical_batch_size", physical_batch_size)


def _described(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Its class, and every group's parameters (by name) and settings, as JSON values."""
    names = {id(p): name for name, p in params.items()}
    groups = [
        {k: [names.get(id(p)) for p in v] if k == "params" else repr(v) for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return {"class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", "groups": groups}
