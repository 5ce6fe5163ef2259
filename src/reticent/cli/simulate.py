"""`reticent simulate`: try a large private run's settings at small batches.

Room: cli.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from reticent.cli._show import plain, print_json, print_table, rounded_up


@click.command("simulate", short_help="Try a large run's settings at small batches. NOT private by itself.")
@click.argument("recipe", metavar="RECIPE|CONFIG.toml")
@click.option("--batch-size", type=float, required=True, help="Expected batch size of the simulation.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the large run's setting.")
@click.option(
    "--try", "tried", multiple=True, metavar="KEY=V1,V2,...", help="A setting to choose; repeatable."
)
@click.option("--score", help="With --try: which held-out score chooses.  [default: accuracy]")
@click.option("--jobs", type=click.IntRange(min=1), help="With --try: runs at once.  [default: 1]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder, new or empty; with --try, the same goes on.  [default: runs/simulation-RECIPE-DATE]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--dry-run", is_flag=True, help="Print both plans; read no data.")
def command(
    recipe: str,
    batch_size: float,
    settings: tuple[str, ...],
    tried: tuple[str, ...],
    score: str | None,
    jobs: int | None,
    out: Path | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Imitate RECIPE, a large private run, at small batches, and print the large run's plan.

    Noise over batch size, steps, clipping and learning rate stay, so every mean gradient has as much noise as
    in the large run. With --try, every combination of the values is imitated, and the one with the best score
    on held-out training rows is told. It is NOT private by itself: its own epsilon is large.
    """
    if not tried and (score or jobs):
        raise click.UsageError("--score and --jobs are for --try, and nothing is tried")
    said = (
        _several(recipe, batch_size, settings, tried, score or "accuracy", jobs or 1, out, dry_run=dry_run)
        if tried
        else _one(recipe, batch_size, settings, out, dry_run=dry_run)
    )
    if as_json:
        print_json(said)
        return
    if "trials" in said:
        _print_trials(said)
    if "command" in said:
        print_table("Simulation, NOT private by itself", _rows(said))
    else:
        click.echo(f"note: {said['note']}")


def _one(
    recipe: str, batch_size: float, settings: Sequence[str], out: Path | None, *, dry_run: bool
) -> dict[str, Any]:
    from reticent.recipes import request, simulate, simulation  # torch is slow to import

    from ._run_screen import progress_console

    found = simulation(request(recipe, settings), batch_size=batch_size)
    if dry_run:
        return found.describe()
    return simulate(found, out=out or _folder(found.large.recipe.name), console=progress_console())


def _several(
    recipe: str,
    batch_size: float,
    settings: Sequence[str],
    tried: Sequence[str],
    score: str,
    jobs: int,
    out: Path | None,
    *,
    dry_run: bool,
) -> dict[str, Any]:
    from reticent.sweep import read_simulations, simulate_each  # as above

    from ._run_screen import progress_console

    asked = read_simulations(recipe, settings, tried, batch_size=batch_size)
    if dry_run:
        return asked.describe()
    folder, console = out or _folder(asked.recipe), progress_console()
    console.print(
        f"{len(asked.each)} simulations; if interrupted, the same command with --out {folder} goes on",
        markup=False,
        highlight=False,
    )
    return simulate_each(asked, out=folder, score=score, jobs=jobs, console=console)


def _folder(recipe: str) -> Path:
    return Path("runs") / f"simulation-{recipe}-{datetime.now():%Y%m%d-%H%M%S}"


def _print_trials(said: Mapping[str, Any]) -> None:
    """A line for each setting, the best first; of a dry run what each would do."""
    from rich import box  # --help need not wait for it
    from rich.console import Console
    from rich.table import Table

    trials = said["trials"]
    table = Table(title="Tried, NOT private", title_justify="left", box=box.SIMPLE)
    names = list(trials[0]["settings"])
    for name in (*names, f"held-out {said['score']}" if "score" in said else "simulation"):
        table.add_column(name, overflow="fold")
    for trial in trials:
        cells = [plain(str(trial["settings"][name])) for name in names]
        table.add_row(*cells, plain(_plan(trial["simulation"]) if "simulation" in trial else _scored(trial)))
    Console(highlight=False, markup=False).print(table)


def _scored(trial: Mapping[str, Any]) -> str:
    if trial["score"] is None:
        return f"failed: {trial['error']}" if trial["error"] else "no such score"
    several = f" ± {trial['spread']:.4f}, {len(trial['runs'])} seeds" if len(trial["runs"]) > 1 else ""
    return f"{trial['score']:.4f}{several}"


def _rows(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    small, large = said["simulation"], said["stands_for"]
    rows = []
    if "result" in said:
        result = said["result"]
        of = "held-out" if "scored" in result else "test"
        rows = [
            (f"{of} {name.removeprefix('test_').replace('_', ' ')}", f"{result[name]}")
            for name in result
            if name.startswith("test_") and not isinstance(result[name], list)
        ]
        rows.append(("run", result["run"]))
    rows += [
        ("simulation", f"{_plan(small)}; its own epsilon {rounded_up(small['epsilon'])}"),
        ("stands for", f"{_plan(large)}; epsilon {rounded_up(large['epsilon'])}"),
    ]
    if "device_hours" in large:
        hours = f"{large['device_hours']:.3g} device hours for {small['device_hours']:.3g}"
        rows.append(("cost", f"{hours}, at {large['device_hours_assume']}"))
    rows.append(("train it with", said["command"]))
    if "command_on_all_rows" in said:  # the first one's scores are of private rows
        rows.append(("or on all rows", said["command_on_all_rows"]))
    return [*rows, ("note", said["note"])]


def _plan(described: Mapping[str, Any]) -> str:
    return (
        f"batch {described['expected_batch_size']:g}, noise multiplier {described['noise_multiplier']:.6g}, "
        f"{described['num_steps']} steps"
    )
