"""Recipes and their runs as subjects of an audit: their model, losses, optimizer and plan, on made-up rows.

Room: recipes. May import torch, `reticent.{audit,train,account,plan}` and the floors below.

No data set is fetched and no private row read: what is audited is how the recipe samples, clips, adds noise
and accounts, which does not depend on the rows.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reticent.account import epsilon
from reticent.account.ledger import read_run_ledger
from reticent.audit import (
    AuditResult,
    Claim,
    Inputs,
    Problem,
    Subject,
    audit_rows,
    audit_steps,
    private_training,
)
from reticent.errors import AuditError
from reticent.plan import Plan, StagedSampler
from reticent.train import ledger_epsilon, load_tensors, read_run

from ._config import RecipeConfig, restore_config
from ._parts import (
    asked_of,
    build_model,
    losses_of,
    plan_of,
    private_optimizer_of,
    settings_of,
    with_measured_norm,
)
from ._recipe import Recipe, Request
from ._table import recipes
from ._training import TrainingRecipe
from ._training_config import TrainingConfig

_ROWS_AT_ONCE = 256


def audit_recipe(asked: Request, **how: Any) -> AuditResult:
    """Audit what a recipe would run, with gradient canaries.

    Args:
        asked: recipe and settings.
        how: as `reticent.audit.audit_steps` takes it, from `num_canaries` on.

    Raises:
        AuditError[audit-recipe]: the recipe trains by other means than private gradient steps.
        AuditError[audit-subject]: it claims no privacy, or what canaries cannot measure.
    """
    return audit_steps(_subject(found := _of_recipe(asked)), claim=found.claim, **how)


def audit_run(folder: Path, **how: Any) -> AuditResult:
    """Audit how a run was trained: its recipe with its settings, held against the epsilon of its ledger.

    Args:
        folder: the run's folder; only read.
        how: as for `audit_recipe`.

    Raises:
        ConfigError[not-a-run]: the folder holds no run.
        LedgerError: the ledger is damaged.
        AuditError[audit-recipe]: it is no run of a recipe that can be audited, or took no step.
        AuditError[audit-subject]: as for `audit_recipe`.
    """
    return audit_steps(_subject(found := _of_run(folder)), claim=found.claim, **how)


def audit_recipe_inputs(asked: Request, *, kind: Inputs | None = None, **how: Any) -> AuditResult:
    """Audit what a recipe would run, with strange rows among made-up ones of its own kind.

    Args:
        asked: recipe and settings.
        kind: of the canaries; None: the recipe's own, or mislabelled rows.
        how: as `reticent.audit.audit_rows` takes it, from `num_canaries` on; and `console`.

    Raises:
        AuditError: as for `audit_recipe`; [audit-recipe] also if the recipe has no rows of that kind.
    """
    return _audit_inputs(_of_recipe(asked), kind=kind, **how)


def audit_run_inputs(folder: Path, *, kind: Inputs | None = None, **how: Any) -> AuditResult:
    """As `audit_recipe_inputs`, of how a run was trained, held against the epsilon of its ledger.

    Raises:
        ReticentError: as for `audit_run` and `audit_recipe_inputs`.
    """
    return _audit_inputs(_of_run(folder), kind=kind, **how)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What is audited: a training recipe with its settings and plan, and what is claimed."""

    name: str
    recipe: TrainingRecipe
    config: TrainingConfig
    plan: Plan
    claim: Claim


def _of_recipe(asked: Request) -> _Found:
    _training(asked.recipe, asked.config)
    asked = with_measured_norm(asked)
    recipe, config = asked_of(asked)
    plan = plan_of(asked)
    if plan.noise_multiplier <= 0 or config.noise_seed is not None:
        raise _claims_nothing(recipe.name)
    if isinstance(plan.sampler, StagedSampler):
        raise _not_of_one_kind(f"recipe '{recipe.name}' with a batch schedule")
    claim = Claim(
        epsilon=epsilon([(plan.mechanism, plan.num_steps)], delta=plan.delta, relation=plan.relation).epsilon,
        delta=plan.delta,
        mechanism=plan.mechanism,
        num_steps=plan.num_steps,
    )
    return _Found(name=recipe.name, recipe=recipe, config=config, plan=plan, claim=claim)


