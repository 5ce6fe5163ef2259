"""Rows of a person's own file: JSONL, CSV, Parquet, or a folder that `datasets` saved.

Room: data. Imports pyarrow (when a Parquet file or a folder is read) and `reticent.errors`.

Rows keep the file's order. Errors name the file, its columns and line numbers, never what a row holds.
"""

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import DataError

_KINDS: Final = ".jsonl, .csv, .tsv or .parquet, or a folder that datasets' save_to_disk made"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows by column. The repr shows the columns' names alone.

    Args:
        name: the file's name, for messages.
        columns: name -> one value a row, in the file's order.
    """

    name: str
    columns: Mapping[str, Sequence[Any]] = field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, *, setting: str) -> Sequence[Any]:
        """One column.

        Args:
            name: of the column.
            setting: what the person would change to name another one.

        Raises:
            DataError[data-column]: there is no such column.
        """
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise DataError(
                f"'{self.name}' has no column '{name}'; it has: {known}. Name one with {setting}=....",
                code="data-column",
            )
        return self.columns[name]


def read_table(path: Path, *, split: str | None = None) -> Table:
    """Read all rows of a file or folder.

    Args:
        path: what to read; its ending says how.
        split: which split of a folder that holds several.

    Raises:
        DataError[data-missing]: there is no such file, or no such split.
        DataError[data-format]: it is not what its ending says, or of a kind that is not read.
        DataError[data-empty]: it holds no rows.
        DataError[data-needs-package]: pyarrow is needed and not installed.
    """
    if not os.path.exists(path):  # false of a name too long, too
        raise DataError(f"There is no file or folder '{path}'.", code="data-missing")
    reader = _read_folder if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"'{path}' is of no kind that is read: {_KINDS}.", code="data-format")
    if split is not None and not (path / "dataset_dict.json").is_file():
        raise DataError(
            f"'{path}' is one table and has no splits, so no '{split}' either: leave the split out, or give "
            "a folder of several that datasets saved.",
            code="data-missing",
        )
    if path.is_dir():
        path = _split_folder(path, split)
    columns = reader(path)
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"'{path}' holds no rows.", code="data-empty")
    return Table(path.name, MappingProxyType(columns))


def has_split(path: Path, split: str) -> bool:
    """Whether `path` is a folder of several splits with this one among them."""
    return os.path.isfile(path / "dataset_dict.json") and os.path.isdir(path / split)


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    rows.append(_json_row(line, path, number))
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows, 1):
        if row.keys() != set(names):
            raise DataError(
                f"Row {number} of '{path}' has other keys than its first row ({', '.join(names)}). Give "
                "every row the same keys.",
                code="data-format",
            )
    return {name: [row[name] for row in rows] for name in names}


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(f"Line {number} of '{path}' is no JSON object.", code="data-format")
    return row


def _read_csv(path: Path, *, delimiter: str = ",") -> dict[str, list[Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            names = next(reader, [])
            rows = [row for row in reader if row]
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except csv.Error as e:
        raise DataError(f"'{path}' is no well-formed CSV: {e}.", code="data-format") from None
    if len(set(names)) != len(names):
        raise DataError(f"'{path}' has two columns of one name. Rename one.", code="data-format")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"Row {number} of '{path}' has {len(row)} fields and the header {len(names)}.",
                code="data-format",
            )
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    pa = _pyarrow("a Parquet file")
    try:
        return _checked(pa.parquet.read_table(path)).to_pydict()
    except (pa.ArrowException, OSError, UnicodeError) as e:
        raise DataError(
            f"'{path}' cannot be read as Parquet ({type(e).__name__}).", code="data-format"
        ) from None


def _split_folder(path: Path, split: str | None) -> Path:
    if not (path / "dataset_dict.json").is_file():
        return path
    wanted = path / (split or "train")
    if not wanted.is_dir():
        known = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir()))
        raise DataError(f"'{path}' has no split '{split or 'train'}'; it has: {known}.", code="data-missing")
    return wanted


def _read_folder(path: Path) -> dict[str, list[Any]]:
    """A folder of Arrow streams beside a `state.json` that lists them, as `datasets` writes it."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        files = [path / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"'{path}' is no folder that datasets' save_to_disk made: it has no state.json that lists its "
            "files.",
            code="data-format",
        ) from None
    if any(file.parent != path for file in files):
        raise DataError(f"'{path / 'state.json'}' names files outside its folder.", code="data-format")
    pa = _pyarrow("a folder of Arrow files")
    try:
        return pa.concat_tables(
            [_checked(pa.ipc.open_stream(file.read_bytes()).read_all()) for file in files]
        ).to_pydict()
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as e:
        raise DataError(
            f"'{path}' cannot be read as Arrow ({type(e).__name__}).", code="data-format"
        ) from None


def _checked(table: Any) -> Any:
    """The table, whose offsets were checked: pyarrow trusts a file's, and would read anywhere in memory."""
    table.validate(full=True)
    return table


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"Reading {what} needs pyarrow. Install it with: pip install 'reticent[text]'",
            code="data-needs-package",
        ) from None
    return pyarrow


def _not_utf8(path: Path) -> DataError:
    return DataError(f"'{path}' is not UTF-8. Convert it first.", code="data-format")


def _read_tsv(path: Path) -> dict[str, list[Any]]:
    return _read_csv(path, delimiter="\t")


_READERS: Final[Mapping[str, Callable[[Path], dict[str, list[Any]]]]] = MappingProxyType(
    {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".parquet": _read_parquet,
    }
)
