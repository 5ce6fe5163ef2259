"""Fetch a source's files with the client that its registry's users already have.

Room: data. Standard library only.

A client is a function `(source, folder, talk)` that leaves each of the source's files in `folder`
or raises DataError[data-unreachable] with a reason. Which registry or mirror answers is the
clients' own configuration; no host of a registry is named here.
"""

import contextlib
import http.client
import importlib.util
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, runtime_checkable

from reticent.data._records import RemoteFile, Source
from reticent.data._talk import Talk
from reticent.errors import DataError

CONNECT_LIMIT_S: Final = 8.0  # name look-up, connection and answer together; then the host counts as away
STALL_LIMIT_S: Final = 300.0  # a package client that writes nothing for so long is stopped
_CHUNK: Final = 1 << 18
_REQUIREMENTS: Final = "requirements.txt"


@runtime_checkable
class Stream(Protocol):
    """An open download."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended: exit status, and the end of what it printed."""

    status: int
    output: str


Client: TypeAlias = Callable[[Source, Path, Talk], None]
RunCommand: TypeAlias = Callable[[Sequence[str], Path, Callable[[int], None]], Outcome]
OpenUrl: TypeAlias = Callable[[str], Stream]
FindProgram: TypeAlias = Callable[[str], str | None]


def unreachable(reason: str) -> DataError:
    """The error of one source that did not deliver; `load` collects the reasons."""
    return DataError(reason, code="data-unreachable")


# ---- plain https ---------------------------------------------------------------------------------


def get_https(source: Source, folder: Path, talk: Talk, *, open_url: OpenUrl) -> None:
    """Download each file; the first that fails ends it, since they share a host."""
    with talk.meter(source.package, source.size) as update:
        done = 0
        for file in source.files:
            try:
                _download(file, folder / file.name, open_url, lambda n, done=done: update(done + n))
            except (OSError, http.client.HTTPException) as error:
                raise unreachable(f"{file.url}: {_reason(error)}") from error
            done += file.size


def _download(file: RemoteFile, target: Path, open_url: OpenUrl, update: Callable[[int], None]) -> None:
    with contextlib.closing(open_url(file.url)) as stream, target.open("wb") as out:
        done = 0
        while (chunk := stream.read(_CHUNK)) and done <= file.size:  # longer than pinned: stop, it is wrong
            done += out.write(chunk)
            update(done)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not newurl.startswith("https://"):
            raise urllib.error.URLError("the server redirects away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_https(url: str, *, limit_s: float = CONNECT_LIMIT_S) -> Stream:
    """Open a URL, or give up after `limit_s` seconds whatever the resolver or the host does.

    A socket time-out covers neither the name look-up nor several addresses in turn, so the
    connection is made in a thread that can be left behind.
    """
    if not url.startswith("https://"):
        raise urllib.error.URLError("only https is used")
    answers: queue.SimpleQueue[Stream | Exception] = queue.SimpleQueue()
    abandoned = threading.Event()

    def connect() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "reticent"})
        try:
            stream = urllib.request.build_opener(_StayOnHttps).open(request, timeout=limit_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)
            return
        if abandoned.is_set():
            stream.close()
        answers.put(stream)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except queue.Empty:
        abandoned.set()
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


# ---- package clients -----------------------------------------------------------------------------


def get_pip(source: Source, folder: Path, talk: Talk, *, run: RunCommand, find: FindProgram) -> None:
    """`pip download` of a wheel; of a source archive only where the source's files are one.

    To name a source archive's metadata pip runs the build script in it, so pip is given the pinned digest
    and checks it first: no code runs but the pinned one. What the build needs is not fetched either:
    setuptools must be installed.
    """
    program = find("pip")
    own = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else None
    start = own or ([program] if program else None)
    if start is None:
        raise unreachable("pip is not installed.")
    options = "download --no-deps --no-cache-dir --no-input --retries 1 --progress-bar off --quiet --dest ."
    pinned = f"{source.package}=={source.version}"
    command = [*start, *options.split(), "--only-binary=:all:", pinned]
    if all(file.name.endswith(".tar.gz") for file in source.files):
        digests = " ".join(f"--hash=sha256:{file.sha256}" for file in source.files)
        (folder / _REQUIREMENTS).write_text(f"{pinned} {digests}\n")
        checked = ["--no-build-isolation", "--require-hashes", "--requirement", _REQUIREMENTS]
        command = [*start, *options.split(), f"--no-binary={source.package}", *checked]
    _check(_run_measured(command, source, folder, talk, run), "pip")


