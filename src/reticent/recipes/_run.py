"""Running a recipe: data, model, plan, the run itself, its twin without privacy, and going on.

Room: recipes. May import torch, rich, `reticent.{plan,train,data,sample}` and the floors below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import TensorDataset

from reticent.data import Dataset, load
from reticent.errors import CheckpointError, ConfigError, DataError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.sample import PoissonSampler, SampleStream
from reticent.train import (
    ClipNorms,
    Evaluation,
    FitResult,
    RunDescription,
    TrainSettings,
    finite,
    fit,
    largest_physical_batch_size,
    load_checkpoint,
    mix_seed,
    new_folder,
    new_run_id,
    read_run,
    removed_if_empty,
    removed_unless_spent,
    resume,
    silent_or_bar,
    train,
    write_json,
    write_run,
)

from ._clipping import clipping_of
from ._config import RecipeConfig, make_config, nearest, parse_settings, read_toml, restore_config
from ._going_on import check_unedited, finished
from ._memory import measure_memory
from ._plain import PlainStep
from ._recipe import Recipe, cross_entropy, scores, tensors
from .digits import DIGITS
from .fashion_mnist import FASHION_MNIST

DEFAULT_RECIPE = FASHION_MNIST.name
_CARRIED = ("epsilon", "delta", "seed", "noise_seed", "twin", "show_loss", "show_norms")


def recipes() -> Mapping[str, Recipe]:
    """Name -> recipe."""
    return {recipe.name: recipe for recipe in (FASHION_MNIST, DIGITS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A recipe with settings: what a person asked for, checked.

    Args:
        recipe: what to run.
        config: all its settings.
        chosen: those that the person set, as given.
    """

    recipe: Recipe
    config: RecipeConfig
    chosen: Mapping[str, Any]


def request(target: str = DEFAULT_RECIPE, assignments: Sequence[str] = ()) -> Request:
    """Read what a person asked for.

    Args:
        target: a recipe's name, or the path of a TOML file with `recipe = "..."` and settings.
        assignments: `key=value` texts; they win over the file.

    Raises:
        ConfigError[unknown-recipe]: no recipe of that name.
        ConfigError[config-file]: the file cannot be read.
        ConfigError[config]: lists every problem with the settings.
    """
    settings: dict[str, Any] = {}
    name = target
    if target not in recipes() and (target.endswith(".toml") or Path(target).is_file()):
        settings = read_toml(Path(target))
        name = settings.pop("recipe", None)
    if not isinstance(name, str) or name not in recipes():
        known = list(recipes())
        raise ConfigError(
            f"No recipe is named {name!r}. {nearest(str(name), known)}Known: {', '.join(known)}; or give a "
            'TOML file with recipe = "..." in it.',
            code="unknown-recipe",
        )
    chosen = {**settings, **parse_settings(assignments)}
    recipe = recipes()[name]
    return Request(recipe=recipe, config=make_config(recipe.config, chosen), chosen=chosen)


def make_plan(recipe: Recipe, config: RecipeConfig) -> Plan:
    """The plan of a request; reads no data. With `epsilon = inf`, one with noise multiplier 0.

    Raises:
        AccountingError, ConfigError: no noise multiplier meets the budget.
    """
    sampler = PoissonSampler(num_examples=recipe.num_examples, expected_batch_size=config.expected_batch_size)
    clipping = clipping_of(config)
    if math.isinf(config.epsilon):
        return Plan(
            sampler=sampler,
            num_steps=config.num_steps,
            noise_multiplier=0.0,
            clipping=clipping,
            delta=config.delta,
            budget=None,
        )
    return Plan.calibrate(
        budget=Budget(epsilon=config.epsilon, delta=config.delta),
        sampler=sampler,
        num_steps=config.num_steps,
        clipping=clipping,
    )


