"""Names of users, as they are written: two ways to write one would make one person two privacy units.

Room: data. Standard library and `reticent.errors` only.
"""

import unicodedata
from collections.abc import Iterable

from reticent.errors import DataError


def check_user_names(names: Iterable[str | int]) -> None:
    """Refuse names that are blank, or that differ in nothing that a reader sees as another name.

    Taken for one: what differs in white space, in invisible characters, in how letters are composed (Unicode
    NFKC), or in being a number or its digits. Capital letters do tell users apart: in many systems they do.

    Args:
        names: of users, each of them any number of times.

    Raises:
        DataError[user-column]: as said. The message shows no name.
    """
    written: dict[str, str | int] = {}
    for name in dict.fromkeys(names):
        plain = _plain(str(name))
        if not plain:
            raise DataError(
                "A row's user is nothing but white space: a row that is nobody's has no privacy unit. Leave "
                "it out, or give it a name of its own.",
                code="user-column",
            )
        if written.setdefault(plain, name) != name:
            raise DataError(
                "Two names of users differ in white space, in invisible characters, in how letters are "
                "composed, or in being a number or its digits. If they are one person, whose rows would "
                "count twice, write them alike; if not, give both other names.",
                code="user-column",
            )


def _plain(name: str) -> str:
    if name.isascii():
        return " ".join(name.split())
    seen = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in name)
    kept = "".join(c for c in seen if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", kept).split())
