"""What a recipe would take on given hardware, from shapes alone: neither weights nor data are read.

Room: recipes. May import torch, `reticent.{cost,dist,plan}`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor, nn

from reticent.cost import (
    Features,
    Hardware,
    Held,
    Parallel,
    Sliced,
    check_ranks,
    estimate,
    features_of,
    on_meta,
    shapes_alone,
)
from reticent.dist import blocks_of, sliced_shapes
from reticent.errors import ConfigError

from ._config import make_config
from ._parts import build_model, losses_of, plan_of
from ._ranks import require_several
from ._recipe import Request
from ._training import TrainingRecipe
from ._training_config import TrainingConfig

# Settings that would read weights, and what takes their place: shapes do not depend on them.
_WITHOUT_WEIGHTS: Final = {"pretrained": False, "start_from": None, "init": "random"}
_STATES: Final = {"sgd": 0, "adam": 2, "adamw": 2, "lamb": 2}  # float32 numbers a trained parameter
_BYTES: Final = 4


def at_scale(
    asked: Request,
    hardware: Hardware,
    *,
    ranks: int = 1,
    parallel: Parallel = "none",
    num_replicas: int = 1,
) -> dict[str, Any]:
    """Memory of each rank, time of a step and device hours of a recipe.

    Args:
        asked: the recipe and its settings, with a number for `physical_batch_size`.
        hardware: a rank's device.
        ranks: processes, each with such a device.
        parallel: how they share the work.
        num_replicas: copies of the model; see `reticent.dist.Shards`.

    Returns:
        JSON values: the `Estimate`, and what it was made from.

    Raises:
        ConfigError[hardware]: the recipe does not train by gradient steps, or by two backwards or compiled
            ones, its forward pass needs numbers and not only shapes, or the ranks do not fit.
        ConfigError[num-replicas]: see `estimate`.
        ConfigError[tensor-parallel]: the model cannot be cut; see `reticent.dist.TensorParallel.shard`.
        ConfigError[several-ranks, config]: the run itself would be refused.
    """
    recipe, config = asked.recipe, asked.config
    if not isinstance(recipe, TrainingRecipe) or not isinstance(config, TrainingConfig):
        raise _refused(f"the recipe '{recipe.name}' does not train by gradient steps")
    check_ranks(ranks, parallel, num_replicas)
    require_several(make_config(recipe.config, {**asked.chosen, "parallel": parallel}), ranks)
    if other := [name for name in ("low_memory", "compile") if getattr(config, name)]:
        raise _refused(f"hardware is measured in one eager backward, and {other[0]} is true: leave it out")
    known = {name: value for name, value in _WITHOUT_WEIGHTS.items() if hasattr(config, name)}
    config = config.model_copy(update=known)
    plan = plan_of(asked)
    units = max(
        1,
        min(config.num_rows_at_once, math.ceil(plan.largest_batch_size / (1 if parallel == "tp" else ranks))),
    )
    try:
        with torch.device("meta"):
            model = build_model(recipe, config)
        held = _held(model, config)
        batch, sliced = _batch(recipe, config, model, units, ranks if parallel == "tp" else 1)
    except (NotImplementedError, RuntimeError) as error:
        said = " ".join(str(error).split())[:160]
        raise _refused(f"its forward pass needs numbers, and shapes are all there is ({said})") from error
    found = estimate(
        plan,
        held,
        batch,
        hardware,
        ranks=ranks,
        parallel=parallel,
        num_replicas=num_replicas,
        sliced=sliced,
    )
    return {
        **asdict(found),
        "ranks": ranks,
        "parallel": parallel,
        "num_replicas": num_replicas,
        "physical_batch_size": units,
        "num_parameters": held.num_parameters,
        "num_trained": held.num_trained,
        "operations_per_step": batch.operations / units * plan.mean_batch_size * (ranks if sliced else 1),
        "hardware": hardware.model_dump(),
    }


def _batch(
    recipe: TrainingRecipe, config: TrainingConfig, model: nn.Module, units: int, slices: int
) -> tuple[Features, Sliced | None]:
    """What a physical batch asks for; of several slices, of a model that is cut here, and what a rank has."""
    rows, losses = on_meta(recipe.random_rows(config, units)), losses_of(recipe, config)
    shapes = sliced_shapes(model, slices) if slices > 1 else None
    features = features_of(lambda: losses(model, rows), num_units=units)
    if shapes is None:
        return features, None
    with shapes_alone():
        sent = shapes.sent(lambda: losses(model, rows))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return features, Sliced(
        num_trained=sum(trained.values()),
        num_whole=sum(n for name, n in trained.items() if name in shapes.whole),
        parameter_bytes=_num_bytes([*model.parameters(), *model.buffers()]),
        sent=sent,
    )


def _held(model: nn.Module, config: TrainingConfig) -> Held:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = _STATES[config.optimizer] + (config.optimizer == "sgd" and config.momentum > 0)
    return Held(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trained=trained,
        parameter_bytes=_num_bytes([*model.parameters(), *model.buffers()]),
        optimizer_bytes=_BYTES * states * trained,
        num_averages=config.num_averages,
        largest_part=_largest_part(model),
    )


def _largest_part(model: nn.Module) -> int:
    """Bytes of the largest block, or of what no block holds, which is put together as one."""
    blocks = [list(block.parameters()) for block in blocks_of(model)]
    inside = {id(p) for block in blocks for p in block}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return max(_num_bytes(part) for part in [*blocks, rest])


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _refused(why: str) -> ConfigError:
    return ConfigError(f"What it would take on hardware cannot be estimated: {why}.", code="hardware")
