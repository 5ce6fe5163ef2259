"""`reticent simulate`: try a large private run's settings at small batches.

Room: cli.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from reticent.cli._show import print_json, print_table, rounded_up


@click.command("simulate", short_help="Try a large run's settings at small batches. NOT private by itself.")
@click.argument("recipe", metavar="RECIPE|CONFIG.toml")
@click.option("--batch-size", type=float, required=True, help="Expected batch size of the simulation.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the large run's setting.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The simulation's folder, new or empty.  [default: runs/simulation-RECIPE-DATE-TIME]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--dry-run", is_flag=True, help="Print both plans; read no data.")
def command(
    recipe: str, batch_size: float, settings: tuple[str, ...], out: Path | None, as_json: bool, dry_run: bool
) -> None:
    """Imitate RECIPE, a large private run, at small batches, and print the large run's plan.

    Noise over batch size, steps, clipping and learning rate stay, so every mean gradient has as much noise as
    in the large run. Use it to choose settings. It is NOT private by itself: its own epsilon is large.
    """
    from reticent.recipes import request, simulate, simulation  # torch is slow to import

    from ._run_screen import progress_console

    found = simulation(request(recipe, settings), batch_size=batch_size)
    if dry_run:
        said = found.describe()
    else:
        folder = out or Path("runs") / f"simulation-{found.large.recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
        said = simulate(found, out=folder, console=progress_console())
    if as_json:
        print_json(said)
        return
    print_table("Simulation, NOT private by itself", _rows(said))


def _rows(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    small, large = said["simulation"], said["stands_for"]
    rows = []
    if "result" in said:
        result = said["result"]
        rows = [
            (name.replace("_", " "), f"{value}")
            for name, value in result.items()
            if name.startswith("test_") and not isinstance(value, list)  # of each class: in result.json
        ]
        rows.append(("run", result["run"]))
    rows += [
        ("simulation", f"{_plan(small)}; its own epsilon {rounded_up(small['epsilon'])}"),
        ("stands for", f"{_plan(large)}; epsilon {rounded_up(large['epsilon'])}"),
    ]
    if "device_hours" in large:
        hours = f"{large['device_hours']:.3g} device hours for {small['device_hours']:.3g}"
        rows.append(("cost", f"{hours}, at {large['device_hours_assume']}"))
    return [*rows, ("train it with", said["command"]), ("note", said["note"])]


def _plan(described: Mapping[str, Any]) -> str:
    return (
        f"batch {described['expected_batch_size']:g}, noise multiplier {described['noise_multiplier']:.6g}, "
        f"{described['num_steps']} steps"
    )
