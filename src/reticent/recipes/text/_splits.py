"""Texts to train on and held out: of data sets by name, and of a person's own file, by row or by user.

Room: recipes.text. May import numpy, `reticent.{data,errors}`.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from reticent.data import Table, load
from reticent.errors import ConfigError

from .._stamp import remembered
from ._formats import Format, table_in
from ._users import HELD_OUT, SPLIT_SEED, held_out, names_of, some_users, texts_of

Pair = tuple[str, str]  # a source, which may be empty, and its target

# Texts by name: rows to train on, a public constant each.
KNOWN: Final = {"brown": 51_698, "imdb": 25_000, "rotten-tomatoes": 7_464, "spam-assassin": 5_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows to train on and held out.

    Args:
        train: (source, target) pairs.
        test: held-out pairs, of other users where there are users; or pairs of another file, anybody's.
        users: whose each training row is; None: a row is a unit of its own.
        scored: what the test rows are, if they are not public.
    """

    train: tuple[Pair, ...] = field(repr=False)
    test: tuple[Pair, ...] = field(repr=False)
    users: tuple[str, ...] | None = field(default=None, repr=False)
    scored: str | None = None

    @property
    def num_units(self) -> int:
        """Rows, or users, to train on."""
        return len(self.train) if self.users is None else len(set(self.users))


def some(split: Split, *, max_units: int | None, max_test: int | None) -> Split:
    """At most so many rows (users) to train on, and so many rows to test on, chosen by a public seed.

    Not the first ones: the rows of a file often come sorted.
    """
    test = _some(split.test, max_test)
    if max_units is None or split.num_units <= max_units:
        return replace(split, test=test)
    if split.users is None:
        return replace(split, train=_some(split.train, max_units), test=test)
    kept = some_users(split.users, max_units)
    rows = [k for k, user in enumerate(split.users) if user in kept]
    users = tuple(split.users[k] for k in rows)
    return replace(split, train=tuple(split.train[k] for k in rows), test=test, users=users)


def _some(rows: tuple[Pair, ...], size: int | None) -> tuple[Pair, ...]:
    if size is None or len(rows) <= size:
        return rows
    chosen = np.sort(np.random.default_rng(SPLIT_SEED).permutation(len(rows))[:size])
    return tuple(rows[int(k)] for k in chosen)


@lru_cache(maxsize=2)
def named_split(name: str, only_class: str | None) -> Split:
    """A data set by name, or one class of it.

    Raises:
        ConfigError[config]: it has no such class.
    """
    data = load(name)
    if only_class is not None and only_class not in data.class_names:
        raise ConfigError(
            f"'{name}' has no class '{only_class}'. It has: {', '.join(data.class_names)}.", code="config"
        )
    label = None if only_class is None else data.class_names.index(only_class)
    train, test = (
        tuple(("", str(text)) for text, y in zip(part.x, part.y, strict=True) if label in (None, y))
        for part in (data.train, data.test)
    )
    return Split(train=train, test=test)


@remembered(lambda path, *, test_data=None, **_: [path, test_data], maxsize=2)
def own_split(
    path: str,
    *,
    source_column: str | None,
    target_column: str,
    user_column: str | None,
    test_fraction: float,
    test_data: str | None = None,
    form: Format = "table",
) -> Split:
    """A person's own file, a share of it held out by a public seed: of its rows, or of its users.

    Whether a user is held out depends on nothing but the user's name. With `test_data`, a file of public
    rows, nothing is held out.

    Raises:
        DataError[data-column]: a column is missing.
        DataError[data-format]: a text is no text.
        DataError[text-format]: the file is not in the public format that `form` names.
        DataError[user-column]: a row has no user.
        DataError[data-empty]: too few rows (users) to hold that share out.
    """
    table, name = table_in(Path(path), form), Path(path).name
    rows = _pairs(table, source_column, target_column)
    users = None if user_column is None else names_of(table, user_column)
    if test_data is not None:
        test = _pairs(table_in(Path(test_data), form), source_column, target_column)
        return Split(train=rows, test=test, users=users)
    out = held_out(name, num_rows=len(rows), users=users, share=test_fraction)
    kept = np.flatnonzero(~out).tolist()
    return Split(
        train=tuple(rows[k] for k in kept),
        test=tuple(rows[k] for k in np.flatnonzero(out)),
        users=None if users is None else tuple(users[k] for k in kept),
        scored=HELD_OUT,
    )


def _pairs(table: Table, source_column: str | None, target_column: str) -> tuple[Pair, ...]:
    targets = texts_of(table, target_column, setting="text_column or target_column")
    sources = [""] * len(table)
    if source_column is not None:
        sources = texts_of(table, source_column, setting="source_column")
    return tuple(zip(sources, targets, strict=True))
