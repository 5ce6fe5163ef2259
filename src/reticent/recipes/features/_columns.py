"""A person's own table as features: each column by limits or categories that are public, and named, not read.

Room: recipes. Imports numpy and `reticent.{data,errors}`.

    age=18..100, bmi=10..60, smoker=no|yes

A number is cut to its limits and becomes one feature from -1 to 1; a category becomes one feature for each
value that the column may hold, 1 for its own and 0 for the others.

Shape letters (this file): N row, D feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from reticent.data import Table, has_split, read_table
from reticent.errors import DataError

from .._stamp import remembered
from ._methods import PublicShape
from ._sources import Features
from ._store import Split

_SPLIT_SEED: Final = 20_220_416  # which rows are held out; a public constant
Missing = Literal["refuse", "zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What a column may hold.

    Args:
        name: of the column.
        limits: the least and the greatest number; None for categories.
        values: the categories; empty for numbers.
    """

    name: str
    limits: tuple[float, float] | None
    values: tuple[str, ...]

    @property
    def num_features(self) -> int:
        """Features that it becomes."""
        return 1 if self.limits is not None else len(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """Where a person's own rows are, and how to read them.

    Args:
        path: a file, or a folder that `datasets` saved.
        columns: those that are read, in order.
        label_column: of the labels.
        labels: all of them, in order.
        missing: what becomes of a cell that is empty, no number, or none of the categories; "zero": all of
            its features are 0.
        test_data: a file of rows to score on.
        test_fraction: without it, the share of rows that is held out.
    """

    path: str
    columns: tuple[Column, ...]
    label_column: str
    labels: tuple[str, ...]
    missing: Missing
    test_data: str | None
    test_fraction: float

    @property
    def dim(self) -> int:
        """D."""
        return sum(column.num_features for column in self.columns)


def columns_of(text: str) -> tuple[tuple[Column, ...], list[str]]:
    """The columns that `name=least..greatest,name=one|other` says, and what is wrong with it."""
    found, problems = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, held = (piece.strip() for piece in part.partition("="))
        column = _column(name, held) if equals and name else None
        if column is None:
            problems.append(
                f"columns: '{part}' is neither NAME=LEAST..GREATEST, two finite numbers, the first below the "
                "second, nor NAME=VALUE|VALUE, two different values or more"
            )
        else:
            found.append(column)
    names = [column.name for column in found]
    if len(set(names)) < len(names):
        problems.append("columns names a column twice")
    return tuple(found), problems


def _column(name: str, held: str) -> Column | None:
    least, dots, greatest = held.partition("..")
    if dots and "|" not in held:
        try:
            limits = float(least), float(greatest)
        except ValueError:
            return None
        fits = all(map(math.isfinite, limits)) and limits[0] < limits[1]
        return Column(name=name, limits=limits, values=()) if fits else None
    values = tuple(value.strip() for value in held.split("|"))
    if len(values) < 2 or len(set(values)) < len(values) or not all(values):
        return None
    return Column(name=name, limits=None, values=values)


def names_in(path: str) -> list[str]:
    """Names of a file's columns, for a message to its owner; none if it cannot be read."""
    try:
        return list(read_table(Path(path)).columns)
    except DataError:
        return []


def num_rows(file: TableFile) -> int:
    """Rows to train on, a public number."""
    return len(_splits(file)[0])


def table_shape(file: TableFile) -> PublicShape:
    """N, D and K of a table."""
    return PublicShape(num_examples=num_rows(file), dim=file.dim, num_classes=len(file.labels))


def table_features(file: TableFile) -> Features:
    """Rows to train on and to score on, encoded.

    Guarantee:
        A row's features and label depend on that row and on `file` alone.

    Raises:
        DataError[data-missing], DataError[data-format]: no such file, or it is not what its ending says.
        DataError[data-column]: no such column; the message names those that there are.
        DataError[data-labels]: a label is none of those named.
        DataError[table-cells]: a cell is empty, no number, or none of the categories, and `missing` is
            "refuse".
        DataError[data-empty]: too few rows to hold some out.
    """
    train, test = _splits(file)
    about: dict[str, Any] = {
        "name": "file",
        "source": "file",
        "columns": {c.name: list(c.values or c.limits or ()) for c in file.columns},
        "classes": list(file.labels),
        "fingerprint": {"data": "file", "dim": file.dim},
    }
    if file.test_data is None:
        about["scored"] = "held-out rows of the file, NOT private"
    return Features(train=train, test=test, shape=table_shape(file), about=about)


@remembered(lambda file: [file.path, file.test_data], maxsize=4)
def _splits(file: TableFile) -> tuple[Split, Split]:
    path = Path(file.path)
    rows = _encoded(read_table(path, split="train" if has_split(path, "train") else None), file)
    if file.test_data is not None:
        return rows, _encoded(read_table(Path(file.test_data)), file)
    num_test = round(file.test_fraction * len(rows))
    if not 0 < num_test < len(rows):
        raise DataError(
            f"'{path.name}' has {len(rows)} rows: too few to hold {file.test_fraction:g} of them out.",
            code="data-empty",
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(rows))
    train, test = np.sort(order[num_test:]), np.sort(order[:num_test])
    return Split(rows.x[train], rows.y[train]), Split(rows.x[test], rows.y[test])


def new_rows(table: Table, file: TableFile) -> tuple[Split, bool]:
    """Rows to be predicted, encoded, and whether they come with labels; without, those are 0.

    Guarantee:
        As of `table_features`.

    Raises:
        DataError[data-column], DataError[data-labels], DataError[table-cells]: as `table_features`.
    """
    labelled = file.label_column in table.columns
    return _encoded(table, file, labelled=labelled), labelled


def _encoded(table: Table, file: TableFile, *, labelled: bool = True) -> Split:
    parts, holes = [], {}
    for column in file.columns:
        cells = table.column(column.name, setting="columns")
        x_ND, known_N = _cells(cells, column)
        holes[column.name] = int((~known_N).sum())
        parts.append(x_ND)
    bad = [f"'{name}' ({count})" for name, count in holes.items() if count]
    if bad and file.missing == "refuse":
        raise DataError(
            f"'{table.name}' has cells that are empty, no number, or none of the values that columns names: "
            f"in {', '.join(bad)}. Mend them, name all values, or set missing=zero: such a cell then counts "
            "as the middle of its limits, or as none of the values.",
            code="table-cells",
        )
    x = np.concatenate(parts, axis=1)
    if not labelled:
        return Split(x, np.zeros(len(x), dtype=np.int64))
    index = {label: k for k, label in enumerate(file.labels)}
    y = [index.get(str(label)) for label in table.column(file.label_column, setting="label_column")]
    if None in y:
        raise DataError(
            f"Labels of '{table.name}', column '{file.label_column}', must be one of "
            f"{', '.join(file.labels)}; some are not. Name all of them with labels=....",
            code="data-labels",
        )
    return Split(x, np.asarray(y, dtype=np.int64))


def _cells(cells: Sequence[Any], column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) of one column, zeros where a cell is not known, and which are (N,)."""
    if column.limits is None:
        index = {value: k for k, value in enumerate(column.values)}
        codes = np.array([index.get(_text(cell), -1) for cell in cells])
        x = (codes[:, None] == np.arange(len(column.values))).astype(np.float32)
        return x, codes >= 0
    least, greatest = column.limits
    numbers = np.array([_number(cell) for cell in cells])
    known = ~np.isnan(numbers)
    scaled = 2.0 * ((np.clip(numbers, least, greatest) - least) / (greatest - least)) - 1.0
    return np.where(known, scaled, 0.0).astype(np.float32)[:, None], known


def _text(cell: Any) -> str:
    return str(cell).strip()


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
