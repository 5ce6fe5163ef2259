"""Readers of image sets in their authors' layouts, from a folder on this machine; nothing is fetched.

Room: data. Imports numpy.

Shape letters: N example, H row, W column, C channel.
"""

from pathlib import Path

import numpy as np

from reticent.data._images import bad_format
from reticent.data._mat5 import read_mat5
from reticent.data._records import ArrayPair
from reticent.errors import DataError

_CIFAR100_ROW = 2 + 3 * 32 * 32  # coarse label, fine label, planes


def read_cifar100(folder: Path) -> tuple[ArrayPair, ArrayPair]:
    """Train and test of the authors' binary version, `train.bin` and `test.bin`, wherever in the folder.

    Returns:
        uint8 (N, 32, 32, 3) with the fine label, 0 to 99.

    Raises:
        DataError[data-format]: a file is missing, there twice, or holds something else.
    """
    return _cifar100(_the_file(folder, "train.bin")), _cifar100(_the_file(folder, "test.bin"))


def _cifar100(path: Path) -> ArrayPair:
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    if len(raw) == 0 or len(raw) % _CIFAR100_ROW:
        raise bad_format(path, f"has {len(raw)} bytes, not a multiple of {_CIFAR100_ROW}")
    rows = raw.reshape(-1, _CIFAR100_ROW)
    if rows[:, 0].max() >= 20 or rows[:, 1].max() >= 100:
        raise bad_format(path, "holds labels outside CIFAR-100's")
    images = rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArrayPair(np.ascontiguousarray(images), rows[:, 1].astype(np.int64))


def read_svhn(folder: Path) -> tuple[ArrayPair, ArrayPair]:
    """Train and test of the cropped digits, `train_32x32.mat` and `test_32x32.mat`.

    Returns:
        uint8 (N, 32, 32, 3) with labels 0 to 9; the files' label 10 is the digit 0.

    Raises:
        DataError[data-format]: a file is missing, there twice, or holds something else.
    """
    return _svhn(_the_file(folder, "train_32x32.mat")), _svhn(_the_file(folder, "test_32x32.mat"))


def _svhn(path: Path) -> ArrayPair:
    try:
        found = read_mat5(path)
    except ValueError as error:
        raise bad_format(path, "is not a readable MATLAB file") from error
    x, y = found.get("X"), found.get("y")
    if x is None or y is None or x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3):
        raise bad_format(path, "does not hold X of bytes (32, 32, 3, N) and y")
    labels = np.nan_to_num(np.asarray(y, dtype=np.float64).reshape(-1), posinf=0, neginf=0).astype(np.int64)
    if len(labels) != x.shape[3] or len(labels) == 0 or labels.min() < 1 or labels.max() > 10:
        raise bad_format(path, "does not hold one label from 1 to 10 for each image")
    return ArrayPair(np.ascontiguousarray(x.transpose(3, 0, 1, 2)), labels % 10)


def _the_file(folder: Path, name: str) -> Path:
    found = sorted(Path(folder).rglob(name)) if Path(folder).is_dir() else []
    if len(found) != 1:
        raise DataError(
            f"'{folder}' holds {name} {len(found)} times; it must be there once, as the authors publish it.",
            code="data-format",
        )
    return found[0]
