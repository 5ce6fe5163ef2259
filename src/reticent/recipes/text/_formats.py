"""Public formats of dialogs and table-to-text data as tables of rows to train on.

Room: recipes.text. May import `reticent.data`; no torch.

Which rows are held out follows from their numbers, so rows stand here as they stand in the file: where a row
is, no other row decides. (What is evaluated joins the references of one source: see `_pairs.grouped`.)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from reticent.data import Table, read_table

from ._dialog import read_personachat
from ._pairs import SourceTargets
from ._table_to_text import e2e_rows, read_dart, read_e2e, read_webnlg

Format = Literal["table", "e2e", "dart", "webnlg", "persona-chat"]
READERS: Final[Mapping[str, Callable[[str | Path], list[SourceTargets]]]] = MappingProxyType(
    {"e2e": read_e2e, "dart": read_dart, "webnlg": read_webnlg, "persona-chat": read_personachat}
)


def table_in(path: Path, form: Format) -> Table:
    """Rows of a file; of a public format one for each reference, with columns `source` and `target`.

    Of Persona-Chat a row is a reply, and a column `dialog` numbers the dialogs: `user_column` may name it.

    Raises:
        DataError[text-format]: it is not of its format.
        DataError: of a table, as `read_table`.
    """
    if form == "table":
        return read_table(path)
    rows = e2e_rows(path) if form == "e2e" else READERS[form](path)
    flat = [(row.source, target, row.unit) for row in rows for target in row.targets]
    columns = {"source": [row[0] for row in flat], "target": [row[1] for row in flat]}
    if all(row[2] is not None for row in flat):
        columns["dialog"] = [str(row[2]) for row in flat]
    return Table(path.name, MappingProxyType(columns))
