"""Decoders of image sets: unpacked folders to uint8 images and int64 labels.

Room: data. Imports numpy, and Pillow inside the one function that needs it.

Shape letters: N example, H row, W column.
"""

import gzip
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from reticent.data._records import ArrayPair, Arrays
from reticent.errors import DataError

_CIFAR_ROW = 1 + 3 * 32 * 32
_MAX_AXES = 4  # of an IDX file


def pair_up(arrays: Arrays) -> tuple[ArrayPair, ArrayPair]:
    """`train_x`, `train_y`, `test_x`, `test_y` as two splits."""
    return (
        ArrayPair(arrays["train_x"], arrays["train_y"]),
        ArrayPair(arrays["test_x"], arrays["test_y"]),
    )


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped.

    Raises:
        DataError[data-format]: not an IDX file of bytes, or of another length than it says.
    """
    raw = _unzipped(path) if path.name.endswith(".gz") else path.read_bytes()
    num_axes = raw[3] if len(raw) >= 4 and raw[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * num_axes
    if not 0 < num_axes <= _MAX_AXES or len(raw) < start:
        raise bad_format(path, "is not an IDX file of bytes")
    shape = struct.unpack(f">{num_axes}I", raw[4:start])
    if len(raw) - start != math.prod(shape) or math.prod(filter(None, shape)) >= 2**63:
        raise bad_format(path, f"says shape {shape} but holds {len(raw) - start} bytes")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _unzipped(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise bad_format(path, f"cannot be unpacked ({type(error).__name__})") from error


def decode_mnist_like(folders: tuple[Path, ...]) -> Arrays:
    """The four IDX files of MNIST and Fashion-MNIST, wherever they lie in the folder."""
    (folder,) = folders

    def find(stem: str) -> np.ndarray:
        found = sorted(folder.rglob(f"{stem}-ubyte*"))
        if len(found) != 1:
            raise bad_format(folder / f"{stem}-ubyte", f"is there {len(found)} times")
        return read_idx(found[0])

    return {
        "train_x": find("train-images-idx3"),
        "train_y": find("train-labels-idx1").astype(np.int64),
        "test_x": find("t10k-images-idx3"),
        "test_y": find("t10k-labels-idx1").astype(np.int64),
    }


def decode_cifar10_binary(folders: tuple[Path, ...]) -> Arrays:
    """The authors' binary version: each row is a label byte and 3x32x32 bytes, planes first."""
    (folder,) = folders
    base = folder / "cifar-10-batches-bin"
    train = [_cifar_rows(base / f"data_batch_{i}.bin") for i in range(1, 6)]
    return _cifar_arrays(np.concatenate(train), _cifar_rows(base / "test_batch.bin"))


def _cifar_rows(path: Path) -> np.ndarray:
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if len(raw) == 0 or len(raw) % _CIFAR_ROW:
        raise bad_format(path, f"has {len(raw)} bytes, not a multiple of {_CIFAR_ROW}")
    return raw.reshape(-1, _CIFAR_ROW)


def _cifar_arrays(train: np.ndarray, test: np.ndarray) -> Arrays:
    def images(rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))

    return {
        "train_x": images(train),
        "train_y": train[:, 0].astype(np.int64),
        "test_x": images(test),
        "test_y": test[:, 0].astype(np.int64),
    }


def decode_cifar10_sheets(folders: tuple[Path, ...]) -> Arrays:
    """PNG sheets in which each pixel row is one image, with labels in JSON lists."""
    (folder,) = folders
    base = folder / "package"
    train = [_sheet(base / f"data_batch_{i}.png") for i in range(1, 6)]
    return {
        "train_x": np.concatenate(train),
        "train_y": _labels(base / "train_lables.json"),  # the package's spelling
        "test_x": _sheet(base / "test_batch.png"),
        "test_y": _labels(base / "test_lables.json"),
    }


def _sheet(path: Path) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(
            "This source holds PNG images, and Pillow is not installed: pip install pillow.",
            code="data-needs-package",
        ) from error
    try:
        with Image.open(path) as sheet:
            pixels, mode = np.array(sheet), sheet.mode
    except SyntaxError as error:  # what Pillow raises for a damaged PNG
        raise bad_format(path, "is a damaged PNG file") from error
    if mode != "RGB" or pixels.shape[1:] != (1024, 3):
        raise bad_format(path, f"has mode {mode} and shape {pixels.shape}, not RGB (N, 1024, 3)")
    return pixels.reshape(-1, 32, 32, 3)


def _labels(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text()), dtype=np.int64)


def bad_format(path: Path, what: str) -> DataError:
    """The error for a file that holds something else than its name promises."""
    return DataError(
        f"{path.name} {what}. The source changed or the file is damaged; delete it from the cache, or try "
        "another source with sources=[...].",
        code="data-format",
    )
