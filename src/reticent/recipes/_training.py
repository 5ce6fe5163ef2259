"""Recipes that train by private gradient steps: what each of them says, and how all of them run.

Room: recipes. May import torch, rich, `reticent.{plan,train,data}` and the floors below.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from torch import Tensor, nn

from reticent.account import Segments
from reticent.audit import Inputs
from reticent.dist import Ranks, together
from reticent.errors import DataError
from reticent.plan import ROW, Plan
from reticent.train import (
    Transform,
    check_tracking,
    finite,
    has_checkpoint,
    load_tensors,
    new_folder,
    removed_if_empty,
    resume,
    write_json,
)

from ._config import make_config, restore_config
from ._going_on import as_chosen, check_unedited, finished
from ._job import Ended, Job, sayer, train_private
from ._origin import refuse_same_data
from ._parts import (
    asked_of,
    available,
    build_model,
    losses_of,
    plan_of,
    settings_of,
    with_measured_norm,
    with_physical_batch,
)
from ._plain_run import resume_plain, train_plain, train_twin
from ._ranks import fetched_by, ranks_of
from ._reader import adapter_sha256, weights_sha256
from ._recipe import Recipe, Request
from ._table import recipes
from ._training_config import TrainingConfig

Losses = Callable[[nn.Module, Any], Tensor]
Scores = Callable[[nn.Module, Any], dict[str, Tensor]]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Material:
    """What a training recipe reads, checked and ready.

    Args:
        train: rows to train on, in any form that `reticent.train` takes.
        test: held-out rows; what is measured on them is published.
        about: name, source, licence and the like, for the run's description; nothing private.
    """

    train: Any
    test: Any
    about: Mapping[str, Any]


class TrainingRecipe(Recipe):
    """A recipe that trains a model by private gradient steps through `reticent.train`.

    Attributes:
        config: the type of its settings.
        fallback: recipe to take, loudly, if no source of the data can be reached.
        strange: what `strange_rows` are; None: there are none, and an audit mislabels made-up rows.
        holding_out: how a person has training rows scored in the test rows' place; None: there is no way.
        kept: names of `scores` that are no scores; all test rows' values come to `assess`.
    """

    config: type[TrainingConfig]
    fallback: str | None = None
    strange: Inputs | None = None
    holding_out: ClassVar[str | None] = None
    kept: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def num_examples(self, config: Any) -> int:
        """Number of privacy units in the training set: a public constant."""

    def unit(self, config: Any) -> str:
        """What `num_examples` and `expected_batch_size` count, and whom epsilon speaks of."""
        return ROW

    def inputs_each(self, config: Any) -> int:
        """The most inputs of the network that one of `physical_batch_size` is: its views, or its rows."""
        return 1

    def num_available(self, config: Any) -> int | None:
        """Units that those to train on were chosen among, by a rule that looks at how many there are.

        That number is then a public constant too, beside the plan's. None: all take part.
        """
        return None

    @abstractmethod
    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Any:
        """Read the data set.

        Raises:
            DataError[data-sources]: no source of it can be reached.
        """

    @abstractmethod
    def prepare(self, config: Any, fetched: Any) -> Material:
        """Check what was fetched, and make rows of it.

        Raises:
            DataError: whatever is wrong with it.
        """

    @abstractmethod
    def build(self, config: Any) -> nn.Module:
        """The model, its random weights from torch's global generator."""

    @abstractmethod
    def random_rows(self, config: Any, num_rows: int) -> Any:
        """Made-up rows in the shape of real ones, as a transform leaves them: for memory and audits."""

    def strange_rows(self, config: Any, num_rows: int) -> Any:
        """Made-up rows unlike the others, which a model can only remember: an audit's canaries."""
        raise NotImplementedError(f"'{self.name}' has no strange rows")

    @abstractmethod
    def loss_per_example(self, config: Any) -> Losses:
        """(model, rows) -> each row's loss, shape (B,)."""

    @abstractmethod
    def scores(self, config: Any) -> Scores:
        """(model, rows) -> name -> each row's score, shape (B,), averaged over the test rows."""

    def transform(self, config: Any) -> Transform | None:
        """What changes the training rows of each chunk, row by row, e.g. augments them; None for nothing."""
        return None

    def measures_norm(self, config: Any) -> bool:
        """Whether a run begins with measuring `max_norm` on made-up rows."""
        return False

    def begins_with(self, config: Any) -> Path | None:
        """File or folder of the weights that a run begins with, if they are not random or known ones."""
        return None

    def unloaded(self, config: Any) -> Any:
        """Settings of the same model for who loads all its weights: without those that a run begins with.

        A run that goes on from a checkpoint builds with these, so the first weights need not be there any
        more. The settings as they are, where a run needs its first weights again at its end.
        """
        return config

    def assess(self, config: Any, model: nn.Module, test: Any, kept: Mapping[str, Tensor]) -> dict[str, Any]:
        """More of the trained model on the public test rows than means over rows; as JSON values.

        Args:
            config: the settings.
            model: with the weights that the run's scores belong to.
            test: the rows.
            kept: what these weights' evaluation kept of them, in their order: nothing is scored twice.
        """
        return {}

    def check(self, config: Any) -> None:
        """Refuse settings that only the network shows to be ignored: of a plan, and before a run reads data.

        Not asked where a run goes on or is read again: what an older version let pass stays usable.

        Raises:
            ConfigError[config]: as said.
        """

    def finish(
        self, config: Any, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        """What a run leaves beside its weights; called at the end, with the trained model.

        Returns:
            More for the run's result, as JSON values.
        """
        return {}

    def describe(self, asked: Request) -> dict[str, Any]:
        self.check(asked.config)
        plan = plan_of(asked)
        epsilon = math.inf if asked.config.noise_seed is not None else plan.epsilon().epsilon
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "num_steps": plan.num_steps,
            "sampler": plan.sampler.scheme.value,
            "expected_batch_size": plan.mean_batch_size,
            **({"stages": stages} if (stages := plan.stages()) else {}),
            "neighbouring_relation": str(plan.relation),
            "unit": plan.unit,
            **available(*asked_of(asked)),
            **({"max_norm": None} if self.measures_norm(asked.config) else {}),  # a run measures it
            **({"chosen": dict(reasons)} if (reasons := self.reasons(asked)) else {}),
        }

    def spends(self, asked: Request) -> Segments:
        return plan_of(asked).segments()

    def run(self, asked: Request, *, out: Path, console: Console | None, data: Any = None) -> dict[str, Any]:
        check_tracking(asked_of(asked)[1].log)
        self.check(asked.config)
        with ranks_of(asked_of(asked)[1]) as ranks:
            out = Path(ranks.tell(str(out)))  # a name of the time may be another on each rank
            ranks.first(lambda: new_folder(out))
            with removed_if_empty(out) if ranks.leads else nullcontext():
                asked, data, replaced = _with_data(asked, data, console, ranks)
                with together(ranks):
                    asked = with_physical_batch(asked, say=sayer(console))
                    asked = with_measured_norm(asked, say=sayer(console))
                    material = _prepared(asked, data)
                norm = ranks.tell(asked_of(asked)[1].max_norm)  # each rank may have measured another
                asked = replace(asked, config=asked.config.model_copy(update={"max_norm": norm}))
                job = Job.prepare(asked, material, ranks=ranks, fallback_from=replaced)
                plain = math.isinf(job.config.epsilon)
                ended = train_plain(job, out, console) if plain else train_private(job, out, console, ranks)
                return ranks.first(lambda: _conclude(job, out, ended, console, ranks)) or ended[0]

    def go_on(
        self, folder: Path, *, about: Mapping[str, Any], console: Console | None, data: Any = None
    ) -> dict[str, Any]:
        config = restore_config(self.config, about["config"])
        asked = Request(recipe=self, config=config, chosen={})
        plan = None if about["plan"] is None else Plan.from_dict(about["plan"])
        check_unedited(
            folder,
            self.num_examples(config),
            config,
            plan,
            written=about["settings"],
            settings=settings_of(config),
            unit=self.unit(config),
            data=about["data"],
        )
        done = finished(folder, config, plan, run_id=about["run_id"])
        if done is not None:
            return done
        with ranks_of(asked_of(asked)[1]) as ranks:
            if data is None:
                data = fetched_by(ranks, self, config, console)
            with together(ranks):
                material = _prepared(asked, data)
            origin = about["data"].get("fallback_from")
            overwritten = has_checkpoint(folder) and not config.twin  # which begins with the same weights
            job = Job.prepare(
                asked, material, ranks=ranks, plan=plan, fallback_from=origin, unloaded=overwritten
            )
            if math.isinf(config.epsilon):
                ended = resume_plain(job, folder, console)
            else:
                done = resume(
                    job.model,
                    job.optimizer,
                    dataset=job.material.train,
                    loss_per_example=losses_of(self, config),
                    out=folder,
                    transform=self.transform(config),
                    evaluation=job.evaluation,
                    console=console,
                    ranks=ranks,
                )
                ended = done.to_dict(), done.kept
            return ranks.first(lambda: _conclude(job, folder, ended, console, ranks)) or ended[0]


