"""Write the table of the arguments of `Trainer` in `docs/lightning.md` from `reticent.lightning.ARGUMENTS`.

python scripts/lightning_page.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lightning.md"
BEGIN, END = "<!-- table: scripts/lightning_page.py -->\n", "<!-- end of table -->\n"


def table(fields: Mapping[str, Any]) -> str:
    """One line a field, in the order supported, harmless, refused, then by name."""
    order = ("supported", "harmless", "refused")
    rows = sorted(fields.items(), key=lambda item: (order.index(item[1].kind), item[0]))
    lines = [f"| `{name}` | {use.kind} | {use.why} |" for name, use in rows]
    return "\n".join(["| argument | kind | how it is read, or why not |", "|---|---|---|", *lines]) + "\n"


def main() -> None:
    """Put the table into the page."""
    from reticent.lightning import ARGUMENTS

    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + table(ARGUMENTS) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
