"""`reticent predict RUN`: labels of new rows from the model that a run left.

Room: cli.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:  # --help need not wait for it
    from reticent.recipes import Predictions, TrainedModel

_SHOWN: Final = 10


@click.command("predict", short_help="Label new images, rows or texts with a run's model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="What to label: see above.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all rows to this file, as CSV."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows at once.  [default: as the run scored]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(run: Path, data: Path, out: Path | None, batch_size: int | None, as_json: bool) -> None:
    """Label the rows of --data with the model in folder RUN, prepared as the run prepared its own.

    --data is, for a model of images: an image, a folder of them, or one with a folder for each class; of a
    table: a file with its columns; of texts: a table, or a .txt with a text a line; of features: a NumPy
    file, or what the features were made from. Labels in it, if there are any, are compared.

    Only the weights are read: nothing is added to the privacy the run has spent.
    """
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out: there is no folder '{out.parent}'.")
    if out is not None and out.exists() and data.exists() and out.samefile(data):
        raise click.UsageError("--out would replace the file of --data: choose another name.")
    from rich.progress import Progress

    from reticent.recipes import load_model  # torch is slow: --help should not wait for it

    from ._run_screen import progress_console

    model = load_model(run)
    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        found = model.predict(
            data,
            batch_size=batch_size,
            watch=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if out is not None:
        found.write(out)
    shown: dict[str, Any] = {
        "run": str(run),
        "recipe": model.recipe,
        "weights": model.weights,
        "num_rows": len(found),
        "accuracy": found.accuracy,
        "squared_error": found.squared_error,
        "left_out": found.left_out,
        "out": None if out is None else str(out),
    }
    if as_json:
        rows = {} if out else {"rows": found.records()}
        click.echo(json.dumps({**shown, **rows}, allow_nan=False))
        return
    _show(model, found, written=out is not None)
    if out is not None:
        click.echo(str(out))


def _show(model: "TrainedModel", found: "Predictions", *, written: bool) -> None:
    """The first rows, and how many of all labels are right."""
    from itertools import islice

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ._show import plain

    few = len(found.header) <= 8  # more columns are for --out
    header = found.header if few else found.header[: -len(found.classes)]
    table = Table(title=f"{len(found):,} rows, {model.weights} weights", title_justify="left", box=box.SIMPLE)
    for name in header:
        table.add_column(plain(name), overflow="fold")
    for line in islice(found.lines(), _SHOWN):
        table.add_row(*(plain(cell) for cell in line[: len(header)]))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if len(found) > _SHOWN:
        click.echo(
            f"and {len(found) - _SHOWN:,} more" + ("" if written else ": --out FILE writes all of them")
        )
    if found.left_out:
        click.echo(f"{found.left_out} files are no images by their endings, and were left out")
    if found.accuracy is not None:
        click.echo(f"accuracy {found.accuracy:.2%}")
    if found.squared_error is not None:
        click.echo(f"mean squared error {found.squared_error:.4g}")
