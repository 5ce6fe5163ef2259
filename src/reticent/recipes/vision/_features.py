"""Scattering features of a data set, computed once and kept in the cache.

Room: recipes. May import torch, `reticent.data`.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from reticent.data import cache_root

from ._layers import Pixels
from ._scattering import Scattering, num_coefficients

_ROWS = 128
_VERSION = 1  # of the transform: another number, another file


def scattering_of(x: np.ndarray, *, name: str, mirrored: bool) -> np.ndarray:
    """Features (N, C S, H / 4, W / 4), float16, of bytes (N, H, W) or (N, H, W, C); memory-mapped.

    `mirrored`: the mean of an image's features and its mirror image's, so that the two cannot differ. Each
    image's features depend on that image alone. The file is named by a digest of the bytes, and written
    aside and renamed, so that one cut short is never read.
    """
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    path = (
        cache_root(None)
        / "features"
        / f"{name}-{digest[:16]}-scattering{'-mirrored' * mirrored}-{_VERSION}.npy"
    )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(x, path, mirrored)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def scattered(x: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """The same numbers, computed anew and kept nowhere."""
    return np.concatenate(list(_in_parts(x, mirrored)))


def _in_parts(x: np.ndarray, mirrored: bool) -> Iterator[np.ndarray]:
    pixels, transform = Pixels(), Scattering(x.shape[1], x.shape[2])
    for start in range(0, len(x), _ROWS):
        rows = pixels(torch.from_numpy(x[start : start + _ROWS].copy()))
        found = transform(rows)
        if mirrored:
            found = (found + transform(rows.flip(-1))) / 2
        yield found.flatten(1, 2).half().numpy()


@torch.no_grad()
def _write(x: np.ndarray, path: Path, mirrored: bool) -> None:
    channels = 1 if x.ndim == 3 else x.shape[3]
    width = channels * num_coefficients(scales=2, angles=8)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        found = np.lib.format.open_memmap(
            aside, mode="w+", dtype=np.float16, shape=(len(x), width, x.shape[1] // 4, x.shape[2] // 4)
        )
        start = 0
        for part in _in_parts(x, mirrored):
            found[start : start + len(part)] = part
            start += len(part)
        found.flush()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
