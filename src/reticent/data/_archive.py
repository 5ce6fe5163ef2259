"""Unpack a fetched archive into a folder, and nowhere else.

Room: data. Standard library only; `dpkg-deb` for the one compression Python cannot read.

No member is ever extracted by an archive library: names are checked, regular files are opened as
streams and copied. So no links, devices, owners or modes come out of an archive, which is stricter
than `tarfile`'s `filter="data"` and the same for zip, tar and deb.
"""

import contextlib
import io
import lzma
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol, TypeAlias, runtime_checkable

from reticent.errors import DataError


@runtime_checkable
class Stream(Protocol):
    """An open member."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


Member: TypeAlias = tuple[str, bool, Callable[[], Stream | None]]  # name, regular file?, open

_TAR_ENDINGS = (".tgz", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2")
_BROKEN = (
    *(OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError),  # zipfile's, of an unknown compression or an encrypted member
    UnicodeError,  # of names that are no text
)


def unpack(archive: Path, folder: Path, *, members: Sequence[str] = ()) -> None:
    """Copy the wanted regular files of `archive` below `folder`; a plain file is copied as it is.

    Args:
        archive: a `.whl`, `.zip`, `.tgz`, `.tar*` or `.deb` file, or any other file.
        folder: an existing, empty folder that this call owns.
        members: paths wanted; one ending in `/` takes that folder; empty takes everything.

    Guarantee:
        Nothing is written outside `folder`; nothing but regular files and folders is written; an
        archive with an unsafe name is refused even if that member is not wanted.

    Raises:
        DataError[data-unsafe-archive]: a member would land outside `folder`, appears twice, or
            is wanted and not a regular file.
        DataError[data-archive]: the archive is truncated or unreadable, or lacks a wanted member.
    """
    if not is_archive(archive.name):
        shutil.copyfile(archive, folder / archive.name)
        return
    try:
        found = _copy_members(archive, folder, members)
    except _BROKEN as error:
        raise DataError(
            f"{archive.name} cannot be unpacked ({type(error).__name__}: {error}): it is truncated or "
            f"damaged. Delete {archive} and load again.",
            code="data-archive",
        ) from error
    missing = [want for want in members if not any(_is_wanted(name, (want,)) for name in found)]
    if missing:
        raise DataError(
            f"{archive.name} has no {', '.join(missing)}. It is not the version this release of "
            "Reticent knows; try another source with sources=[...].",
            code="data-archive",
        )


def is_archive(name: str) -> bool:
    """Whether `unpack` looks inside a file of this name. A lone `.gz` is left to the decoder."""
    return name.endswith((".whl", ".zip", ".deb", *_TAR_ENDINGS))


def _copy_members(archive: Path, folder: Path, members: Sequence[str]) -> list[str]:
    found = []
    for raw_name, is_file, open_member in _walk(archive):
        name = _safe_name(raw_name, archive.name)
        if name is None or (members and not _is_wanted(name, members)):
            continue
        stream = open_member() if is_file else None
        if stream is None:
            raise _unsafe(archive.name, "a member that is a link or a device")
        _copy_new(stream, folder / name, archive.name)
        found.append(name)
    return found


def _copy_new(stream: Stream, target: Path, archive_name: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise _unsafe(archive_name, "the same member twice")
    with contextlib.closing(stream), target.open("xb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
    target.chmod(0o444)


def _is_wanted(name: str, members: Sequence[str]) -> bool:
    return any(name == want or (want.endswith("/") and name.startswith(want)) for want in members)


def _safe_name(name: str, archive_name: str) -> str | None:
    """The member's path relative to the target folder; None for a folder."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\\" in name
    if outside or "\0" in name:
        raise _unsafe(archive_name, "a member whose path leads outside the target folder")
    return None if name.endswith("/") or not path.parts else str(path)


def _unsafe(archive_name: str, what: str) -> DataError:
    return DataError(
        f"{archive_name} holds {what}. Nothing of it is used. Delete it from the cache, and do not open it "
        "by other means; try another source with sources=[...].",
        code="data-unsafe-archive",
    )


def _walk(archive: Path) -> Iterator[Member]:
    if archive.name.endswith((".whl", ".zip")):
        yield from _walk_zip(archive)
    elif archive.name.endswith(".deb"):
        with tarfile.open(fileobj=_data_tar_of_deb(archive)) as tar:
            yield from _walk_tar(tar)
    else:
        with tarfile.open(archive) as tar:
            yield from _walk_tar(tar)


def _walk_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            yield info.filename, regular, lambda info=info: zipped.open(info)


def _walk_tar(tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        name = info.name + "/" if info.isdir() else info.name
        yield name, info.isreg(), lambda info=info: tar.extractfile(info)


def _data_tar_of_deb(archive: Path) -> io.BytesIO:
    """The `data.tar.*` member of a Debian package, which is an `ar` archive of three files."""
    with archive.open("rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise tarfile.ReadError("not a Debian package")
        while header := stream.read(60):
            if len(header) < 60 or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
                raise tarfile.ReadError("damaged Debian package")
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if name == "data.tar.zst":
                return _data_tar_by_dpkg(archive)
            body = stream.read(size + size % 2)
            if len(body) < size:
                raise EOFError("the package ends early")
            if name.startswith("data.tar"):
                return io.BytesIO(body[:size])
    raise tarfile.ReadError("Debian package without data")


def _data_tar_by_dpkg(archive: Path) -> io.BytesIO:
    """Python before 3.14 cannot read zstandard; a machine that has such packages has dpkg-deb."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=False)
    if done.returncode != 0:
        raise tarfile.ReadError("dpkg-deb cannot read the package")
    return io.BytesIO(done.stdout)
