"""Recipes and their runs as subjects of an audit: their model, losses, optimizer and plan, on made-up rows.

Room: recipes. May import torch, `reticent.{audit,train,account,plan}` and the floors below.

No data set is fetched and no private row read: what is audited is how the recipe samples, clips, adds noise
and accounts, which does not depend on the rows.
"""

from pathlib import Path
from typing import Any

from reticent.account import epsilon
from reticent.account.ledger import read_run_ledger
from reticent.audit import AuditResult, Claim, Subject, audit_steps
from reticent.errors import AuditError
from reticent.plan import Plan
from reticent.train import ledger_epsilon, read_run

from ._config import restore_config
from ._recipe import Request
from ._table import recipes
from ._training import TrainingRecipe, build_model, losses_of, optimizer_of, plan_of

_ROWS_AT_ONCE = 256


def audit_recipe(asked: Request, **how: Any) -> AuditResult:
    """Audit what a recipe would run.

    Args:
        asked: recipe and settings.
        how: as `reticent.audit.audit_steps` takes it, from `num_canaries` on.

    Raises:
        AuditError[audit-recipe]: the recipe trains by other means than private gradient steps.
        AuditError[audit-subject]: it claims no privacy, or what canaries cannot measure.
    """
    subject = _subject(asked, None, name=asked.recipe.name)
    plan = subject.plan
    if plan.noise_multiplier <= 0 or asked.config.model_dump().get("noise_seed") is not None:
        raise _claims_nothing(asked.recipe.name)
    claim = Claim(
        epsilon=epsilon([(plan.mechanism, plan.num_steps)], delta=plan.delta, relation=plan.relation).epsilon,
        delta=plan.delta,
        mechanism=plan.mechanism,
        num_steps=plan.num_steps,
    )
    return audit_steps(subject, claim=claim, **how)


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
    about = read_run(folder)
    if about["recipe"] not in recipes():
        raise AuditError(
            f"'{folder}' is no run of a recipe, so its model and losses are not known here. Audit its "
            "training as a function: reticent audit MODULE:function.",
            code="audit-recipe",
        )
    recipe = recipes()[about["recipe"]]
    if not isinstance(recipe, TrainingRecipe):
        raise _no_steps(recipe.name)
    if about["plan"] is None:
        raise _claims_nothing(str(folder))
    config = restore_config(recipe.config, about["config"])
    plan = Plan.from_dict(about["plan"])
    ledger = read_run_ledger(folder)
    if ledger.num_steps == 0 or any(mechanism != plan.mechanism for mechanism, _ in ledger.segments()):
        raise AuditError(
            f"The ledger of '{folder}' holds no steps, or others than those of its plan: there is no one "
            "kind of step to audit.",
            code="audit-recipe",
        )
    if ledger.reproducible:
        raise _claims_nothing(str(folder))
    subject = _subject(Request(recipe=recipe, config=config, chosen={}), plan, name=str(folder))
    claim = Claim(
        epsilon=ledger_epsilon(ledger).epsilon,
        delta=ledger.delta,
        mechanism=plan.mechanism,
        num_steps=ledger.num_steps,
    )
    return audit_steps(subject, claim=claim, **how)


def _subject(asked: Request, plan: Plan | None, *, name: str) -> Subject:
    recipe, config = asked.recipe, asked.config
    if not isinstance(recipe, TrainingRecipe):
        raise _no_steps(recipe.name)
    at_once = config.model_dump().get("physical_batch_size")
    return Subject(
        name=name,
        plan=plan_of(asked) if plan is None else plan,
        build=lambda: build_model(recipe, config),  # type: ignore[arg-type]
        losses=losses_of(recipe, config),  # type: ignore[arg-type]
        rows=lambda num_rows: recipe.random_rows(config, num_rows),
        optimizer=lambda model: optimizer_of(model, config, lr=config.step_lr),  # type: ignore[attr-defined]
        physical_batch_size=at_once if isinstance(at_once, int) else _ROWS_AT_ONCE,
    )


def _no_steps(name: str) -> AuditError:
    return AuditError(
        f"The recipe '{name}' does not train by private gradient steps, which are what gradient canaries "
        "measure. Audit its training as a function: reticent audit MODULE:function --how inputs.",
        code="audit-recipe",
    )


def _claims_nothing(name: str) -> AuditError:
    return AuditError(
        f"'{name}' claims no privacy (no noise, or noise that can be repeated): there is no claim to audit.",
        code="audit-subject",
    )