def run(
    asked: Request, *, out: Path, console: Console | None = None, data: Dataset | None = None
) -> dict[str, Any]:
    """Run a recipe to its end.

    Args:
        asked: recipe and settings.
        out: the run's folder; new or empty.
        console: where to show progress and what matters.
        data: use this instead of fetching the recipe's data set.

    Returns:
        The result as JSON values, as in `result.json`: `private`, `epsilon` (None where there is no
        privacy), `delta`, `test_accuracy`, `run`, `recipe` and more.

    Raises:
        ConfigError[out-exists]: the folder exists and is not empty.
        ReticentError: whatever is wrong with settings, data or model, before anything is spent.
    """
    out = new_folder(out)
    with removed_if_empty(out):
        asked, data, replaced = _with_data(asked, data, console)
        asked = with_physical_batch(asked, say=_sayer(console))
        job = _Job.prepare(asked, data, fallback_from=replaced)
        plain = math.isinf(asked.config.epsilon)
        result = _train_plain(job, out, console) if plain else _train_private(job, out, console)
        return _conclude(job, out, result, console)


def go_on(folder: Path, *, console: Console | None = None, data: Dataset | None = None) -> dict[str, Any]:
    """Go on with a run that was stopped, to its end; a finished one is left as it is.

    Args:
        folder: the run's folder.
        console: as for `run`.
        data: as for `run`.

    Returns:
        The result, as `run` returns it.

    Raises:
        ConfigError[not-a-run]: the folder holds no run of a recipe.
        ConfigError[run-edited]: `run.json` contradicts itself, or says of a private run that it is not.
        LedgerError, CheckpointError: ledger or checkpoints are damaged, or do not belong together.
    """
    about = read_run(folder)
    recipe = recipes().get(about["recipe"])
    if recipe is None:
        raise ConfigError(
            f"'{folder}' is no run of a recipe. Go on with it in Python: reticent.train.resume(model, ...).",
            code="not-a-run",
        )
    config = restore_config(recipe.config, about["config"])
    asked = Request(recipe=recipe, config=config, chosen={})
    plan = None if about["plan"] is None else Plan.from_dict(about["plan"])
    check_unedited(folder, recipe, config, plan, written=about["settings"], settings=_settings(config))
    done = finished(folder, config, plan, run_id=about["run_id"])
    if done is not None:
        return done
    data = load(recipe.dataset, progress=console is not None) if data is None else data
    job = _Job.prepare(asked, data, plan=plan, fallback_from=about["data"].get("fallback_from"))
    if math.isinf(config.epsilon):
        result = _resume_plain(job, folder, console)
    else:
        result = resume(
            job.model,
            job.optimizer,
            dataset=job.train_set,
            loss_per_example=cross_entropy,
            out=folder,
            evaluation=job.evaluation,
            console=console,
        ).to_dict()
    return _conclude(job, folder, result, console)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Job:
    """A request with everything made that it needs."""

    asked: Request
    plan: Plan
    model: nn.Module
    optimizer: Optimizer
    train_set: TensorDataset
    evaluation: Evaluation
    description: RunDescription

    @classmethod
    def prepare(
        cls, asked: Request, data: Dataset, *, plan: Plan | None = None, fallback_from: str | None
    ) -> "_Job":
        recipe, config = asked.recipe, asked.config
        train_set = tensors(recipe, data.train, split="train")
        evaluation = Evaluation(dataset=tensors(recipe, data.test, split="test"), scores=scores)
        model = build_model(recipe, config)
        return cls(
            asked=asked,
            plan=make_plan(recipe, config) if plan is None else plan,
            model=model,
            optimizer=_optimizer(model, config, lr=config.lr),
            train_set=train_set,
            evaluation=evaluation,
            description=RunDescription(
                recipe=recipe.name,
                config=config.public_dict(),
                data={
                    "name": data.name,
                    "source": data.source,
                    "licence": data.licence,
                    "sha256": data.sha256,
                    **({} if fallback_from is None else {"fallback_from": fallback_from}),
                },
            ),
        )


