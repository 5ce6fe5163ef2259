"""A large private run imitated at small batches: as much noise in every mean gradient, for less work.

Room: recipes. May import torch, `reticent.{plan,sample}` and the floors below.

In training, noise matters through sigma C / B, its size in the mean gradient, and the number of steps T. With
a batch b in the place of B and a noise multiplier sigma b / B, at the same C, T and learning rate, a run goes
through the same noise, and what serves it serves the large one as well, roughly [1]. It is NOT private in the
way that the large one is: its own epsilon, which its ledger states, is far larger.

Sources:
    [1] Sander, Stock, Sablayrolles 2022, arXiv:2210.03403 (TAN without a burn).
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from reticent.clipping import AdaptiveClipping
from reticent.errors import ConfigError, DataError
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import write_json

from ._parts import plan_of
from ._recipe import Request
from ._run import describe, run
from ._training import TrainingRecipe
from ._training_config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A small run, and the large one that it stands for.

    Args:
        small: what to train.
        large: what was asked for, its noise as planned.
    """

    note: ClassVar[str] = (
        "A simulation is NOT private by itself: its own epsilon is large. What was chosen by it depends on "
        "the data, and is in no plan's epsilon. Train the plan it stands for."
    )
    small: Request
    large: Request

    def describe(self) -> dict[str, Any]:
        """Both plans, as JSON values; reads no data and spends nothing."""
        return {
            "recipe": self.large.recipe.name,
            "private": False,
            "note": self.note,
            "simulation": describe(self.small),
            "stands_for": describe(self.large),
            "command": self.command,
            **({"command_on_all_rows": whole} if (whole := self.command_on_all_rows) else {}),
        }

    def check(self, result: Mapping[str, Any]) -> None:
        """Refuse the result of another recipe, which ran because the data could not be reached.

        Raises:
            DataError[data-sources]: as said.
        """
        if result["recipe"] != self.small.recipe.name:
            raise DataError(
                f"The data of '{self.small.recipe.name}' could not be reached. '{result['recipe']}' ran "
                "instead, which simulates nothing. Make the data reachable.",
                code="data-sources",
            )

    @property
    def command(self) -> str:
        """What trains the large run."""
        return self._command(self.large.chosen)

    @property
    def command_on_all_rows(self) -> str | None:
        """The same without `validation`, so on all training rows and scored on the test rows; else None."""
        if not self.large.chosen.get("validation"):
            return None
        return self._command({k: v for k, v in self.large.chosen.items() if k != "validation"})

    def _command(self, chosen: Mapping[str, Any]) -> str:
        sets = [["--set", f"{name}={_written(value)}"] for name, value in chosen.items()]
        return shlex.join(["reticent", "train", self.large.recipe.name, *chain.from_iterable(sets)])


def simulation(asked: Request, *, batch_size: float) -> Simulation:
    """The run at small batches that has the same noise in its mean gradients.

    Args:
        asked: the large run.
        batch_size: expected batch size of the small one.

    Returns:
        Both. The small run's budget is its own epsilon, as its account says it.

    Raises:
        ConfigError[simulation]: the batch is not smaller, the recipe does not train by gradient steps, the
            run has no noise, its clipping norm adapts, or at so small a batch nothing bounds epsilon.
    """
    recipe, config = asked.recipe, asked.config
    if not isinstance(recipe, TrainingRecipe) or not isinstance(config, TrainingConfig):
        raise _refused(
            f"'{recipe.name}' does not train by gradient steps, so it has no batch to make smaller"
        )
    plan = plan_of(asked)
    if plan.noise_multiplier == 0:
        raise _refused("a run without privacy has no noise to keep: set an epsilon")
    if config.sampler != "poisson":
        raise _refused(f"only Poisson batches can be made smaller, and sampler is {config.sampler}")
    if config.batch_schedule is not None:
        raise _refused("batch_schedule changes the batch within the run: simulate one size")
    if isinstance(plan.clipping, AdaptiveClipping):
        raise _refused("a clipping norm that adapts counts a batch's examples, and follows another path")
    if not 0 < batch_size < plan.expected_batch_size:
        raise _refused(
            f"the simulation's batch must be above 0 and below the run's, {plan.expected_batch_size:g}; got "
            f"{batch_size:g}"
        )
    small = replace(
        plan,
        sampler=PoissonSampler(num_examples=recipe.num_examples(config), expected_batch_size=batch_size),
        noise_multiplier=plan.noise_multiplier * batch_size / plan.expected_batch_size,
        budget=None,
    )
    settings = {
        "expected_batch_size": float(batch_size),
        "noise_multiplier": small.noise_multiplier,
        "epsilon": _own_epsilon(small),
    }
    request = Request(
        recipe=recipe, config=config.model_copy(update=settings), chosen={**asked.chosen, **settings}
    )
    return Simulation(small=request, large=asked)


def simulate(
    found: Simulation, *, out: Path, console: Console | None = None, data: Any = None
) -> dict[str, Any]:
    """Train the small run, and say what it stands for; both are kept in its folder's `simulation.json`.

    Args:
        found: the two runs.
        out: folder of the small run, new or empty.
        console: where to show progress.
        data: as for `reticent.recipes.run`.

    Returns:
        As `Simulation.describe`, with the small run's `result`.

    Raises:
        ReticentError: as `reticent.recipes.run`.
    """
    said = found.describe()  # before anything is spent: an error here must not cost a run
    result = run(found.small, out=out, console=console, data=data)
    found.check(result)
    said |= {"result": result}
    write_json(out / "simulation.json", said)
    return said


def _own_epsilon(small: Plan) -> float:
    epsilon = small.epsilon().epsilon
    if not epsilon < 1e9:
        raise _refused(
            f"at a noise multiplier of {small.noise_multiplier:.3g} no useful epsilon can be stated for the "
            "simulation itself: take a larger batch"
        )
    return epsilon


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _refused(why: str) -> ConfigError:
    return ConfigError(f"Nothing can be simulated: {why}.", code="simulation")
