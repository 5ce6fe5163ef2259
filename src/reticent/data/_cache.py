"""The cache outside the repository: verified archives, unpacked folders, decoded arrays.

Room: data. Imports numpy, platformdirs and `reticent.errors`.

    archives/<source>/<file>        as fetched, checked against the pinned SHA-256 at every use
    unpacked/<source>-<digest>/     read-only files of a source, made by `fetch`
    arrays/<name>-<digest>.npz      decoded arrays, checked against the pinned SHA-256 at every use

Everything is made under `tmp/` and renamed into place, so a killed or second process never leaves
or sees half a file. A lock (where the system has one) only saves the second process the download.
No file is ever unpickled.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from reticent.data._archive import unpack
from reticent.data._clients import Client, unreachable
from reticent.data._records import Arrays, RemoteFile, Source
from reticent.data._talk import Talk
from reticent.errors import DataError

_DAY_S = 86_400
_META = "meta."  # names in a cached file that are not data


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, else RETICENT_CACHE, else the user's cache folder of this system."""
    chosen = cache_dir or os.environ.get("RETICENT_CACHE")
    root = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("reticent", appauthor=False)
    return root.absolute()


# ---- checksums -----------------------------------------------------------------------------------


def arrays_sha256(arrays: Arrays) -> str:
    """Hex digest over names, dtypes, shapes and little-endian bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {little.dtype.str} {little.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_fetched(path: Path, file: RemoteFile, label: str, talk: Talk) -> None:
    if not path.is_file():
        raise unreachable(f"{label}: the client ended well but left no {file.name}.")
    found = _file_sha256(path)
    if found == file.sha256:
        return
    if file.may_be_rebuilt:
        talk.say(f"{file.name} is another build (SHA-256 {found}); the checksum of the arrays will decide")
        return
    if path.stat().st_size < file.size:
        raise DataError(
            f"{file.name} from {label} has {path.stat().st_size} of {file.size} bytes: the download was cut "
            "short. Load again, or try another source with sources=[...].",
            code="data-archive",
        )
    raise DataError(
        f"{file.name} from {label} has SHA-256 {found}, expected {file.sha256}. It is not the file this "
        "release of Reticent knows, so it is not used. Try another source with sources=[...]; if all differ, "
        "look for a newer release.",
        code="data-checksum",
    )


# ---- archives ------------------------------------------------------------------------------------


def obtain(source: Source, root: Path, clients: Mapping[str, Client], talk: Talk) -> tuple[Path, ...]:
    """The source's files in the cache, fetched if they are missing or damaged.

    Raises:
        DataError[data-unreachable]: the client could not deliver.
        DataError[data-archive]: a file is shorter than pinned.
        DataError[data-checksum]: a file's bytes are not the pinned ones.
        DataError[data-cache]: the cache cannot be written.
    """
    slug = _slug(source)
    folder = root / "archives" / slug
    paths = tuple(folder / file.name for file in source.files)
    with in_cache(root), locked(root / "locks" / slug, talk):
        wanted = tuple(file for file in source.files if not _is_cached(folder / file.name, file, talk))
        if not wanted:
            return paths
        with new_folder(root, slug) as work:
            clients[source.kind](replace(source, files=wanted), work, talk)
            folder.mkdir(parents=True, exist_ok=True)
            for file in wanted:
                _check_fetched(work / file.name, file, source.label, talk)
                _keep(work / file.name, folder / file.name, file)
    return paths


def _is_cached(path: Path, file: RemoteFile, talk: Talk) -> bool:
    if not path.is_file():
        return False
    note = _digest_note(path)
    accepted = note.read_text().strip() if file.may_be_rebuilt and note.is_file() else file.sha256
    if _file_sha256(path) == accepted:
        return True
    talk.say(f"the cached {file.name} is damaged; fetching it again")
    return False


def _keep(fetched: Path, target: Path, file: RemoteFile) -> None:
    if file.may_be_rebuilt:
        _digest_note(target).write_text(_file_sha256(fetched) + "\n")
    os.replace(fetched, target)


def _digest_note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _slug(source: Source) -> str:
    return re.sub(r"[^A-Za-z0-9._~+-]+", "-", f"{source.kind}-{source.package}-{source.version}")


# ---- unpacked folders ----------------------------------------------------------------------------


@contextlib.contextmanager
def unpacked(source: Source, archives: tuple[Path, ...], root: Path) -> Iterator[Path]:
    """The source's members in a folder that is gone afterwards."""
    with new_folder(root, _slug(source)) as folder:
        for archive in archives:
            unpack(archive, folder, members=source.members)
        yield folder


def unpacked_for_good(source: Source, archives: tuple[Path, ...], root: Path) -> Path:
    """The source's members in a folder of the cache, made once."""
    pins = " ".join([*(file.sha256 for file in source.files), *source.members])
    target = root / "unpacked" / f"{_slug(source)}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    with in_cache(root):
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(root, _slug(source)) as work:
                for archive in archives:
                    unpack(archive, work, members=source.members)
                work.chmod(0o755)
                with contextlib.suppress(OSError):  # another process was first: its folder is as good
                    work.rename(target)
        if not target.is_dir():
            raise OSError(f"{target} could not be made")
    return target


# ---- decoded arrays ------------------------------------------------------------------------------


def read_arrays(path: Path, sha256: str, talk: Talk) -> tuple[Arrays, Mapping[str, str]] | None:
    """Cached arrays and what is noted with them; None if there are none, or none to be trusted."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            everything = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        everything = {}
    arrays = {name: array for name, array in everything.items() if not name.startswith(_META)}
    if arrays_sha256(arrays) != sha256:
        talk.say(f"the cached {path.name} is damaged; decoding it again")
        return None
    notes = {n.removeprefix(_META): str(a) for n, a in everything.items() if n.startswith(_META)}
    return arrays, notes


def write_arrays(path: Path, arrays: Arrays, notes: Mapping[str, str], root: Path, talk: Talk) -> None:
    """Keep decoded arrays; failing to keep them is said and costs only the next load's time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(root, path.stem) as work:
            contents: dict[str, Any] = {**arrays, **{_META + k: np.array(v) for k, v in notes.items()}}
            np.savez(work / path.name, **contents)
            os.replace(work / path.name, path)
    except OSError as error:
        talk.say(f"the decoded arrays could not be kept in {path.parent} ({error.strerror})")


# ---- folders and locks ---------------------------------------------------------------------------


@contextlib.contextmanager
def in_cache(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the way out."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"The cache {root} cannot be used ({error.strerror or error}). Point RETICENT_CACHE or "
            "cache_dir at a folder that can be written and has room.",
            code="data-cache",
        ) from error


@contextlib.contextmanager
def new_folder(root: Path, label: str) -> Iterator[Path]:
    """An empty folder under `tmp/`, on the cache's own file system, removed afterwards."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root / "tmp")
    work = Path(tempfile.mkdtemp(prefix=f"{label}@", dir=root / "tmp"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """What killed processes left; nothing takes a day, so what is older is nobody's."""
    for leftover in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _DAY_S:
                shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, talk: Talk) -> Iterator[bool]:
    """Wait for, and hold, an exclusive lock that dies with the process; false where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        yield _lock(stream.fileno(), lambda: talk.say(f"waiting for another process ({path.name})"))


if sys.platform == "win32":

    def _lock(descriptor: int, say_waiting: Callable[[], None]) -> bool:
        return False

else:
    import fcntl

    def _lock(descriptor: int, say_waiting: Callable[[], None]) -> bool:
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say_waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a network file system without locks
            return False
        return True
