"""Names of users, as they are written: two ways to write one would make one person two privacy units.

Room: data. Standard library and `reticent.errors` only.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from reticent.errors import DataError

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 15.1): shown as nothing where a font has
# no shape for them. Variation selectors and Hangul fillers are among them: marks and letters by category.
_IGNORABLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def check_user_names(names: Iterable[str | int]) -> None:
    """Refuse names that are blank, or that differ in nothing that a reader sees as another name.

    Taken for one: what differs in white space, in invisible characters (control and format characters, and
    what Unicode calls default ignorable), in how letters are composed (NFKC), or in being a number or its
    digits. Capital letters do tell users apart: in many systems they do.

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
                "A row's user is nothing but white space or invisible characters: a row that is nobody's has "
                "no privacy unit. Leave it out, or give it a name of its own.",
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
    if name.isascii() and name.isprintable():
        return " ".join(name.split())
    shown = (c for c in _IGNORABLE.sub("", name) if c.isspace() or not _controls(c))
    return " ".join(unicodedata.normalize("NFKC", "".join(shown)).split())


def _controls(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf")
