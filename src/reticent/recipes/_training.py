"""Recipes that train by private gradient steps: plan, data, model, the run, its twin without privacy.

Room: recipes. May import torch, rich, `reticent.{plan,train,data,sample,optim}` and the floors below.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from reticent.account import Segments
from reticent.audit import Inputs
from reticent.dist import Ranks, Shards, together
from reticent.errors import CheckpointError, DataError, ReticentError
from reticent.optim import Lamb, decayed_sgd
from reticent.plan import ROW, Plan
from reticent.records import Budget
from reticent.sample import SampleStream
from reticent.train import (
    ClipNorms,
    Evaluation,
    FitResult,
    RunDescription,
    TrainSettings,
    Transform,
    check_tracking,
    finite,
    fit,
    largest_physical_batch_size,
    load_checkpoint,
    load_tensors,
    mix_seed,
    new_folder,
    new_run_id,
    removed_if_empty,
    removed_unless_spent,
    resume,
    silent_or_bar,
    tracked,
    train,
    write_json,
    write_run,
)

from ._clipping import clipping_of
from ._config import make_config, restore_config
from ._going_on import check_unedited, finished
from ._memory import clipping_costs, measure_memory
from ._origin import refuse_same_data
from ._plain import PlainStep
from ._ranks import fetched_by, ranks_of
from ._recipe import Recipe, Request
from ._sampling import sampler_for
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
    """

    config: type[TrainingConfig]
    fallback: str | None = None
    strange: Inputs | None = None

    @abstractmethod
    def num_examples(self, config: Any) -> int:
        """Number of privacy units in the training set: a public constant."""

    def unit(self, config: Any) -> str:
        """What `num_examples` and `expected_batch_size` count, and whom epsilon speaks of."""
        return ROW

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

    def begins_with(self, config: Any) -> Path | None:
        """File or folder of the weights that a run begins with, if they are not random or known ones."""
        return None

    def assess(self, config: Any, model: nn.Module, test: Any) -> dict[str, Any]:
        """More of the trained model on the public test rows than means over rows; as JSON values."""
        return {}

    def finish(
        self, config: Any, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        """What a run leaves beside its weights; called at the end, with the trained model.

        Returns:
            More for the run's result, as JSON values.
        """
        return {}

    def describe(self, asked: Request) -> dict[str, Any]:
        plan = plan_of(asked)
        epsilon = math.inf if asked.config.noise_seed is not None else plan.epsilon().epsilon
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "num_steps": plan.num_steps,
            "sampler": plan.sampler.scheme.value,
            "expected_batch_size": plan.expected_batch_size,
            "neighbouring_relation": str(plan.relation),
            "unit": plan.unit,
            **({"chosen": dict(reasons)} if (reasons := self.reasons(asked)) else {}),
        }

    def spends(self, asked: Request) -> Segments:
        plan = plan_of(asked)
        return [(plan.mechanism, plan.num_steps)]

    def run(self, asked: Request, *, out: Path, console: Console | None, data: Any = None) -> dict[str, Any]:
        check_tracking(_training(asked)[1].log)
        with ranks_of(_training(asked)[1]) as ranks:
            ranks.first(lambda: new_folder(out))
            with removed_if_empty(out) if ranks.leads else nullcontext():
                asked, data, replaced = _with_data(asked, data, console, ranks)
                with together(ranks):
                    asked = with_physical_batch(asked, say=_sayer(console))
                    material = _prepared(asked, data)
                job = _Job.prepare(asked, material, ranks=ranks, fallback_from=replaced)
                plain = math.isinf(job.config.epsilon)
                result = (
                    _train_plain(job, out, console) if plain else _train_private(job, out, console, ranks)
                )
                return ranks.first(lambda: _conclude(job, out, result, console, ranks)) or result

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
        )
        done = finished(folder, config, plan, run_id=about["run_id"])
        if done is not None:
            return done
        with ranks_of(_training(asked)[1]) as ranks:
            if data is None:
                data = fetched_by(ranks, self, config, console)
            with together(ranks):
                material = _prepared(asked, data)
            origin = about["data"].get("fallback_from")
            job = _Job.prepare(asked, material, ranks=ranks, plan=plan, fallback_from=origin)
            if math.isinf(config.epsilon):
                result = _resume_plain(job, folder, console)
            else:
                result = resume(
                    job.model,
                    job.optimizer,
                    dataset=job.material.train,
                    loss_per_example=losses_of(self, config),
                    out=folder,
                    transform=self.transform(config),
                    evaluation=job.evaluation,
                    console=console,
                    ranks=ranks,
                ).to_dict()
            return ranks.first(lambda: _conclude(job, folder, result, console, ranks)) or result


