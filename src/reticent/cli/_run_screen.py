"""What `train` and `resume` print at the end of a run.

Room: cli.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reticent.cli._show import rounded_up
from reticent.errors import ReticentError

if TYPE_CHECKING:  # --help need not wait for it
    from rich.console import Console
    from rich.table import Table


def leads() -> bool:
    """Whether this process speaks: of those that torchrun starts, the first does."""
    return int(os.environ.get("RANK", "0")) == 0


def progress_console() -> "Console":
    """Where progress and warnings go: standard error, so that standard output stays clean."""
    from rich.console import Console

    return Console(stderr=True)


def finish(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Write the report, then print the result: one JSON object, or a screen for people."""
    report = _write_report(Path(result["run"]))
    shown = {**result, "report": None if report is None else str(report)}
    if as_json:
        click.echo(json.dumps(shown, allow_nan=False))
        return
    from rich.console import Console

    Console().print(_screen(shown))


def _write_report(run: Path) -> Path | None:
    from reticent.report import write_report  # drawing is slow to import; --help should not wait for it

    try:
        return write_report(run).path
    except ReticentError as e:
        click.echo(f"The run is complete, but its report could not be written: {e}", err=True)
        return None


def _screen(result: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title=f"Run of recipe {result['recipe']}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if "fallback_from" in result:
        rows.append(
            ("ATTENTION", f"data of '{result['fallback_from']}' could not be reached; embedded data instead")
        )
    rows += [
        _privacy(result),
        *((name, f"{score} ({result['weights']} weights)") for name, score in _scores(result)),
    ]
    if "scored" in result:
        rows.append(("scores are of", result["scored"]))
    if "twin" in result:
        twin = result["twin"]
        rows += [
            (f"  {name} without privacy", f"{score} (same recipe, its own learning rate)")
            for name, score in _scores(twin)
        ]
        rows.append(
            ("time", f"{result['seconds']:.1f} s, {twin['time_ratio']:.2f} x the run without privacy")
        )
    elif "seconds" in result:  # the best of several does not say its own
        rows.append(("time", f"{result['seconds']:.1f} s in steps"))
    lost = result.get("num_lost", 0)
    rows.append(("steps", str(result["num_steps"]) + (f", {lost} of them lost and spent" if lost else "")))
    rows.append(("run", result["run"]))
    if result["report"] is not None:
        rows.append(("report", result["report"]))
    return rows


def _scores(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each number scored on the test data; the loss only where there is nothing better."""
    found = {
        name: value
        for name, value in result.items()
        if name.startswith("test_") and (value is None or isinstance(value, int | float))
    }
    shown = {name: value for name, value in found.items() if name != "test_loss"} or found
    return [(name.replace("_", " "), _score(name, value)) for name, value in shown.items()]


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.2%}" if name == "test_accuracy" else f"{value:.4g}"


def _privacy(result: Mapping[str, Any]) -> tuple[str, str]:
    if not result["private"]:
        why = "noise is reproducible" if "neighbouring_relation" in result else "trained without noise"
        return ("privacy", f"NONE: {why}")
    relation = result["neighbouring_relation"]
    return (
        "epsilon",
        f"{rounded_up(result['epsilon'])} at delta {result['delta']:g}, {relation} (from the ledger)",
    )