def _prepared(asked: Request, fetched: Any) -> Material:
    recipe, config = asked_of(asked)
    material = recipe.prepare(config, fetched)
    begins_with = recipe.begins_with(config)
    if begins_with is not None:
        refuse_same_data(begins_with, about=material.about, data=config.model_dump().get("data"))
    return material


def _with_data(
    asked: Request, data: Any, console: Console | None, ranks: Ranks
) -> tuple[Request, Any, str | None]:
    """The data set; or, loudly, the fallback recipe with its own, if no source can be reached."""
    if data is not None:
        return asked, data, None
    say = sayer(console)
    recipe, config = asked_of(asked)
    try:
        return asked, fetched_by(ranks, recipe, config, console), None
    except DataError as e:
        new = instead_of(asked) if e.code == "data-sources" and ranks.size == 1 else None
        if new is None:
            raise
        instead, instead_config = asked_of(new)
        left_out = sorted(asked.chosen.keys() - new.chosen.keys())
        say(str(e.args[0]))
        say(
            f"ATTENTION: no source of the data of '{recipe.name}' could be reached. Running the recipe "
            f"'{instead.name}' on embedded data INSTEAD of '{recipe.name}'"
            + (f", without your settings {', '.join(left_out)}" if left_out else "")
            + "."
        )
        return new, instead.fetch(instead_config, report=say, progress=False), recipe.name


