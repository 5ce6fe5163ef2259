"""`reticent report RUN`: one self-contained page about a run.

Room: cli.
"""

import json
from pathlib import Path

import click


@click.command("report", short_help="Write a page about a run: privacy statement, curves, settings.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
def command(run: Path, as_json: bool) -> None:
    """Write RUN/report.html, one self-contained page, and print where it is.

    RUN is the folder that `reticent train --out` wrote. Epsilon is computed again from its ledger.
    """
    from reticent.report import write_report  # drawing is slow to import; --help should not wait for it

    written = write_report(run)
    if not as_json:
        click.echo(str(written.path))
        return
    ledger, statement = written.run.ledger, written.statement
    click.echo(
        json.dumps(
            {
                "report": str(written.path),
                "run": str(written.run.folder),
                "private": statement.private,
                "epsilon": statement.report.epsilon if statement.private and statement.report else None,
                "delta": ledger.delta if ledger else None,
                "neighbouring_relation": ledger.relation.value if ledger else None,
                "num_steps": ledger.num_steps if ledger else None,
                "planned_steps": ledger.planned_steps if ledger else None,
                "lost_steps": ledger.num_lost if ledger else None,
                "sound": written.verification.sound,
                "problems": list(written.verification.problems),
                "warnings": list(statement.warnings),
            },
            allow_nan=False,
        )
    )
