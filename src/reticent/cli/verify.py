"""`reticent verify RUN`: whether a run's parts agree, and its epsilon holds.

Room: cli.
"""

import math
from pathlib import Path
from typing import Any

import click

from reticent.cli._show import print_json, print_table, rounded_up


@click.command(
    "verify", short_help="Check a run: ledger, checkpoints, result, and its epsilon by other means."
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, run: Path, as_json: bool) -> None:
    """Check that the parts of RUN agree, and compute its epsilon again by several means.

    Exits with status 0 if the run is sound, 1 if it is not (and says why). A run that is not private
    and says so is sound.
    """
    from reticent.report import verify_run  # slow to import; --help should not wait for it

    found = verify_run(run)
    spent = found.report.epsilon if found.report is not None and found.private else None
    record: dict[str, Any] = {
        "run": str(found.run),
        "sound": found.sound,
        "problems": list(found.problems),
        "private": found.private,
        "epsilon": spent if spent is not None and math.isfinite(spent) else None,
        "delta": found.report.delta if found.report is not None else None,
        "checks": dict(found.checks),
        "left_out": dict(found.left_out),
        "statement": found.statement,
        "statement_sha256": found.statement_sha256,
    }
    if as_json:
        print_json(record)
    else:
        rows = [("sound", "yes" if found.sound else "NO")]
        rows += [("problem", problem) for problem in found.problems]
        rows += list(found.checks.items())
        rows += [(f"{name} (left out)", why) for name, why in found.left_out.items()]
        if spent is not None:
            rows.append(("epsilon", rounded_up(spent)))
        if found.statement_sha256 is not None:
            rows.append(("statement's SHA-256", found.statement_sha256))
        print_table("Verification", rows)
    if not found.sound:
        ctx.exit(1)
