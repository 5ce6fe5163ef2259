"""`reticent sweep`: one recipe with many settings.

Room: cli.
"""

import json
from pathlib import Path
from typing import Any

import click

from reticent.cli._show import rounded_up


@click.command("sweep", short_help="Run a recipe with many settings, in parallel.")
@click.argument("target", metavar="RECIPE|SWEEP.toml")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of every run; repeatable."
)
@click.option("--grid", multiple=True, metavar="KEY=V1,V2,...", help="A setting that varies; repeatable.")
@click.option(
    "--plain-grid", multiple=True, metavar="KEY=V1,V2,...", help="What varies without privacy, e.g. lr=0.1,1."
)
@click.option(
    "--no-plain", is_flag=True, help="Leave out the runs without privacy that the plot compares with."
)
@click.option("--x", "x", help="Setting on the plot's horizontal axis.  [default: epsilon]")
@click.option("--series", help="Settings that have a line for each value, with commas.")
@click.option("--score", default="accuracy", show_default=True, help="Which test score compares runs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The sweep's folder; the same one goes on.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at once.  [default: one for each core]")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of each run."
)
@click.option(
    "--validation",
    type=click.Choice(["public"]),
    help="State that the data scores are measured on is public.",
)
@click.option(
    "--trials-distribution",
    type=click.Choice(["poisson", "negative-binomial", "geometric", "logarithmic"]),
    help="Keep only the best of a random number of runs, and account for the choice.",
)
@click.option(
    "--mean-trials",
    type=float,
    default=10.0,
    show_default=True,
    help="Expected number of runs, with --trials-distribution.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    target: str,
    settings: tuple[str, ...],
    grid: tuple[str, ...],
    plain_grid: tuple[str, ...],
    no_plain: bool,
    x: str | None,
    series: str | None,
    score: str,
    out: Path,
    jobs: int | None,
    threads: int,
    validation: str | None,
    trials_distribution: str | None,
    mean_trials: float,
    as_json: bool,
) -> None:
    """Run RECIPE with every combination of the grids' values, in parallel.

    Leaves a table, a plot of the score against epsilon beside the runs without privacy, and what all runs
    cost together. Choosing settings by private runs costs privacy: with --trials-distribution only the
    best of a random number of runs is kept, and the epsilon stated pays for the choice.
    """
    from reticent.account import RandomTrials, TrialsDistribution
    from reticent.sweep import Choice, read_sweep, sweep

    from ._run_screen import progress_console

    choice = None
    if trials_distribution is not None:
        distribution = TrialsDistribution(trials_distribution)
        choice = Choice(trials=RandomTrials(distribution=distribution, mean=mean_trials))
    result = sweep(
        read_sweep(target, settings, grid, plain_grid, x=x, series=series),
        out=out,
        plain=not no_plain,
        validation_public=validation == "public",
        choice=choice,
        score=score,
        jobs=jobs,
        threads=threads,
        console=progress_console(),
    )
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    _show(result)


def _show(result: dict[str, Any]) -> None:
    privacy = result["privacy"]
    for line in result.get("lines", ()):
        name = "private" if line["private"] else "without privacy"
        click.echo(name if line["series"] is None else f"{line['series']}, {name}")
        for point in line["points"]:
            varied = ", ".join(f"{k}={v}" for k, v in point["settings"].items())
            click.echo(f"  {point['score']:.4f}  {varied}")
    if result["best"] is not None:
        varied = ", ".join(f"{k}={v}" for k, v in result["best"]["settings"].items())
        click.echo(f"best: {result['best']['score']:.4f} with {varied}")
    if "epsilon" in privacy:
        click.echo(f"epsilon of the choice: {_epsilon(privacy['epsilon'])} at delta {privacy['delta']:g}")
    elif privacy["num_ledgers"]:
        click.echo(
            f"epsilon of one run: {_epsilon(privacy['epsilon_one'])}; of all {privacy['num_ledgers']} "
            f"together: {_epsilon(privacy['epsilon_all'])}, at delta {privacy['delta']:g}"
        )
    for note in result["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"sweep: {result['out']}")


def _epsilon(value: float | None) -> str:
    return "none (not private)" if value is None else rounded_up(value)
