"""`reticent resume RUN`: go on with a run that was stopped.

Room: cli.
"""

from pathlib import Path

import click


@click.command("resume", short_help="Go on with a run that was stopped.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(run: Path, as_json: bool) -> None:
    """Go on with the run in folder RUN, from its newest whole checkpoint to the end of its plan.

    Steps after that checkpoint are lost and stay spent: the run stops when its ledger holds the
    planned number, so epsilon never exceeds the plan's. Noise and sampling get fresh keys.
    """
    from reticent.recipes import go_on  # torch is slow to import; --help should not wait for it

    from ._run_screen import finish, leads, progress_console

    result = go_on(run, console=progress_console() if leads() else None)
    if leads():
        finish(result, as_json=as_json)