def _of_run(folder: Path) -> _Found:
    about = read_run(folder)
    if about["recipe"] not in recipes():
        raise AuditError(
            f"'{folder}' is no run of a recipe, so its model and losses are not known here. Audit its "
            "training as a function: reticent audit MODULE:function.",
            code="audit-recipe",
        )
    named = recipes()[about["recipe"]]
    recipe, config = _training(named, restore_config(named.config, about["config"]))
    if about["plan"] is None:
        raise _claims_nothing(str(folder))
    plan = Plan.from_dict(about["plan"])
    ledger = read_run_ledger(folder)
    staged = isinstance(plan.sampler, StagedSampler)
    if staged or ledger.num_steps == 0 or ledger.segments()[0][0] != plan.mechanism or ledger.segments()[1:]:
        raise _not_of_one_kind(f"ledger of '{folder}'")
    if ledger.reproducible:
        raise _claims_nothing(str(folder))
    claim = Claim(
        epsilon=ledger_epsilon(ledger).epsilon,
        delta=ledger.delta,
        mechanism=plan.mechanism,
        num_steps=ledger.num_steps,
    )
    return _Found(name=str(folder), recipe=recipe, config=config, plan=plan, claim=claim)


def _training(recipe: Recipe, config: RecipeConfig) -> tuple[TrainingRecipe, TrainingConfig]:
    if isinstance(recipe, TrainingRecipe) and isinstance(config, TrainingConfig):
        return recipe, config
    raise AuditError(
        f"The recipe '{recipe.name}' does not train by private gradient steps, which are what is audited of "
        "a recipe. Audit its training as a function: reticent audit MODULE:function --how inputs.",
        code="audit-recipe",
    )


def _subject(found: _Found) -> Subject:
    recipe, config = found.recipe, found.config
    at_once = config.physical_batch_size
    return Subject(
        name=found.name,
        plan=found.plan,
        build=lambda: build_model(recipe, config),
        losses=losses_of(recipe, config),
        rows=lambda num_rows: recipe.random_rows(config, num_rows),
        optimizer=lambda model: private_optimizer_of(model, config),
        physical_batch_size=at_once if isinstance(at_once, int) else _ROWS_AT_ONCE,
    )


def _audit_inputs(
    found: _Found, *, kind: Inputs | None, console: Console | None = None, **how: Any
) -> AuditResult:
    recipe, config = found.recipe, found.config
    kind = kind or recipe.strange or "mislabelled"
    if kind not in ("mislabelled", recipe.strange):
        raise AuditError(
            f"The recipe '{recipe.name}' makes no rows that are '{kind}'. Its canaries are "
            f"{'mislabelled rows' if recipe.strange is None else f'{recipe.strange}, or mislabelled rows'}.",
            code="audit-recipe",
        )
    return audit_rows(
        _subject(found),
        claim=found.claim,
        kind=kind,
        strange=None if kind == "mislabelled" else lambda num: recipe.strange_rows(config, num),
        trainer=lambda problem: _train(problem, found, console),
        **how,
    )


def _train(problem: Problem, found: _Found, console: Console | None) -> None:
    """Train as the recipe does, each row moving the weights as far as in the recipe's own batches."""
    config = found.config
    if config.optimizer == "sgd":  # the others take steps of a length that does not depend on the divisor
        for group in problem.optimizer.param_groups:
            group["lr"] *= problem.plan.expected_batch_size / found.plan.expected_batch_size
    settings = replace(
        settings_of(config), eval_every=0, checkpoint_every=0, show_loss=False, show_norms=False
    )
    private_training(problem, settings=settings, console=console)
    if config.ema:
        problem.model.load_state_dict(load_tensors(problem.folder / "run" / "ema.safetensors")[0])


def _not_of_one_kind(what: str) -> AuditError:
    return AuditError(
        f"The {what} has no steps, or steps of several kinds, or others than those of its plan: there is no "
        "one kind of step to audit.",
        code="audit-recipe",
    )


def _claims_nothing(name: str) -> AuditError:
    return AuditError(
        f"'{name}' claims no privacy (no noise, or noise that can be repeated): there is no claim to audit.",
        code="audit-subject",
    )
