"""Whether a run may go on as its description says, and what a run that is over has to say.

Room: recipes. May import `reticent.{train,plan,sample,account}` and the floors below.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from reticent.account import recorded_choice_epsilon
from reticent.account.ledger import LedgerView, read_run_ledger
from reticent.clipping import Clipping
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.train import TrainSettings, check_ledger, finite, ledger_epsilon

from ._clipping import clipping_of
from ._sampling import sampler_for
from ._training_config import TrainingConfig

_USERS: Final = ("user_column", "rows_per_user")


def check_unedited(
    folder: Path,
    num_examples: int,
    config: TrainingConfig,
    plan: Plan | None,
    *,
    written: Mapping[str, Any],
    settings: TrainSettings,
    unit: str,
    data: Mapping[str, Any],
) -> None:
    """Refuse a description whose settings are not those of its plan: an edit that would be ignored, or worse.

    A private run above all may not go on without privacy: its ledger would speak for weights that
    were trained without noise. Nor with another column of users: the guarantee would be nobody's.

    Args:
        folder: of the run.
        num_examples: N, as its settings say.
        config: its settings.
        plan: its plan; None: it is not private.
        written: settings of its steps, as it noted them.
        settings: of steps, as `config` implies them.
        unit: whom epsilon speaks of, as `config` implies it.
        data: what the run noted of its data. An older version noted nothing of users.

    Raises:
        ConfigError[run-edited]: names the settings in question.
    """
    implied = {
        **asdict(settings),
        "physical_batch_size": config.physical_batch_size,
        "noise_seed": config.noise_seed,
    }
    found = {**asdict(TrainSettings()), **written}  # a run of an older version lacks what came later
    wrong = [name for name, value in implied.items() if found.get(name) != value]
    if "user_column" in data:
        wrong += [name for name in _USERS if data.get(name) != getattr(config, name, None)]
    if math.isinf(config.epsilon):
        wrong += ["epsilon"] if plan is not None or (folder / "ledger.jsonl").exists() else []
    else:
        wrong += _not_of_plan(num_examples, config, plan, unit=unit)
    if wrong:
        raise ConfigError(
            f"'{folder / 'run.json'}' contradicts itself or the ledger in: {', '.join(wrong)}. A run goes on "
            "as it began: restore the file; for other settings start a new run.",
            code="run-edited",
        )


def users_of(config: TrainingConfig) -> dict[str, Any]:
    """Settings that say whose rows are whose, which a run's plan does not hold; {} if each row is a unit."""
    found = {name: getattr(config, name, None) for name in _USERS}
    return {} if found["user_column"] is None else found


def _not_of_plan(num_examples: int, config: TrainingConfig, plan: Plan | None, *, unit: str) -> list[str]:
    """Names of settings in which a private run's plan differs from its config."""
    if plan is None or plan.budget is None:
        return ["epsilon"]
    sampler = sampler_for(config, num_examples=num_examples)
    drawn = "expected_batch_size" if config.batch_schedule is None else "batch_schedule"
    pairs = (
        ("epsilon", config.epsilon, plan.budget.epsilon),
        ("delta", config.delta, plan.delta),
        ("num_steps", config.num_steps, plan.num_steps),
        ("expected_batch_size", config.expected_batch_size, config.mean_batch_size),
        (drawn, sampler, plan.sampler),
        ("user_column", unit, plan.unit),
    )
    return [
        *(name for name, one, other in pairs if one != other),
        *_not_of_clipping(clipping_of(config), plan.clipping),
    ]


def _not_of_clipping(implied: Clipping, ran: Clipping) -> list[str]:
    """Names of the clipping's settings that differ."""
    if type(implied) is not type(ran):
        return ["clipping"]
    return [f.name for f in fields(implied) if getattr(implied, f.name) != getattr(ran, f.name)]


def finished(
    folder: Path, config: TrainingConfig, plan: Plan | None, *, run_id: str
) -> dict[str, Any] | None:
    """The result of a run that is over, its privacy read from the ledger again; None if it is not over.

    Raises:
        LedgerError: the ledger is missing, damaged, was cut, or belongs to another run.
    """
    result = read_result(folder, concluded=True)
    if result is None or (config.twin and read_result(folder / "twin", concluded=False) is None):
        return None
    if plan is None:
        return {**result, "run": str(folder), "private": False, "epsilon": None}
    view = read_run_ledger(folder)
    check_ledger(view, plan, reproducible=config.noise_seed is not None, run_id=run_id)
    if view.num_steps < view.planned_steps:
        return None
    return restated(folder, result, view)


def restated(folder: Path, result: dict[str, Any], view: LedgerView) -> dict[str, Any]:
    """The result of a run that is over, with what its ledger says of its privacy in place of what it says.

    Raises:
        ConfigError, LedgerError: as `as_chosen`.
    """
    said = {
        "run": str(folder),
        "private": not view.reproducible,
        "epsilon": finite(ledger_epsilon(view).epsilon),
        "delta": view.delta,
        "neighbouring_relation": str(view.relation),
        "num_steps": view.num_steps,
        "num_lost": view.num_lost,
    }
    return as_chosen(folder, {**result, **said})


def as_chosen(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A run's result; of one kept as the best of several, see `reticent sweep`, with the choice's epsilon.

    Its ledger holds its own steps only: their epsilon is less than was spent.

    Raises:
        ConfigError[run-folder]: `selection.json`, which says what the others spent, is damaged.
        LedgerError: the ledger is missing or damaged.
    """
    path = folder / "selection.json"
    if not path.exists():
        return result
    view = read_run_ledger(folder)
    try:
        report = recorded_choice_epsilon(
            json.loads(path.read_text(encoding="utf-8")),
            view.segments(),
            delta=view.delta,
            relation=view.relation,
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"'{path}' is damaged ({type(e).__name__}): without it the epsilon of the choice that kept this "
            "run cannot be stated. Restore it.",
            code="run-folder",
        ) from e
    return {
        **{name: value for name, value in result.items() if name != "seconds"},
        "epsilon": None if view.reproducible else finite(report.epsilon),
        "delta": report.delta,
        "neighbouring_relation": str(report.neighbouring_relation),
        "accountant": report.accountant,
        "chosen": True,
    }


def read_result(folder: Path, *, concluded: bool) -> dict[str, Any] | None:
    """What a run wrote at its end; None if it did not, or if the file is damaged: then it is made again."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"weights", "num_steps", *(("recipe",) if concluded else ())}
    if not isinstance(result, dict) or "chosen" not in result:
        needed.add("seconds")  # the best of several runs does not say its time
    return result if isinstance(result, dict) and needed <= result.keys() else None