def plan_of(asked: Request) -> Plan:
    """The plan of a request; reads no data. With `epsilon = inf`, one with noise multiplier 0.

    Raises:
        AccountingError, ConfigError: no noise multiplier meets the budget.
    """
    recipe, config = _training(asked)
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


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Job:
    """A request with everything made that it needs."""

    recipe: TrainingRecipe
    config: TrainingConfig
    plan: Plan
    model: nn.Module
    optimizer: Optimizer
    material: Material
    evaluation: Evaluation
    description: RunDescription

    @classmethod
    def prepare(
        cls,
        asked: Request,
        material: Material,
        *,
        ranks: Ranks,
        plan: Plan | None = None,
        fallback_from: str | None,
    ) -> "_Job":
        recipe, config = _training(asked)
        with together(ranks):
            model = build_model(recipe, config)
        if isinstance(ranks, Shards):
            ranks.shard(model)
        origin = {} if fallback_from is None else {"fallback_from": fallback_from}
        return cls(
            recipe=recipe,
            config=config,
            plan=plan_of(asked) if plan is None else plan,
            model=model,
            optimizer=optimizer_of(model, config, lr=config.step_lr),
            material=material,
            evaluation=Evaluation(dataset=material.test, scores=recipe.scores(config)),
            description=RunDescription(
                recipe=recipe.name, config=config.public_dict(), data={**material.about, **origin}
            ),
        )


def _prepared(asked: Request, fetched: Any) -> Material:
    recipe, config = _training(asked)
    material = recipe.prepare(config, fetched)
    begins_with = recipe.begins_with(config)
    if begins_with is not None:
        refuse_same_data(begins_with, about=material.about, data=config.model_dump().get("data"))
    return material


def _training(asked: Request) -> tuple[TrainingRecipe, TrainingConfig]:
    assert isinstance(asked.recipe, TrainingRecipe) and isinstance(asked.config, TrainingConfig)
    return asked.recipe, asked.config


def build_model(recipe: TrainingRecipe, config: TrainingConfig) -> nn.Module:
    """The recipe's model, its first weights fixed by the public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(config.seed, "weights"))
        return recipe.build(config)


def optimizer_of(model: nn.Module, config: TrainingConfig, *, lr: float) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    decay = config.weight_decay
    match config.optimizer:
        case "sgd":
            return decayed_sgd(trained, lr=lr, momentum=config.momentum, weight_decay=decay or 0.0)
        case "adam":
            return Adam(trained, lr=lr)
        case "adamw":
            return AdamW(trained, lr=lr, weight_decay=0.01 if decay is None else decay)
        case "lamb":
            return Lamb(trained, lr=lr, weight_decay=decay or 0.0)


def losses_of(recipe: TrainingRecipe, config: TrainingConfig) -> Losses:
    """The recipe's losses, in the precision that the settings ask for."""
    losses = recipe.loss_per_example(config)
    if config.precision == "float32":
        return losses

    def in_half(model: nn.Module, rows: Any) -> Tensor:
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16):
            return losses(model, rows)

    return in_half


def step_memory(asked: Request) -> dict[str, int]:
    """Bytes that a private step takes, by what they are for: `measure_memory` on random rows, no data.

    Args:
        asked: the recipe and its settings; the rows are as many as one physical batch of it may hold.
    """
    recipe, config = _training(asked)
    model = build_model(recipe, config)
    largest = math.ceil(config.expected_batch_size + 6 * math.sqrt(config.expected_batch_size))
    losses = losses_of(recipe, config)
    rows = recipe.random_rows(config, min(config.num_rows_at_once, largest, recipe.num_examples(config)))
    with torch.random.fork_rng(devices=[]):
        return measure_memory(
            model,
            optimizer_of(model, config, lr=config.step_lr),
            lambda rows: losses(model, rows),
            rows,
            clipping=clipping_of(config),
            averaged=bool(config.ema),
        )


