"""Rows of a person's own file: texts, whose they are, which are held out, and which users take part.

Room: recipes.text. May import numpy, `reticent.{data,errors}`; no torch.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from reticent.data import Table, check_user_names
from reticent.errors import DataError

HELD_OUT: Final = "held-out rows of the file, NOT private"  # what a report says of their scores
SPLIT_SEED: Final = 20_220_416  # which rows or users of a person's own file are held out; a public constant


def names_of(table: Table, column: str) -> tuple[str, ...]:
    """Whose each row is; a number is a name.

    Raises:
        DataError[data-column]: there is no such column.
        DataError[user-column]: a row has no user, or one user is written in two ways.
    """
    values = table.column(column, setting="user_column")
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(
                f"Row {row} of '{table.name}' has no user: a row that is nobody's has no privacy unit. Leave "
                "it out, or give it a name of its own.",
                code="user-column",
            )
    names = tuple(str(value) for value in values)
    check_user_names(names)
    return names


def texts_of(table: Table, column: str, *, setting: str) -> list[str]:
    """A column of texts.

    Raises:
        DataError[data-column]: there is no such column; `setting` is what names it.
        DataError[data-format]: a row's is no text, or no Unicode; no row is shown.
    """
    found = list(table.column(column, setting=setting))
    if not all(isinstance(text, str) for text in found):
        raise DataError(
            f"'{table.name}' has a row without a text in column '{column}'. Leave such rows out.",
            code="data-format",
        )
    if not all(_is_unicode(text) for text in found):
        raise DataError(
            f"'{table.name}' has a text in column '{column}' that holds half of a surrogate pair, which is "
            "no character and has no token. Write it anew, or leave it out.",
            code="data-format",
        )
    return found


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def held_out(name: str, *, num_rows: int, users: Sequence[str] | None, share: float) -> np.ndarray:
    """Which rows are held out, (num_rows,): by their numbers; or whole users, each by nothing but the name.

    Raises:
        DataError[data-empty]: none would be, or all; `name` is the file's.
    """
    if users is None:
        found = np.zeros(num_rows, dtype=bool)
        order = np.random.default_rng(SPLIT_SEED).permutation(num_rows)
        found[order[: round(share * num_rows)]] = True
    else:
        found = np.asarray([_lot("held out", user) < share for user in users])
    if not 0 < found.sum() < num_rows:
        what = "rows" if users is None else "users"
        raise DataError(
            f"'{name}' has too few {what} to hold {share:g} of them out. Change test_fraction.",
            code="data-empty",
        )
    return found


def some_users(users: Sequence[str], most: int) -> set[str]:
    """The `most` users with the smallest lots. Who else there is decides too: their number must be public."""
    return set(sorted(set(users), key=lambda user: _lot("subset", user))[:most])


def _lot(purpose: str, user: str) -> float:
    """A number in [0, 1) of a user, from the name alone."""
    digest = hashlib.blake2b(f"{SPLIT_SEED}/{purpose}/{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
