"""Files that are either whole or absent: written beside, synced, then renamed.

Room: train. May import `reticent.errors`.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, make it durable, and rename it to `path`."""
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    with open(beside, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all; infinities and NaN are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda beside: _write_text(beside, text))


def write_new_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object where there is no file yet; of two processes that try, one succeeds.

    Raises:
        FileExistsError: there is a file.
    """
    mine = path.with_name(f".{path.name}.{os.getpid()}.part")
    write_json(mine, value)
    try:
        os.link(mine, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: two processes may both succeed
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line; numbers that are not finite become null."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(finite(value), allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same, with null for every number that JSON cannot hold: weights may diverge."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left without its end."""
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        write_atomically(path, lambda beside: _write_bytes(beside, kept))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
