"""The zoo: models an engine must get exactly right, and models it must refuse.

`EXACT` and `GENERATED` must equal the oracle. `EITHER` may be refused by name instead. `REFUSED` must be
refused with the stated error. To join, add a line to a file of this folder.
"""

from typing import Final

from ..case import Case
from . import convolutions, generated, layers, parameters, refused, rows, sequences, sharing, toys

_ALL: Final = (
    *toys.CASES,
    *layers.CASES,
    *convolutions.CASES,
    *sequences.CASES,
    *parameters.CASES,
    *sharing.CASES,
    *rows.CASES,
    *refused.EITHER,
)

EXACT: Final[tuple[Case, ...]] = tuple(case for case in _ALL if not case.may_refuse)
EITHER: Final[tuple[Case, ...]] = tuple(case for case in _ALL if case.may_refuse)
GENERATED: Final[tuple[Case, ...]] = generated.CASES
REFUSED: Final[tuple[Case, ...]] = refused.CASES


def named(*names: str) -> tuple[Case, ...]:
    """Cases by name, in that order."""
    by_name = {case.name: case for case in (*_ALL, *GENERATED, *REFUSED)}
    return tuple(by_name[name] for name in names)
