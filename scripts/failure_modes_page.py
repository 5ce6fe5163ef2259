"""Assemble `docs/failure-modes.md` from the docstrings of `tests/failure_modes/`, one function a row.

python scripts/failure_modes_page.py            writes docs/failure-modes.md
python scripts/failure_modes_page.py --check    exits 1 if the page is not what the tests say

A test of row 7 is called `test_fm_07_...`. Its docstring is a paragraph that says what goes wrong, and then
`Severity: critical|serious|minor` and `Prevented: ...`.
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "failure_modes"
PAGE = ROOT / "docs" / "failure-modes.md"
NUM_ROWS = 65
SEVERITIES = ("critical", "serious", "minor")

INTRO = """\
# Failure modes

<!-- Made by scripts/failure_modes_page.py from tests/failure_modes/; edit there. -->

How software for private training goes wrong, and what keeps it from happening here. Each row is a mistake
that libraries, papers or scripts have made. Its test plants the fault, or measures what would show it, and
is run with every change.

- **critical**: the reported epsilon is false for an ordinary run, often without any sign;
- **serious**: false in a regime, or against a strong adversary;
- **minor**: the guarantee holds; the result is worse, or the run stops.

Processes that were not named as a step's ranks are refused; ranks that were have tests in `tests/dist/`.

| # | what goes wrong | severity | what prevents it | test |
|---|---|---|---|---|
"""

_NAME = re.compile(r"test_fm_(\d\d)_\w+")
_DOCSTRING = re.compile(
    r"(?P<wrong>.+?)\n\s*Severity: (?P<severity>\w+)\n\s*Prevented: (?P<prevented>.+)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One failure mode, as its test describes it."""

    number: int
    wrong: str
    severity: str
    prevented: str
    file: str
    test: str


def rows(tests: Path = TESTS) -> list[Row]:
    """All rows, by number.

    Raises:
        ValueError: a row has no test or two, or its test does not describe it.
    """
    found: dict[int, Row] = {}
    for path in sorted(tests.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = _NAME.fullmatch(node.name) if isinstance(node, ast.FunctionDef) else None
            if name is None or not isinstance(node, ast.FunctionDef):
                continue
            row = _row(int(name[1]), node, path)
            if row.number in found:
                raise ValueError(f"row {row.number} has two tests: {found[row.number].test}, {row.test}")
            found[row.number] = row
    if sorted(found) != list(range(1, NUM_ROWS + 1)):
        raise ValueError(f"rows without a test: {sorted(set(range(1, NUM_ROWS + 1)) - set(found))}")
    return [found[number] for number in sorted(found)]


def _row(number: int, node: ast.FunctionDef, path: Path) -> Row:
    match = _DOCSTRING.fullmatch((ast.get_docstring(node) or "").strip())
    if match is None or match["severity"] not in SEVERITIES:
        raise ValueError(f"{path.name}: {node.name} does not say what goes wrong, how bad, what prevents it")
    wrong, prevented = (" ".join(match[part].split()) for part in ("wrong", "prevented"))
    return Row(
        number=number,
        wrong=wrong,
        severity=match["severity"],
        prevented=prevented,
        file=f"tests/failure_modes/{path.name}",
        test=node.name,
    )


def page(tests: Path = TESTS) -> str:
    """The whole page."""
    return INTRO + "".join(
        f"| {row.number} | {_cell(row.wrong)} | {row.severity} | {_cell(row.prevented)} "
        f"| `{row.file}` `{row.test}` |\n"
        for row in rows(tests)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write or check the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is stale")
    wanted = page()
    if parser.parse_args().check:
        if (PAGE.read_text(encoding="utf-8") if PAGE.exists() else "") != wanted:
            print(
                "docs/failure-modes.md is stale: run `python scripts/failure_modes_page.py`.", file=sys.stderr
            )
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
