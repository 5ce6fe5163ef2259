"""A training run: what it is made of, and the private run itself.

Room: recipes. May import torch, rich, `reticent.{plan,train,dist}` and the floors below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.dist import Ranks, Shards, TensorParallel, together
from reticent.errors import ReticentError
from reticent.plan import Plan
from reticent.train import Evaluation, RunDescription, train

from ._going_on import users_of
from ._memory import clipping_costs
from ._origin import origin_of
from ._parts import (
    asked_of,
    available,
    build_model,
    losses_of,
    plan_of,
    private_optimizer_of,
    scored_at_once,
    settings_of,
)
from ._recipe import Request
from ._training_config import TrainingConfig

if TYPE_CHECKING:
    from ._training import Material, TrainingRecipe


# A run's result as JSON; and, of each kind of weights, what its evaluation kept of every test row.
Ended: TypeAlias = tuple[dict[str, Any], Mapping[str, Mapping[str, Tensor]]]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Job:
    """A request with everything made that it needs."""

    recipe: "TrainingRecipe"
    config: TrainingConfig
    plan: Plan
    model: nn.Module
    optimizer: Optimizer
    material: "Material"
    evaluation: Evaluation
    description: RunDescription

    @classmethod
    def prepare(
        cls,
        asked: Request,
        material: "Material",
        *,
        ranks: Ranks,
        plan: Plan | None = None,
        fallback_from: str | None,
        unloaded: bool = False,
    ) -> "Job":
        """All of it from a request and its data.

        Args:
            asked: the request.
            material: its data.
            ranks: the processes that train together.
            plan: of a run that goes on; None: as the settings say.
            fallback_from: recipe whose data could not be reached.
            unloaded: whether the model's weights are overwritten by a checkpoint's, and not read here.
        """
        recipe, config = asked_of(asked)
        with together(ranks):
            model = build_model(recipe, recipe.unloaded(config) if unloaded else config)
        if isinstance(ranks, Shards | TensorParallel):
            ranks.shard(model)
        optimizer = private_optimizer_of(model, config)
        if isinstance(ranks, TensorParallel):  # some parameters are slices, others whole: not in one list
            for group in optimizer.param_groups:
                group |= {"foreach": False} if "foreach" in group else {}
        origin = {} if fallback_from is None else {"fallback_from": fallback_from}
        return cls(
            recipe=recipe,
            config=config,
            plan=plan_of(asked) if plan is None else plan,
            model=model,
            optimizer=optimizer,
            material=material,
            evaluation=Evaluation(
                dataset=material.test,
                scores=recipe.scores(config),
                batch_size=scored_at_once(recipe, config),
                kept=recipe.kept,
            ),
            description=RunDescription(
                recipe=recipe.name,
                config=config.public_dict(),
                data={**material.about, **available(recipe, config), **users_of(config), **origin},
                origin=origin_of(
                    recipe.begins_with(config), about=material.about, data=config.model_dump().get("data")
                ),
            ),
        )


def train_private(job: Job, out: Path, console: Console | None, ranks: Ranks) -> Ended:
    """The whole private run."""
    config = job.config
    for warning in job.plan.warnings():
        sayer(console)(f"warning: {warning}")
    done = train(
        job.model,
        job.optimizer,
        plan=job.plan,
        dataset=job.material.train,
        loss_per_example=losses_of(job.recipe, job.config),
        out=out,
        transform=job.recipe.transform(config),
        evaluation=job.evaluation,
        settings=settings_of(config),
        physical_batch_size=config.num_rows_at_once,
        noise_seed=config.noise_seed,
        description=replace(job.description, layers=_layers(job, sharded=ranks.shards)),
        console=console,
        ranks=ranks,
    )
    return done.to_dict(), done.kept


def _layers(job: Job, *, sharded: bool) -> Sequence[Mapping[str, Any]]:
    """What clipping each parameter costs, on made-up rows; nothing if compiled or sharded."""
    if job.config.compile or sharded:
        return ()
    losses = losses_of(job.recipe, job.config)
    try:
        rows = job.recipe.random_rows(job.config, 2)
        with torch.random.fork_rng():
            return clipping_costs(
                job.model,
                lambda given: losses(job.model, given),
                rows,
                clipping=job.plan.clipping,
                low_memory=job.config.low_memory,
            )
    except ReticentError:  # what cannot be clipped is refused by the run itself, which says why
        return ()


def sayer(console: Console | None) -> Callable[[str], None]:
    """What shows a line that matters; silent without a console."""
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, style="bold yellow", markup=False, highlight=False)
