"""`reticent train`: run a recipe.

Room: cli.
"""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reticent.recipes import Request


@click.command("train", short_help="Train a recipe with differential privacy.")
@click.argument("recipe", default="fashion-mnist", metavar="[RECIPE|CONFIG.toml]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder, new or empty.  [default: runs/RECIPE-DATE-TIME]",
)
@click.option(
    "--resume",
    "or_resume",
    is_flag=True,
    help="If --out holds a run of this recipe with these settings, go on with it (for restarts).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--dry-run", is_flag=True, help="Check the settings and print the plan; read no data.")
def command(
    recipe: str,
    settings: tuple[str, ...],
    out: Path | None,
    or_resume: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Train RECIPE (fashion-mnist, digits, ...), or what a CONFIG.toml names, with differential privacy.

    The run's folder holds its ledger, checkpoints, metrics, weights and a report. Epsilon is read
    from the ledger. A run that is stopped goes on with `reticent resume`.
    """
    from reticent.recipes import request, run, run_or_go_on  # torch is slow: --help should not wait for it

    from ._run_screen import finish, leads, progress_console

    asked = request(recipe, settings)
    if dry_run:
        _print_plan(asked, as_json=as_json)
        return
    _require_folder(out, or_resume=or_resume)
    folder = out or Path("runs") / f"{asked.recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        console = progress_console() if leads() else None
        result = (run_or_go_on if or_resume else run)(asked, out=folder, console=console)
    except KeyboardInterrupt:
        if folder.exists():
            click.echo(f"Stopped. Go on with: reticent resume {folder}", err=True)
        raise
    if leads():
        finish(result, as_json=as_json)


def _require_folder(out: Path | None, *, or_resume: bool) -> None:
    """Refuse to begin anew, in a folder named after the time, where a run of before is to go on."""
    from reticent.errors import ConfigError

    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if out is None and (or_resume or restarted):
        why = "torchrun has started this process again" if restarted else "--resume"
        raise ConfigError(
            f"{why}, and no --out names the folder of the run to go on with: a new run would spend its "
            "epsilon once more, in a ledger of its own. Start with --out FOLDER --resume.",
            code="restart-folder",
        )


def _print_plan(asked: "Request", *, as_json: bool) -> None:
    from reticent.recipes import describe

    shown = describe(asked)
    if as_json:
        click.echo(json.dumps(shown, allow_nan=False))
        return
    click.echo(f"Recipe {asked.recipe.name}: {asked.recipe.summary}. Nothing was read, nothing spent.")
    of_plan = {name: shown[name] for name in ("sampler", "expected_batch_size", "max_norm") if name in shown}
    rows = {**shown, **asked.config.public_dict(), **of_plan}
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        if name not in ("recipe", "config", "chosen"):
            why = f"   [{reason}]" if (reason := shown.get("chosen", {}).get(name)) else ""
            click.echo(f"  {name:{width}}{'none' if value is None else value}{why}")
