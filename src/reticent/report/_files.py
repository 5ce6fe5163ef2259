"""Files of a run folder as bytes: digests, JSON and safetensors headers, from whatever somebody put there.

Room: report. Standard library only, so that no torch is needed.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

_MAX_HEADER: Final = 100 * 2**20


def _file(path: Path) -> Path:
    """The path, if a file is there: a pipe or a device would be read for ever."""
    if not path.is_file():
        raise ValueError("no file")
    return path


def text_of(path: Path) -> str:
    return _file(path).read_text(encoding="utf-8")


def sha256_of(path: Path) -> str:
    with open(_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_of(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header and where its data begin; plain JSON, so that no torch is needed."""
    with open(_file(path), "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER, path.stat().st_size):
            raise ValueError("header")
        return json.loads(file.read(length)), 8 + length


def bytes_of(path: Path, *, prefix: str = "") -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Name -> (dtype, shape, SHA-256 of the bytes) of the tensors whose names begin so."""
    header, start = tensors_of(path)
    found, size = {}, path.stat().st_size - start
    with open(path, "rb") as file:
        for name, about in header.items():
            if name == "__metadata__" or not name.startswith(prefix):
                continue
            begin, end = about["data_offsets"]
            if not 0 <= begin <= end <= size:
                raise ValueError("offsets")
            file.seek(start + begin)
            digest = hashlib.sha256(file.read(end - begin)).hexdigest()
            found[name.removeprefix(prefix)] = (about["dtype"], tuple(about["shape"]), digest)
    return found


def is_whole(folder: Path, part: str, digest: str) -> bool:
    """Whether a part of a checkpoint, one rank's file, is as noted."""
    path = folder / Path(part).name
    return path.name == part and path.is_file() and sha256_of(path) == digest