def instead_of(asked: Request) -> Request | None:
    """What runs where no source of a recipe's data can be reached; None: nothing does."""
    if not isinstance(asked.recipe, TrainingRecipe) or asked.recipe.fallback is None:
        return None
    instead = recipes()[asked.recipe.fallback]
    assert isinstance(instead, TrainingRecipe), "a fallback trains too"
    kept = {key: value for key, value in asked.chosen.items() if key in TrainingConfig.carried}
    return Request(recipe=instead, config=make_config(instead.config, kept), chosen=kept)


def _conclude(job: Job, out: Path, ended: Ended, console: Console | None, ranks: Ranks) -> dict[str, Any]:
    """Train the twin if it was asked for, and write the whole result down."""
    result, kept = ended
    data = job.description.data
    result["recipe"] = job.recipe.name
    result |= {name: data[name] for name in ("fallback_from", "scored") if name in data}
    if job.config.twin:
        twin = train_twin(job, out / "twin", console)
        updates = result["num_steps"] - result["num_lost"]
        result["twin"] = {
            "private": False,
            **{name: value for name, value in twin.items() if name.startswith("test_")},
            "seconds": twin["seconds"],
            "time_ratio": round(
                (result["seconds"] / max(updates, 1)) / (max(twin["seconds"], 1e-3) / twin["num_steps"]), 3
            ),
        }
    model = _published(job, out, result["weights"], sharded=ranks.shards)
    result |= job.recipe.assess(job.config, model, job.material.test, kept[result["weights"]])
    result |= job.recipe.finish(job.config, model, out, console=console)
    result["weights_sha256"] = weights_sha256(out, result["weights"])
    result |= adapter_sha256(out)
    result = as_chosen(out, result)
    result = finite(result)
    write_json(out / "result.json", result)
    return result


def _published(job: Job, folder: Path, weights: str, *, sharded: bool) -> nn.Module:
    """The trained model with the weights that its scores belong to, whole."""
    model = build_model(job.recipe, job.recipe.unloaded(job.config)) if sharded else job.model
    if weights == "ema" or sharded:
        file = "ema.safetensors" if weights == "ema" else "weights.safetensors"
        model.load_state_dict(load_tensors(folder / file)[0])
    return model
