"""Assemble `docs/errors.md` from `docs/errors.d/*.md`, one file a room, one heading a code.

python scripts/errors_page.py            writes docs/errors.md
python scripts/errors_page.py --check    exits 1 if the page is not what the parts say
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "docs" / "errors.d"
PAGE = ROOT / "docs" / "errors.md"

INTRO = """\
# Errors

<!-- Made by scripts/errors_page.py from docs/errors.d/; edit there. -->

Every error Reticent raises ends in a code in brackets: `max_norm must be a finite number > 0, got -1.
[clip-norm]`. Each code is a heading below. In Python the code is the attribute `code` of the exception;
all of our exceptions derive from `reticent.ReticentError` and from the builtin one would expect
(`ValueError`, `TypeError` or `RuntimeError`). The command line prints the message in one line and exits
with status 2.

Messages may show settings and shapes, which only the operator reads; they never show tensor values,
labels or records.
"""

_SECTION = re.compile(r"^## (?P<code>[a-z0-9-]+)[ \t]*\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def sections(parts: Path = PARTS) -> dict[str, str]:
    """Code -> explanation, over all parts. A code that two rooms use keeps both explanations."""
    found: dict[str, str] = {}
    for part in sorted(parts.glob("*.md")):
        for match in _SECTION.finditer(part.read_text(encoding="utf-8")):
            code, body = match["code"], match["body"].strip()
            if code in found and body not in found[code]:
                body = f"{found[code]}\n\n{body}"
            found[code] = body
    return found


def page(parts: Path = PARTS) -> str:
    """The whole page: the introduction, then every code in alphabetical order."""
    return INTRO + "".join(f"\n## {code}\n\n{body}\n" for code, body in sorted(sections(parts).items()))


def main() -> int:
    """Write or check the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is stale")
    wanted = page()
    if parser.parse_args().check:
        if (PAGE.read_text(encoding="utf-8") if PAGE.exists() else "") != wanted:
            print("docs/errors.md is stale: run `python scripts/errors_page.py`.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
