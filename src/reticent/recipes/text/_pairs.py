"""What a reader of a public text format returns: a source, its references, and whose they are.

Room: recipes.text. Standard library and `reticent.errors` only.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reticent.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTargets:
    """One source text with every reference text for it. The repr shows none of them.

    Args:
        source: what the model is given, already written out as text.
        targets: what it should answer; several where the data set gives several references.
        unit: which dialog or record the row came from, for privacy units larger than the row; None
            where the format has nothing larger.
    """

    source: str = field(repr=False)
    targets: tuple[str, ...] = field(repr=False)
    unit: str | None = field(default=None, repr=False)


def pairs(examples: Iterable[SourceTargets]) -> list[tuple[str, str]]:
    """(source, target), one for each reference: the rows that are trained on.

    A source with k references becomes k rows. If one person stands behind them, that person has k rows:
    choose a privacy unit larger than the row.
    """
    return [(example.source, target) for example in examples for target in example.targets]


def grouped(rows: Iterable[tuple[str, str]]) -> list[SourceTargets]:
    """Rows with equal sources joined, in the order of first appearance: what is evaluated.

    Metrics with several references need all references of a source together, and one generation for it.
    """
    targets: dict[str, list[str]] = {}
    for source, target in rows:
        targets.setdefault(source, []).append(target)
    return [SourceTargets(source=source, targets=tuple(found)) for source, found in targets.items()]


def bad_format(path: Path, kind: str, problem: str) -> DataError:
    """The one error of all readers: which file, which format was expected, and where it broke."""
    return DataError(f"'{path}' is not a {kind} file: {problem}.", code="text-format")


def read_text(path: str | Path, kind: str) -> tuple[Path, str]:
    """The file's text, UTF-8 with or without a byte-order mark."""
    path = Path(path)
    try:
        return path, path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise bad_format(path, kind, f"it cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise bad_format(path, kind, f"byte {error.start} is not UTF-8") from error


def json_of(text: str, path: Path, kind: str) -> Any:
    """What a file's text says in JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or an integer of thousands of digits
        raise bad_format(path, kind, f"it is not JSON that can be read ({error})") from error


def filled(texts: Sequence[object]) -> bool:
    """Whether every entry is a text with something in it."""
    return all(isinstance(text, str) and text.strip() for text in texts)
