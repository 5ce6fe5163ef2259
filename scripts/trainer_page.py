"""Write the tables of `docs/trainer.md` and `docs/sft.md` from `reticent.hf.FIELDS` and `SFT_FIELDS`.

python scripts/trainer_page.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- table: scripts/trainer_page.py -->\n", "<!-- end of table -->\n"


def table(fields: Mapping[str, Any]) -> str:
    """One line a field, in the order supported, harmless, refused, then by name."""
    order = ("supported", "harmless", "refused")
    rows = sorted(fields.items(), key=lambda item: (order.index(item[1].kind), item[0]))
    lines = [f"| `{name}` | {use.kind} | {use.why} |" for name, use in rows]
    return "\n".join(["| field | kind | how it is read, or why not |", "|---|---|---|", *lines]) + "\n"


def main() -> None:
    """Put the tables into the pages."""
    from reticent.hf import FIELDS, SFT_FIELDS

    for name, fields in (("trainer.md", FIELDS), ("sft.md", SFT_FIELDS)):
        page = PAGES / name
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(before + BEGIN + "\n" + table(fields) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
