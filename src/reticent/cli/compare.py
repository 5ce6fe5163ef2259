"""`reticent compare RUN...`: runs side by side.

Room: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reticent.report import Comparison


@click.command("compare", short_help="Lay runs side by side: epsilon, accuracy, where settings differ.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write.  [default: compare.html beside the first run's folder]",
)
@click.option("--delta", type=float, help="Of what runs on the same data spend together, if theirs differ.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(runs: tuple[Path, ...], out: Path | None, delta: float | None, as_json: bool) -> None:
    """Lay RUNs side by side, as a table and as one self-contained page.

    Every epsilon is computed from the run's own ledger. Runs that name the same data set are also stated
    together, as to somebody who sees the results of all of them.
    """
    from reticent.cli._show import print_json
    from reticent.report import compare, write_comparison  # slow to import; --help should not wait for it

    found = compare(runs, delta=delta)
    page = write_comparison(found, out or runs[0].resolve().parent / "compare.html")
    if as_json:
        print_json({"page": str(page), **found.to_dict()})
    else:
        _print(found, page)


def _print(found: "Comparison", page: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from reticent.cli._show import rounded_up

    console = Console(highlight=False, markup=False)
    table = Table(title=f"{len(found.runs)} runs", title_justify="left", box=box.SIMPLE)
    for name in ("", *(one.label for one in found.runs)):
        table.add_column(name, overflow="fold")
    facts = [one.to_dict() for one in found.runs]
    for name, values in (
        ("epsilon", [rounded_up(f["epsilon"]) if f["private"] else "NONE: not private" for f in facts]),
        ("delta", [_shown(f["delta"], "{:g}") for f in facts]),
        ("test accuracy", [_shown(f["test_accuracy"], "{:.2%}") for f in facts]),
        ("  without privacy", [_shown(f["twin_test_accuracy"], "{:.2%}") for f in facts]),
        ("steps", [_shown(f["num_steps"], "{:,}") for f in facts]),
        ("sampling", [f["sampling"] for f in facts]),
        ("noise multiplier", [_shown(f["noise_multiplier"], "{:.6g}") for f in facts]),
        ("recipe", [f["recipe"] or "none" for f in facts]),
        ("data", [f["data"] for f in facts]),
    ):
        table.add_row(name, *values)
    for name, values in found.different:
        if not name.startswith(("plan.", "environment.")):
            table.add_row(f"differs: {name}", *(value or "not set" for value in values))
    console.print(table)
    for some in found.together:
        spent = some.why_not or (
            f"epsilon {rounded_up(some.report.epsilon)} at delta {some.report.delta:g}" if some.report else ""
        )
        console.print(f"{', '.join(some.labels)} together, on {some.data}: {spent}")
    console.print(f"page: {page}", soft_wrap=True)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
