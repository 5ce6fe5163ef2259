"""What tells a file or folder from what it was when it was read: caches of a process are keyed by it.

Room: recipes.
"""

import os
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def remembered(
    files: Callable[..., Iterable[Path | str | None]], *, maxsize: int
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Remember what a function read, for as long as the files are the same.

    Args:
        files: called with the function's arguments; the files and folders that it reads.
        maxsize: how many results are kept.
    """

    def around(read: Callable[_P, _R]) -> Callable[_P, _R]:
        @lru_cache(maxsize=maxsize)
        def kept(stamps: Hashable, *args: Any, **named: Any) -> _R:
            return read(*args, **named)

        @wraps(read)
        def wrapper(*args: _P.args, **named: _P.kwargs) -> _R:
            stamps = tuple(stamp_of(path) for path in files(*args, **named) if path is not None)
            return kept(stamps, *args, **named)

        return wrapper

    return around


def stamp_of(path: Path | str) -> Hashable:
    """The whole path, with sizes and times of the file, or times of the folder and the folders in it.

    A name relative to another working directory, or a file written anew, is not taken for what was read.
    """
    place = Path(path).resolve()
    if not os.path.isdir(place):  # false of a name too long, too
        return (str(place), *_times(place))
    return str(place), tuple((folder, *_times(Path(folder))) for folder, _, _ in sorted(os.walk(place)))


def _times(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # whoever reads it will say what is wrong
        return (0, 0)
    return found.st_size, found.st_mtime_ns


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether both names are of one file or folder, in any way; if it is gone, whether they are equal."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return Path(one).resolve() == Path(other).resolve()


def same_rows(one: str | Path, other: str | Path) -> bool:
    """Whether both names are of one table: of one file or folder, or of a folder and its training split."""
    return any(
        same_file(mine, theirs)
        for mine in (one, Path(one) / "train")
        for theirs in (other, Path(other) / "train")
    )
