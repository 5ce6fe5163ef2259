"""Labelled texts: the data sets known by name, and a person's own files.

Room: recipes.text. Imports numpy and `reticent.{data,errors}`.

Of an own file the number of rows (of users, where there are users) and the labels' names are public; the
names are given, not read, since a label that one row alone has would give that row away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from reticent.data import Table, has_split, load, read_table
from reticent.errors import DataError

from .._reader import table_of, text_lines
from .._stamp import remembered
from ._users import HELD_OUT, held_out, names_of, texts_of

# Rows to train on and number of labels: public constants.
KNOWN: Final = MappingProxyType(
    {
        "rotten-tomatoes": (7_464, 2),
        "imdb": (25_000, 2),
        "spam-assassin": (5_000, 2),
        "brown": (51_698, 15),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFile:
    """Where a person's own rows are, and how to read them.

    Args:
        path: a file, or a folder that `datasets` saved.
        text_column: of the texts.
        pair_column: of second texts, where rows are pairs.
        label_column: of the labels.
        user_column: of the names of whose rows they are; None: each row is a unit of its own.
        labels: all of them, in order; None: labels are numbers.
        test_data: a file of rows to score on.
        test_split: the split of `path` to score on.
        test_fraction: without either, the share of rows that is held out.
    """

    path: str
    text_column: str
    pair_column: str | None
    label_column: str
    user_column: str | None
    labels: tuple[str, ...] | None
    test_data: str | None
    test_split: str | None
    test_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """Texts with labels. The repr shows neither.

    Args:
        texts: one a row.
        seconds: one a row, where rows are pairs.
        y: int64 labels (N,), or float64 numbers.
        users: whose each row is, where there are users.
    """

    texts: Sequence[str] = field(repr=False)
    seconds: Sequence[str] | None = field(repr=False)
    y: np.ndarray = field(repr=False)
    users: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_units(self) -> int:
        """Rows, or users."""
        return len(self) if self.users is None else len(set(self.users))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """Rows to train on and to score on.

    Args:
        train: rows to train on.
        test: rows to score on.
        about: of the data, for the run's description; nothing private.
    """

    train: Labelled
    test: Labelled
    about: dict[str, Any]


def num_units(name: str, file: LabelledFile | None) -> int:
    """Rows or users to train on: a public constant, or of a person's own file what it holds."""
    return KNOWN[name][0] if file is None else _own(file).train.num_units


def splits(name: str, file: LabelledFile | None, *, report: Callable[[str], None], progress: bool) -> Splits:
    """Rows of a known data set, or of a person's own files.

    Args:
        name: of the known data set.
        file: the person's own instead.
        report: called with each line about fetching.
        progress: whether to show a bar while fetching.

    Raises:
        DataError[data-missing]: no such file.
        DataError[data-column]: no such column; the message names those that there are.
        DataError[data-labels]: a label is none of those named, or no finite number.
        DataError[data-format]: a row's text is no text, or the file is not what its ending says.
        DataError[data-empty]: too few rows (users) to hold some out.
        DataError[user-column]: a row has no user.
    """
    if file is not None:
        return _own(file)
    found = load(name, report=report, progress=progress)
    train, test = (
        Labelled(texts=pair.x.tolist(), seconds=None, y=np.asarray(pair.y, np.int64))
        for pair in (found.train, found.test)
    )
    about = {"name": name, "source": found.source, "licence": found.licence, "sha256": found.sha256}
    return Splits(train=train, test=test, about=about)


@remembered(lambda file: [file.path, file.test_data], maxsize=4)
def _own(file: LabelledFile) -> Splits:
    path = Path(file.path)
    split = file.test_split
    table = read_table(path, split="train" if has_split(path, "train") else None)
    train = _rows(table, file)
    if file.test_data is not None or split is not None:
        other = read_table(Path(file.test_data or file.path), split=split)
        return Splits(train=train, test=_rows(other, file, with_users=False), about={"name": "file"})
    out = held_out(path.name, num_rows=len(train), users=train.users, share=file.test_fraction)
    return Splits(
        train=_taken(train, np.flatnonzero(~out)),
        test=_taken(train, np.flatnonzero(out)),
        about={"name": "file", "scored": HELD_OUT},
    )


def new_rows(path: Path, file: LabelledFile) -> tuple[Labelled, Sequence[str], bool]:
    """Rows to be predicted, what they are called, and whether they come with labels; without, those are 0.

    Args:
        path: a table with the columns of `file`, or a .txt with a text in each line.
        file: how to read it; its paths are not read.

    Raises:
        DataError[predict-data]: it is of another kind, or lines of single texts for a model of pairs.
        DataError: as `splits`.
    """
    if path.suffix.lower() == ".txt":
        if file.pair_column is not None:
            raise DataError(
                f"The model reads pairs of texts, and '{path}' has lines. Give a table with columns "
                f"{file.text_column} and {file.pair_column}.",
                code="predict-data",
            )
        names, texts = text_lines(path)
        return Labelled(texts=texts, seconds=None, y=np.zeros(len(texts))), names, False
    table = table_of(path)
    labelled = file.label_column in table.columns
    rows = _rows(table, file, with_users=False, labelled=labelled)
    return rows, [str(k + 1) for k in range(len(rows))], labelled


def _rows(table: Table, file: LabelledFile, *, with_users: bool = True, labelled: bool = True) -> Labelled:
    texts = texts_of(table, file.text_column, setting="text_column")
    seconds = None
    if file.pair_column is not None:
        seconds = texts_of(table, file.pair_column, setting="pair_column")
    if not labelled:
        return Labelled(texts=texts, seconds=seconds, y=np.zeros(len(texts)))
    column = table.column(file.label_column, setting="label_column")
    y = _numbers(column) if file.labels is None else _classes(column, file.labels)
    if y is None:
        wanted = "finite numbers" if file.labels is None else f"one of {', '.join(file.labels)}"
        raise DataError(
            f"Labels of '{table.name}', column '{file.label_column}', must be {wanted}; some are not. "
            + ("" if file.labels is None else "Name all of them with labels=...."),
            code="data-labels",
        )
    named = file.user_column if with_users else None  # public rows may be anybody's
    return Labelled(
        texts=texts, seconds=seconds, y=y, users=None if named is None else names_of(table, named)
    )


def _classes(column: Sequence[Any], labels: tuple[str, ...]) -> np.ndarray | None:
    index = {label: k for k, label in enumerate(labels)}
    found = [index.get(str(value)) for value in column]
    return None if None in found else np.asarray(found, np.int64)


def _numbers(column: Sequence[Any]) -> np.ndarray | None:
    """The numbers, if all are finite in the model's float32; text that spells one is one."""
    try:
        found = np.asarray([float(value) for value in column])
    except (TypeError, ValueError, OverflowError):
        return None
    return found if bool((np.abs(found) <= np.finfo(np.float32).max).all()) else None


def _taken(rows: Labelled, chosen: np.ndarray) -> Labelled:
    seconds = None if rows.seconds is None else [rows.seconds[int(k)] for k in chosen]
    users = None if rows.users is None else [rows.users[int(k)] for k in chosen]
    texts = [rows.texts[int(k)] for k in chosen]
    return Labelled(texts=texts, seconds=seconds, y=rows.y[chosen], users=users)