def with_physical_batch(asked: Request, *, say: Callable[[str], None] = lambda text: None) -> Request:
    """The request with a number for `physical_batch_size=auto`: what fits in the memory budget.

    Raises:
        ConfigError[memory-budget]: not even one row fits.
    """
    recipe, config = _training(asked)
    if config.physical_batch_size != "auto":
        return asked
    model = build_model(recipe, config)
    norms = ClipNorms(clipping_of(config), {n: p.numel() for n, p in model.named_parameters()})
    size = largest_physical_batch_size(
        model,
        losses_of(recipe, config),
        recipe.random_rows(config, 1),
        memory_budget=None if config.memory_budget is None else int(config.memory_budget),
        largest=min(4096, math.ceil(config.expected_batch_size + 6 * math.sqrt(config.expected_batch_size))),
        clipping=norms.now(),
    )
    say(f"physical_batch_size=auto: {size} rows at once")
    found = {"physical_batch_size": size, "memory_budget": None}
    chosen = {k: v for k, v in asked.chosen.items() if k != "memory_budget"} | {"physical_batch_size": size}
    return Request(recipe=recipe, config=config.model_copy(update=found), chosen=chosen)


def settings_of(config: TrainingConfig) -> TrainSettings:
    """Schedule, average, evaluation and checkpoints, as the settings ask for them."""
    return TrainSettings(
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        ema=config.ema,
        ema_start=config.ema_start,
        lr_decay_steps=0 if config.lr_decay == "none" else config.num_steps,
        lr_decay="cosine" if config.lr_decay == "cosine" else "linear",
        lr_warmup_steps=round(config.lr_warmup * config.num_steps),
        seed=config.seed,
        compile=config.compile,
        show_loss=config.show_loss,
        show_norms=config.show_norms,
        log=config.log,
    )


def _with_data(
    asked: Request, data: Any, console: Console | None, ranks: Ranks
) -> tuple[Request, Any, str | None]:
    """The data set; or, loudly, the fallback recipe with its own, if no source can be reached."""
    if data is not None:
        return asked, data, None
    say = _sayer(console)
    recipe, config = _training(asked)
    try:
        return asked, fetched_by(ranks, recipe, config, console), None
    except DataError as e:
        if recipe.fallback is None or e.code != "data-sources" or ranks.size > 1:
            raise
        instead = recipes()[recipe.fallback]
        assert isinstance(instead, TrainingRecipe), "a fallback trains too"
        kept = {key: value for key, value in asked.chosen.items() if key in TrainingConfig.carried}
        left_out = sorted(asked.chosen.keys() - kept.keys())
        say(str(e.args[0]))
        say(
            f"ATTENTION: no source of the data of '{recipe.name}' could be reached. Running the recipe "
            f"'{instead.name}' on embedded data INSTEAD of '{recipe.name}'"
            + (f", without your settings {', '.join(left_out)}" if left_out else "")
            + "."
        )
        new = Request(recipe=instead, config=make_config(instead.config, kept), chosen=kept)
        fetched = instead.fetch(new.config, report=say, progress=False)
        return new, fetched, recipe.name


def _sayer(console: Console | None) -> Callable[[str], None]:
    if console is None:
        return lambda text: None
    return lambda text: console.print(text, style="bold yellow", markup=False, highlight=False)


def _train_private(job: _Job, out: Path, console: Console | None, ranks: Ranks) -> dict[str, Any]:
    config = job.config
    for warning in job.plan.warnings():
        _sayer(console)(f"warning: {warning}")
    return train(
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
    ).to_dict()