def build_model(recipe: Recipe, config: RecipeConfig) -> nn.Module:
    """The recipe's model, its first weights fixed by the public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(config.seed, "weights"))
        return recipe.build(config)


def _optimizer(model: nn.Module, config: RecipeConfig, *, lr: float) -> Optimizer:
    match config.optimizer:
        case "sgd":
            return SGD(model.parameters(), lr=lr, momentum=config.momentum)
        case "adam":
            return Adam(model.parameters(), lr=lr)
        case "adamw":
            return AdamW(model.parameters(), lr=lr)


def step_memory(asked: Request) -> dict[str, int]:
    """Bytes that a private step takes, by what they are for: `measure_memory` on random rows, no data.

    Args:
        asked: the recipe and its settings; the rows are as many as one physical batch of it may hold.
    """
    recipe, config = asked.recipe, asked.config
    model = build_model(recipe, config)
    largest = math.ceil(config.expected_batch_size + 6 * math.sqrt(config.expected_batch_size))
    x, y = _random_rows(recipe, min(config.num_rows_at_once, largest, recipe.num_examples))
    with torch.random.fork_rng(devices=[]):
        return measure_memory(
            model,
            _optimizer(model, config, lr=config.lr),
            lambda rows: cross_entropy(model, rows),
            (x, y),
            clipping=clipping_of(config),
            averaged=config.ema > 0,
        )


def with_physical_batch(asked: Request, *, say: Callable[[str], None] = lambda text: None) -> Request:
    """The request with a number for `physical_batch_size=auto`: what fits in the memory budget.

    Raises:
        ConfigError[memory-budget]: not even one row fits.
    """
    recipe, config = asked.recipe, asked.config
    if config.physical_batch_size != "auto":
        return asked
    model = build_model(recipe, config)
    norms = ClipNorms(clipping_of(config), {n: p.numel() for n, p in model.named_parameters()})
    size = largest_physical_batch_size(
        model,
        cross_entropy,
        _random_rows(recipe, 1),
        memory_budget=None if config.memory_budget is None else int(config.memory_budget),
        largest=min(4096, math.ceil(config.expected_batch_size + 6 * math.sqrt(config.expected_batch_size))),
        clipping=norms.now(),
    )
    say(f"physical_batch_size=auto: {size} rows at once")
    found = {"physical_batch_size": size, "memory_budget": None}
    chosen = {k: v for k, v in asked.chosen.items() if k != "memory_budget"} | {"physical_batch_size": size}
    return Request(recipe=recipe, config=config.model_copy(update=found), chosen=chosen)


def _random_rows(recipe: Recipe, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((num_rows, *recipe.row_shape), generator=generator).mul_(2.0).sub_(1.0)
    return x, torch.randint(recipe.num_classes, (num_rows,), generator=generator)


def _settings(config: RecipeConfig) -> TrainSettings:
    return TrainSettings(
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        ema=config.ema,
        lr_decay_steps=config.num_steps if config.lr_decay == "linear" else 0,
        seed=config.seed,
        show_loss=config.show_loss,
        show_norms=config.show_norms,
    )


def _with_data(
    asked: Request, data: Dataset | None, console: Console | None
) -> tuple[Request, Dataset, str | None]:
    """The data set; or, loudly, the fallback recipe with its own, if no source can be reached."""
    if data is not None:
        return asked, data, None
    say = _sayer(console)
    try:
        return asked, load(asked.recipe.dataset, report=say, progress=console is not None), None
    except DataError as e:
        if asked.recipe.fallback is None or e.code != "data-sources":
            raise
        instead = recipes()[asked.recipe.fallback]
        kept = {key: value for key, value in asked.chosen.items() if key in _CARRIED}
        left_out = sorted(asked.chosen.keys() - kept.keys())
        say(str(e.args[0]))
        say(
            f"ATTENTION: no source of '{asked.recipe.dataset}' could be reached. Running the recipe "
            f"'{instead.name}' on embedded data INSTEAD of '{asked.recipe.name}'"
            + (f", without your settings {', '.join(left_out)}" if left_out else "")
            + "."
        )
        new = Request(recipe=instead, config=make_config(instead.config, kept), chosen=kept)
        return new, load(instead.dataset, report=say, progress=False), asked.recipe.name


def _sayer(console: Console | None) -> Callable[[str], None]:
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, style="bold yellow", markup=False, highlight=False)


def _train_private(job: _Job, out: Path, console: Console | None) -> dict[str, Any]:
    config = job.asked.config
    for warning in job.plan.warnings():
        _sayer(console)(f"warning: {warning}")
    return train(
        job.model,
        job.optimizer,
        plan=job.plan,
        dataset=job.train_set,
        loss_per_example=cross_entropy,
        out=out,
        evaluation=job.evaluation,
        settings=_settings(config),
        physical_batch_size=config.num_rows_at_once,
        noise_seed=config.noise_seed,
        description=job.description,
        console=console,
    ).to_dict()


def _train_plain(job: _Job, out: Path, console: Console | None) -> dict[str, Any]:
    """The whole run without privacy, as `epsilon = inf` asks."""
    config = job.asked.config
    write_run(
        out,
        run_id=new_run_id(),
        description=job.description,
        plan=None,
        settings=_settings(config),
        physical_batch_size=config.num_rows_at_once,
        noise_seed=config.noise_seed,
        model=job.model,
        private=False,
    )
    with removed_unless_spent(out):
        return _resume_plain(job, out, console)


def _resume_plain(job: _Job, folder: Path, console: Console | None) -> dict[str, Any]:
    say = _sayer(console)
    checkpoint = load_checkpoint(folder, say=say)
    if checkpoint is not None and checkpoint.ledger_head is not None:
        raise CheckpointError(
            f"The checkpoint of '{folder}' belongs to a private run, whose ledger is gone.",
            code="checkpoint-mismatch",
        )
    start = 0 if checkpoint is None else checkpoint.step
    config = job.asked.config
    stepper = PlainStep(
        job.model, job.optimizer, physical_batch_size=config.num_rows_at_once, num_steps=start
    )
    with silent_or_bar(console, "without privacy", config.num_steps) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.train_set, start=start, stream=_public_stream(config, start)),
            loss_per_example=cross_entropy,
            folder=folder,
            settings=_settings(config),
            watcher=watcher,
            evaluation=job.evaluation,
            checkpoint=checkpoint,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result


def _train_twin(job: _Job, folder: Path, console: Console | None) -> dict[str, Any]:
    """The same recipe without clipping and noise, from the same first weights."""
    config = job.asked.config
    folder.mkdir(exist_ok=True)
    model = build_model(job.asked.recipe, config)
    stepper = PlainStep(
        model, _optimizer(model, config, lr=config.twin_lr), physical_batch_size=config.num_rows_at_once
    )
    settings = replace(_settings(config), checkpoint_every=0, show_loss=False, show_norms=False)
    with silent_or_bar(console, "twin without privacy", config.num_steps) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.train_set, stream=_public_stream(config, 0)),
            loss_per_example=cross_entropy,
            folder=folder,
            settings=settings,
            watcher=watcher,
            evaluation=job.evaluation,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result


def _public_stream(config: RecipeConfig, start: int) -> SampleStream:
    """Draws of a run without privacy: repeatable, and unrelated to any private run's."""
    return SampleStream.reproducible(mix_seed(config.seed, "sampling without privacy"), start=start)


