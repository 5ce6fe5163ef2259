"""Files that are either whole or absent: written beside, synced, then renamed.

Room: train. May import `reticent.errors`.
"""

import json
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


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(value, allow_nan=False) + "\n")


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
