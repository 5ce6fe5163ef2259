"""Samples in tar archives, by index: shards as WebDataset writes them, with the random access that it lacks.

Room: data. May import NumPy and `reticent.errors`.

A stream of shards cannot be sampled by Poisson, which takes any example in any step. A tar archive that is
not compressed can be read anywhere, once it is known where each member begins: that is the index, which is
made by reading the archives' headers once, and kept beside them.

Sources:
    [1] The WebDataset format: files of one sample follow each other and share their name up to a dot.
"""

import hashlib
import mmap
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reticent.errors import DataError

INDEX_NAME: Final = "index.reticent.npz"
_FORMAT: Final = 2
_LONGEST_ENDING: Final = 100  # characters; all endings have one width in the index
_HEADER: Final = 512  # bytes, the least that a member takes
_Ints = npt.NDArray[np.int64]
# What NumPy and zipfile raise of a file that is damaged, or says things that cannot be.
_UNREADABLE: Final = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
)


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Members of all samples in order; sample i has those from `starts[i]` to `starts[i + 1]`.

    Args:
        starts: (N + 1,).
        where: (M, 3): shard, offset of the content, size in bytes.
        suffix: (M,) index into `suffixes`.
        suffixes: what follows the first dot of a member's name.
        sizes: (S,) bytes of each shard.
        made_of: what the shards were when they were read, to notice others.
    """

    starts: _Ints
    where: _Ints
    suffix: _Ints
    suffixes: tuple[str, ...]
    sizes: _Ints
    made_of: str


class TarShards:
    """A map-style data set over tar archives, of which only the rows asked for are read.

        shards = TarShards("train", decode=lambda files: (to_tensor(files["jpg"]), int(files["cls"])))
        for batch in plan.batches(shards): ...

    Memory holds the index (about 40 bytes a file), whatever the archives' size.

    Args:
        shards: a folder, whose `*.tar` are taken in order of their names; or the archives, in order.
        decode: called with a sample's files (ending -> bytes, as `{"jpg": ..., "cls": ...}`); returns a
            row: tensors or numbers, alone or in a tuple or dict, alike for every sample. What it raises ends
            the step, in which nothing is spent.
        index: where to keep the index; by default in the folder of the first archive.

    Guarantee:
        `shards[i]` is the same sample for as long as the archives are the same; an archive of another name,
        size or time of change is indexed anew. Nothing is unpacked to disk, and no link in an archive is
        followed.

    Raises:
        DataError[data-missing]: no archive is there.
        DataError[data-format]: an archive is compressed, damaged or cut; a member is no file, has no ending
            or one that is too long, or appears twice in a sample; or there is no sample.
        DataError[data-cache]: the index cannot be written.
    """

    def __init__(
        self,
        shards: Path | str | Iterable[Path | str],
        *,
        decode: Callable[[Mapping[str, bytes]], Any],
        index: Path | str | None = None,
    ) -> None:
        self._paths = _archives(shards)
        self._decode = decode
        self._maps: dict[int, mmap.mmap] = {}
        kept = self._paths[0].parent / INDEX_NAME if index is None else Path(index)
        sizes = np.array([path.stat().st_size for path in self._paths], dtype=np.int64)
        made_of = _made_of(self._paths)
        found = _read(kept, sizes, made_of)
        if found is None:
            found = _scan(self._paths, sizes, made_of)
            _write(kept, found)
        self._index = found

    def __len__(self) -> int:
        return len(self._index.starts) - 1

    def __getitem__(self, row: int) -> Any:
        number = range(len(self))[row]
        begin, end = self._index.starts[number : number + 2]
        files = {}
        for member in range(int(begin), int(end)):
            shard, offset, size = (int(value) for value in self._index.where[member])
            files[self._index.suffixes[self._index.suffix[member]]] = self._map(shard)[offset : offset + size]
        return self._decode(files)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            with self._paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


def _archives(shards: Path | str | Iterable[Path | str]) -> list[Path]:
    if isinstance(shards, Path | str):
        folder = Path(shards)
        paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
    else:
        paths = [Path(shard) for shard in shards]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(
            f"There is no archive {missing[0]!r}." if missing else f"The folder '{shards}' holds no *.tar.",
            code="data-missing",
        )
    return paths


def _made_of(paths: list[Path]) -> str:
    """Names, sizes and times of change: tar pads its archives, so that sizes alone are often the same."""
    stats = [(path.name, path.stat()) for path in paths]
    said = [(name, found.st_size, found.st_mtime_ns) for name, found in stats]
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()


def _scan(paths: list[Path], sizes: _Ints, made_of: str) -> _Index:
    """Read all headers."""
    starts: list[int] = []
    where: list[tuple[int, int, int]] = []
    suffixes: dict[str, int] = {}
    suffix: list[int] = []
    for shard, path in enumerate(paths):
        sample, seen = None, set()
        for name, offset, size in _members(path):
            stem, dot, ending = name.rpartition("/")[2].partition(".")
            key = name[: len(name) - len(dot + ending)]
            if not dot or not ending or not stem:
                raise _bad(path, "has a member without a name and an ending, as sample.jpg")
            if len(ending) > _LONGEST_ENDING:
                raise _bad(path, f"has a member with an ending of more than {_LONGEST_ENDING} characters")
            if key != sample:
                starts.append(len(where))
                sample, seen = key, set()
            if ending in seen:
                raise _bad(path, f"has two members that end in .{ending} in one sample")
            if offset + size > sizes[shard]:
                raise _bad(path, "is cut off in a member")
            seen.add(ending)
            where.append((shard, offset, size))
            suffix.append(suffixes.setdefault(ending, len(suffixes)))
    if not starts:
        raise _bad(paths[0], "holds no sample")
    return _Index(
        starts=np.array([*starts, len(where)], dtype=np.int64),
        where=np.array(where, dtype=np.int64).reshape(-1, 3),
        suffix=np.array(suffix, dtype=np.int64),
        suffixes=tuple(suffixes),
        sizes=sizes,
        made_of=made_of,
    )


def _members(path: Path) -> Iterable[tuple[str, int, int]]:
    end = 0
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if member.size < 0 or member.offset_data < end:  # would lead a reader in circles
                    raise _bad(path, "has a member that overlaps another")
                end = member.offset_data
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise _bad(path, "has a member that is no plain file")
                yield member.name, member.offset_data, member.size
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps them all
    except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
        raise _bad(
            path, f"is no plain tar archive ({type(error).__name__}); a compressed one has no rows"
        ) from error


def _read(kept: Path, sizes: _Ints, made_of: str) -> _Index | None:
    """The index kept there, if it is one of these archives; None if it has to be made."""
    if not kept.is_file() or not _is_small(kept, sizes):
        return None
    try:
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            found = _Index(
                starts=saved["starts"],
                where=saved["where"],
                suffix=saved["suffix"],
                suffixes=tuple(str(name) for name in saved["suffixes"]),
                sizes=saved["sizes"],
                made_of=str(saved["made_of"]),
            )
            same = int(saved["format"]) == _FORMAT and found.made_of == made_of
    except _UNREADABLE:
        return None
    return found if same and _is_whole(found, sizes) else None


def _is_small(kept: Path, sizes: _Ints) -> bool:
    """Whether a file unpacks to no more than an index of archives of these sizes can take."""
    most = (int(sizes.sum()) // _HEADER + 10) * (40 + 4 * _LONGEST_ENDING) + 8 * len(sizes) + (1 << 16)
    try:
        with zipfile.ZipFile(kept) as saved:
            return sum(part.file_size for part in saved.infolist()) <= most
    except _UNREADABLE:
        return False


def _is_whole(index: _Index, sizes: _Ints) -> bool:
    """Whether an index from a file is one of archives of these sizes, so that no read can go wrong."""
    arrays = (index.starts, index.where, index.suffix, index.sizes)
    if any(a.dtype != np.int64 for a in arrays) or not np.array_equal(index.sizes, sizes):
        return False
    shapes = index.where.ndim == 2 and index.where.shape[1] == 3 and index.suffix.ndim == 1
    if not shapes or index.starts.ndim != 1 or len(index.starts) < 2 or len(index.suffix) != len(index.where):
        return False
    shard, offset, size = index.where.T
    return bool(
        index.starts[0] == 0
        and index.starts[-1] == len(index.where)
        and (np.diff(index.starts) > 0).all()
        and (0 <= shard).all()
        and (shard < len(sizes)).all()
        and (offset >= 0).all()
        and (size >= 0).all()
        and (offset + size <= sizes[shard]).all()
        and (0 <= index.suffix).all()
        and (index.suffix < len(index.suffixes)).all()
    )


def _write(kept: Path, index: _Index) -> None:
    part = kept.with_name(kept.name + f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                starts=index.starts,
                where=index.where,
                suffix=index.suffix,
                suffixes=np.array(index.suffixes, dtype=np.str_),
                sizes=index.sizes,
                made_of=index.made_of,
            )
        os.replace(part, kept)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"The index of the archives cannot be written to {kept} ({error.strerror}). Give "
            "TarShards(index=...) a file that can be written.",
            code="data-cache",
        ) from error


def _bad(path: Path, what: str) -> DataError:
    return DataError(
        f"{path.name} {what}. Shards are plain tar archives as WebDataset writes them: the files of a sample "
        "follow each other and share their name up to the first dot.",
        code="data-format",
    )