def get_npm(source: Source, folder: Path, talk: Talk, *, run: RunCommand, find: FindProgram) -> None:
    """`npm pack`: the published archive as it is; no script of it runs."""
    program = find("npm")
    if program is None:
        raise unreachable("npm is not installed.")
    options = "pack --ignore-scripts --loglevel=error --fetch-retries=1 --fetch-retry-mintimeout=1000"
    command = [program, *options.split(), "--cache", ".npm", f"{source.package}@{source.version}"]
    _check(_run_measured(command, source, folder, talk, run), "npm")


def get_apt(
    source: Source,
    folder: Path,
    talk: Talk,
    *,
    run: RunCommand,
    find: FindProgram,
    is_root: Callable[[], bool],
) -> None:
    """`apt-get download`; if no package list knows the package and we are root, one update first."""
    program = find("apt-get")
    if program is None:
        raise unreachable("apt-get is not installed; this source is for Debian and its relatives.")
    command = [program, "-q", "download", f"{source.package}={source.version}"]
    outcome = _run_measured(command, source, folder, talk, run)
    if outcome.status != 0 and _no_package_list(outcome.output):
        if not is_root():
            raise unreachable(
                f"no package list names {source.package} {source.version}. Run 'sudo apt-get update' once "
                "and try again; if it stays so, this release of the system does not carry that version."
            )
        talk.say("apt-get does not know the package yet: running apt-get update once")
        run([program, "-q", "update"], folder, lambda size: None)
        outcome = _run_measured(command, source, folder, talk, run)
    _check(outcome, "apt-get")


def _no_package_list(output: str) -> bool:
    return any(
        text in output
        for text in ("Unable to locate package", "was not found", "Can't find a source to download")
    )


def _run_measured(
    command: Sequence[str], source: Source, folder: Path, talk: Talk, run: RunCommand
) -> Outcome:
    try:
        with talk.meter(source.label, source.size) as update:
            return run(command, folder, update)
    except OSError as error:
        raise unreachable(f"{Path(command[0]).name} could not be run: {error}") from error


def _check(outcome: Outcome, program: str) -> None:
    if outcome.status != 0:
        lines = [line.strip() for line in outcome.output.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("WARNING")] or lines
        said = next(
            (line for line in lines if "err" in line.lower()), lines[-1] if lines else "it said nothing"
        )
        raise unreachable(f"{program} ended with status {outcome.status}: {said[:300]}")


def run_command(
    command: Sequence[str],
    folder: Path,
    update: Callable[[int], None],
    *,
    stall_limit_s: float = STALL_LIMIT_S,
) -> Outcome:
    """Run a client inside `folder`; `update` is told how many bytes lie there while it works."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            stalled = _watch(process, folder, update, stall_limit_s)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")[-4000:]
    if stalled:
        return Outcome(status=-1, output=f"error: nothing came for {stall_limit_s:g} s, so it was stopped")
    return Outcome(status=process.returncode, output=output)


def _watch(
    process: subprocess.Popen[bytes], folder: Path, update: Callable[[int], None], stall_limit_s: float
) -> bool:
    """Wait for the end; true if it stopped making progress first."""
    size, since = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=0.1)
            return False
        except subprocess.TimeoutExpired:
            now = _size_of(folder)
        if now != size:
            size, since = now, time.monotonic()
            update(size)
        elif time.monotonic() - since > stall_limit_s:
            return True


def _size_of(folder: Path) -> int:
    """Bytes below a folder; a client may remove its temporary files and folders meanwhile."""
    total = 0
    for where, _, names in os.walk(folder):  # skips what it cannot list
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


CLIENTS: Final[Mapping[str, Client]] = MappingProxyType(
    {
        "https": partial(get_https, open_url=open_https),
        "pip": partial(get_pip, run=run_command, find=shutil.which),
        "npm": partial(get_npm, run=run_command, find=shutil.which),
        "apt": partial(get_apt, run=run_command, find=shutil.which, is_root=_is_root),
    }
)