def _plain_result(done: FitResult, config: RecipeConfig, folder: Path) -> dict[str, Any]:
    weights = "ema" if config.ema else "last"
    return {
        "private": False,
        "epsilon": None,
        "delta": config.delta,
        "num_steps": done.updates,
        **{f"test_{name}": finite(value) for name, value in done.scores[weights].items()},
        "weights": weights,
        "scores": finite(done.scores),
        "seconds": round(done.seconds, 3),
        "run": str(folder),
    }


def _conclude(job: _Job, out: Path, result: dict[str, Any], console: Console | None) -> dict[str, Any]:
    """Train the twin if it was asked for, and write the whole result down."""
    data = job.description.data
    result["recipe"] = job.asked.recipe.name
    if "fallback_from" in data:
        result["fallback_from"] = data["fallback_from"]
    if job.asked.config.twin:
        twin = _train_twin(job, out / "twin", console)
        updates = result["num_steps"] - result["num_lost"]
        result["twin"] = {
            "test_accuracy": twin["test_accuracy"],
            "seconds": twin["seconds"],
            "time_ratio": round(
                (result["seconds"] / max(updates, 1)) / (max(twin["seconds"], 1e-3) / twin["num_steps"]), 3
            ),
        }
    write_json(out / "result.json", result)
    return result