def _layers(job: _Job, *, sharded: bool) -> Sequence[Mapping[str, Any]]:
    """What clipping each parameter costs, on made-up rows; nothing if compiled or sharded."""
    if job.config.compile or sharded:
        return ()
    losses = losses_of(job.recipe, job.config)
    try:
        rows = job.recipe.random_rows(job.config, 2)
        with torch.random.fork_rng():
            return clipping_costs(
                job.model, lambda given: losses(job.model, given), rows, clipping=job.plan.clipping
            )
    except ReticentError:  # what cannot be clipped is refused by the run itself, which says why
        return ()


def _train_plain(job: _Job, out: Path, console: Console | None) -> dict[str, Any]:
    """The whole run without privacy, as `epsilon = inf` asks."""
    config = job.config
    write_run(
        out,
        run_id=new_run_id(),
        description=job.description,
        plan=None,
        settings=settings_of(config),
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
    config = job.config
    stepper = PlainStep(
        job.model,
        job.optimizer,
        physical_batch_size=config.num_rows_at_once,
        num_steps=start,
        transform=job.recipe.transform(config),
        seed=config.seed,
    )
    shown = silent_or_bar(console, "without privacy", config.num_steps)
    with shown as seen, tracked(seen, config.log, folder, epsilon=None) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.material.train, start=start, stream=_public_stream(config, start)),
            loss_per_example=losses_of(job.recipe, job.config),
            folder=folder,
            settings=settings_of(config),
            watcher=watcher,
            evaluation=job.evaluation,
            checkpoint=checkpoint,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result


def _train_twin(job: _Job, folder: Path, console: Console | None) -> dict[str, Any]:
    """The same recipe without clipping and noise, from the same first weights."""
    config = job.config
    folder.mkdir(exist_ok=True)
    model = build_model(job.recipe, config)
    stepper = PlainStep(
        model,
        optimizer_of(model, config, lr=config.twin_lr),
        physical_batch_size=config.num_rows_at_once,
        transform=job.recipe.transform(config),
        seed=config.seed,
    )
    settings = replace(settings_of(config), checkpoint_every=0, show_loss=False, show_norms=False, log="none")
    with silent_or_bar(console, "twin without privacy", config.num_steps) as watcher:
        done = fit(
            stepper,
            job.plan.batches(job.material.train, stream=_public_stream(config, 0)),
            loss_per_example=losses_of(job.recipe, job.config),
            folder=folder,
            settings=settings,
            watcher=watcher,
            evaluation=job.evaluation,
        )
    result = _plain_result(done, config, folder)
    write_json(folder / "result.json", result)
    return result


def _public_stream(config: TrainingConfig, start: int) -> SampleStream:
    """Draws of a run without privacy: repeatable, and unrelated to any private run's."""
    return SampleStream.reproducible(mix_seed(config.seed, "sampling without privacy"), start=start)


def _plain_result(done: FitResult, config: TrainingConfig, folder: Path) -> dict[str, Any]:
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


def _conclude(
    job: _Job, out: Path, result: dict[str, Any], console: Console | None, ranks: Ranks
) -> dict[str, Any]:
    """Train the twin if it was asked for, and write the whole result down."""
    data = job.description.data
    result["recipe"] = job.recipe.name
    if "fallback_from" in data:
        result["fallback_from"] = data["fallback_from"]
    if job.config.twin:
        twin = _train_twin(job, out / "twin", console)
        updates = result["num_steps"] - result["num_lost"]
        result["twin"] = {
            **{name: value for name, value in twin.items() if name.startswith("test_")},
            "seconds": twin["seconds"],
            "time_ratio": round(
                (result["seconds"] / max(updates, 1)) / (max(twin["seconds"], 1e-3) / twin["num_steps"]), 3
            ),
        }
    model = _published(job, out, result["weights"], sharded=ranks.shards)
    result |= job.recipe.assess(job.config, model, job.material.test)
    result |= job.recipe.finish(job.config, model, out, console=console)
    write_json(out / "result.json", result)
    return result


def _published(job: _Job, folder: Path, weights: str, *, sharded: bool) -> nn.Module:
    """The trained model with the weights that its scores belong to, whole."""
    model = build_model(job.recipe, job.config) if sharded else job.model
    if weights == "ema" or sharded:
        file = "ema.safetensors" if weights == "ema" else "weights.safetensors"
        model.load_state_dict(load_tensors(folder / file)[0])
    return model
