"""A ledger's file: opened for one process only, read whole, and written through to the disk.

Room: account. May import `reticent.errors`; no torch. Knows nothing of what a line says.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from stat import S_ISREG

from reticent.errors import LedgerError

try:
    import fcntl
except ModuleNotFoundError:  # Windows: a lock file takes its place
    fcntl = None


@contextmanager
def os_errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"Cannot {action} the ledger {path}: {error.strerror or error}. No step may be taken without "
            "it; check the folder, its permissions and the free space.",
            code="ledger-io",
        ) from error


def read_bytes(path: Path) -> bytes:
    with os_errors(path, "read"):
        try:
            if not S_ISREG(path.stat().st_mode):  # a pipe or a device would be read for ever
                raise OSError("it is no file")
            return path.read_bytes()
        except FileNotFoundError:
            raise _missing(path) from None


def _missing(path: Path) -> LedgerError:
    return LedgerError(
        f"There is no ledger at {path}. Without it nothing is known about what was spent; check the path.",
        code="ledger-missing",
    )


def open_locked(path: Path, *, create: bool) -> tuple[FileIO, Callable[[], None]]:
    """Open for appending, and lock; the second value lets go of the lock once the file is closed."""
    flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0) | getattr(os, "O_BINARY", 0)
    with os_errors(path, "open"):
        try:
            file = FileIO(os.open(path, flags, 0o666), "a+")
        except FileNotFoundError:
            if create:
                raise
            raise _missing(path) from None
    try:
        return file, _lock(file, path)
    except BaseException:
        file.close()
        raise


def _lock(file: FileIO, path: Path) -> Callable[[], None]:
    """Take the exclusive lock: the kernel's, which dies with us, or else a lock file."""
    lock_file = path.with_name(path.name + ".lock")
    with os_errors(path, "lock"):
        try:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lambda: None
            os.close(os.open(lock_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return lambda: lock_file.unlink(missing_ok=True)
        except (BlockingIOError, FileExistsError):
            stale = "" if fcntl is not None else f" If there is none, delete {lock_file}."
            raise LedgerError(
                f"The ledger {path} is open in another process: two runs may not share one ledger. Stop "
                f"that process, or wait until its workers have ended.{stale}",
                code="ledger-locked",
            ) from None


def write_all(file: FileIO, data: bytes) -> None:
    """Write every byte and wait until it is on disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    sync(file)


def sync(file: FileIO) -> None:
    """Wait for the disk; on macOS for its cache too, which fsync alone does not."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full_sync is not None:
        fcntl.fcntl(file.fileno(), full_sync)
    else:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a new file's name durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
