"""`reticent hardware`: how fast this machine is at private steps, into a file for `reticent plan --hardware`.

Room: cli.
"""

from pathlib import Path

import click

from reticent.cli._show import print_json, print_table


@click.command("hardware", short_help="Measure this machine, for reticent plan --hardware.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--bandwidth", type=click.FloatRange(0, min_open=True), help="Bytes a second between ranks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(out: Path, device: str, bandwidth: float | None, as_json: bool) -> None:
    """Time private steps of a few small models on this machine, and fit its rates to them.

    Under a minute where nothing else runs. The bandwidth between ranks is not measured: give it, or write it
    into the file.
    """
    from reticent.cost import measure, write_hardware  # torch is slow to import

    from ._run_screen import progress_console

    console = progress_console()
    say = console.print if console is not None else (lambda text: None)
    found = measure(device, bandwidth=bandwidth, report=say)
    write_hardware(found, out)
    if as_json:
        print_json(found.model_dump())
        return
    rows = [(name.replace("_", " "), f"{value}") for name, value in found.model_dump().items()]
    print_table("Hardware", rows)
