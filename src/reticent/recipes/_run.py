"""From what a person asks for to a run: settings checked, and handed to the recipe.

Room: recipes. May import rich and the floors below.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from reticent.errors import ConfigError

from ._config import make_config, nearest, parse_settings, read_toml, restore_config
from ._recipe import Request
from ._table import DEFAULT_RECIPE, recipes


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


def describe(asked: Request) -> dict[str, Any]:
    """What would run, as JSON values, with all settings under `config`; spends nothing.

    Raises:
        AccountingError, ConfigError: no noise meets the budget, or settings contradict each other.
    """
    return {
        "recipe": asked.recipe.name,
        "private": asked.config.private,
        **asked.recipe.describe(asked),
        "config": asked.config.public_dict(),
    }


def run(asked: Request, *, out: Path, console: Console | None = None, data: Any = None) -> dict[str, Any]:
    """Run a recipe to its end.

    Args:
        asked: recipe and settings.
        out: the run's folder; new or empty.
        console: where to show progress and what matters.
        data: use this instead of what the recipe would fetch or read.

    Returns:
        The result as JSON values, as in `result.json`: `private`, `epsilon` (None where there is no
        privacy), `delta`, `test_accuracy`, `run`, `recipe` and more.

    Raises:
        ConfigError[out-exists]: the folder exists and is not empty.
        ReticentError: whatever is wrong with settings, data or model, before anything is spent.
    """
    _refuse_idle_ranks(asked)
    return asked.recipe.run(asked, out=out, console=console, data=data)


def run_or_go_on(asked: Request, *, out: Path, console: Console | None = None) -> dict[str, Any]:
    """`run`; or `go_on`, where the folder holds a run of this recipe with these settings already.

    For launchers that start the same command again: torchrun's restarts, a cluster's queue.

    Raises:
        ConfigError[other-run]: the folder holds a run of another recipe, or with other settings.
        ReticentError: as `run` and `go_on`.
    """
    if not (out / "run.json").exists():
        return run(asked, out=out, console=console)
    from reticent.train import read_run  # as above

    from ._training import instead_of

    about: Mapping[str, Any] = read_run(out)
    if about["data"].get("fallback_from") == asked.recipe.name:  # its data could not be reached then
        asked = instead_of(asked) or asked
    mine, theirs = json.loads(json.dumps(asked.config.public_dict())), about["config"]
    if about["recipe"] == asked.recipe.name:  # a run of an older version lacks what came later
        theirs = json.loads(json.dumps(restore_config(type(asked.config), theirs).public_dict()))
    if mine.get("physical_batch_size") == "auto":  # that run found a number, and needs no budget for it
        mine |= {name: theirs.get(name) for name in ("physical_batch_size", "memory_budget")}
    if mine.get("measure_norm"):  # that run measured it
        mine["max_norm"] = theirs.get("max_norm")
    other = ["recipe"] if about["recipe"] != asked.recipe.name else []
    other += [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    if other:
        raise ConfigError(
            f"'{out}' holds another run: {', '.join(other)} differ from what is asked for. Choose another "
            f"folder, or go on with that run as it is: reticent resume {out}",
            code="other-run",
        )
    return go_on(out, console=console)


def _refuse_idle_ranks(asked: Request) -> None:
    """Refuse torchrun for a recipe that only one process can run."""
    said = os.environ.get("WORLD_SIZE", "1")
    size = int(said) if said.isdecimal() else 1  # what is no number, `reticent.dist.joined` refuses
    if size > 1 and not hasattr(asked.config, "parallel"):
        raise ConfigError(
            f"The recipe '{asked.recipe.name}' runs in one process, and this is one of {size} that would "
            "each run it. Start it without torchrun.",
            code="several-ranks",
        )


def go_on(folder: Path, *, console: Console | None = None, data: Any = None) -> dict[str, Any]:
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
    from reticent.train import read_run  # torch is slow to import, and settings can be checked without it

    about: Mapping[str, Any] = read_run(folder)
    name = about["recipe"]
    if not isinstance(name, str) or name not in recipes():
        raise ConfigError(
            f"'{folder}' is no run of a recipe. Go on with it in Python: reticent.train.resume(model, ...).",
            code="not-a-run",
        )
    return recipes()[name].go_on(folder, about=about, console=console, data=data)
