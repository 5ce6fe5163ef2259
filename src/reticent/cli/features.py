"""`reticent features`: compute features with a frozen model, once, into a store.

Room: cli.
"""

from pathlib import Path

import click

from reticent.cli._show import print_json, print_table


@click.group("features", short_help="Compute features with a frozen model, into a store.")
def command() -> None:
    """Features of a data set, computed once and kept on disk for `reticent train last-layer`."""


@command.command("extract", short_help="Fill a feature store, or finish one.")
@click.option("--model", required=True, help="efficientnet-lite0, minilm, mpnet, timm:NAME, a folder, ...")
@click.option("--data", required=True, help="A data set's name (cifar10, imdb, ...), or a folder of images.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The store's folder."
)
@click.option("--size", type=click.IntRange(min=8), help="Side of images as the model sees them.")
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens of a text that are read.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the features on disk.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def extract(
    model: str,
    data: str,
    out: Path,
    size: int | None,
    max_length: int | None,
    batch_size: int,
    precision: str,
    as_json: bool,
) -> None:
    """Put every example of a data set through a frozen MODEL once. Labels are stored and never shown to it.

    Run the same command again to go on with an extraction that was interrupted; a finished store is
    left as it is, and one that another model made is refused.
    """
    from reticent.recipes.features import run_extraction  # torch is slow to import

    from ._run_screen import progress_console

    done = run_extraction(
        model=model,
        data=data,
        out=out,
        size=size,
        max_length=max_length,
        batch_size=batch_size,
        precision="float32" if precision == "float32" else "float16",
        console=progress_console(),
    )
    if as_json:
        print_json(done)
        return
    print_table("Feature store", [(name, str(value)) for name, value in done.items()])
