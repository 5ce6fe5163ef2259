"""Numbers as people read them, without ever flattering the privacy.

Room: cli. May import rich.
"""

import json
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context
from typing import Any

import click


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on one line. JSON has no infinity: it becomes null."""
    click.echo(json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Two columns: what, and how much."""
    from rich import box  # --help need not wait for it
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(plain(name), plain(value))
    console = Console(highlight=False, markup=False)
    console.print(table)


def plain(text: str) -> str:
    """Text without characters that a terminal obeys: what a run's files hold may be anybody's."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_warnings(warnings: Sequence[str]) -> None:
    """Each on one line of standard error, so that `--json` stays clean."""
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def rounded_up(value: float | None, digits: int = 5) -> str:
    """An epsilon for people: rounded up, so that the text is never below the number."""
    if value is None:
        return "not computed"
    if not math.isfinite(value):
        return "infinite: no privacy"
    return f"{float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal_from_float(value)):g}"
