"""Features of a data set, computed once by a frozen model and kept on disk.

Room: recipes. May import numpy, `reticent.train` (for files that are whole or absent) and `reticent.errors`.

A store is a folder:

    store.json              what made it, its shape, and how far it has come
    SPLIT.features.npy      (N, D) float16 or float32, one row an example; NumPy's own format
    SPLIT.labels.npy        (N,) int64

Rows are appended in order and are durable before `store.json` counts them, so whatever stops an
extraction, it goes on with the first row that is not counted. Whoever computes the rows is never given
the labels: `StoreWriter.append` and `StoreWriter.put_labels` do not meet.

Shape letters: N example, D feature, B row of a block.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
from numpy.lib import format as npy

from reticent.errors import DataError
from reticent.train import write_json

INDEX: Final = "store.json"
FORMAT: Final = 1
Precision = Literal["float16", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the features depend on; two stores with equal fingerprints hold equal features, to rounding.

    Args:
        model: the model's name.
        weights: SHA-256 of its parameters and buffers, with their names.
        preprocess: what was done to inputs before the model and to outputs after it, as JSON values.
        data: the data set's name.
        data_sha256: checksum of the data set's arrays.
    """

    model: str
    weights: str
    preprocess: Mapping[str, Any]
    data: str
    data_sha256: str

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the parts in which another fingerprint, as JSON, differs."""
        return [name for name, value in asdict(self).items() if other.get(name) != value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Public shape of a store.

    Args:
        num_rows: split -> number of its examples.
        dim: features an example has.
        precision: how they are kept.
        class_names: label -> name.
        licence: of the data, as its authors state it.
        side: pixels of a side of the images that the model was handed; None of texts.
    """

    num_rows: Mapping[str, int]
    dim: int
    precision: Precision
    class_names: tuple[str, ...]
    licence: str = ""
    side: int | None = None

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "num_rows": dict(self.num_rows), "class_names": list(self.class_names)}


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Features and labels of one split, mapped from disk or in memory; the repr shows neither.

    Args:
        x: (N, D) float16 or float32.
        y: (N,) int64.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStore:
    """A whole store, open for reading. `side` is None of texts, and where an older version made it."""

    path: Path
    fingerprint: Mapping[str, Any]
    dim: int
    precision: Precision
    side: int | None
    class_names: tuple[str, ...]
    num_rows: Mapping[str, int]
    sha256: Mapping[str, str]
    licence: str

    def split(self, name: str) -> Split:
        """Map one split; no row is read before it is asked for.

        Raises:
            DataError[store-damaged]: a file is missing, or of another shape than the index says.
            DataError[data-labels]: a label is no class of the store.
        """
        num_rows = self.num_rows[name]
        x = _mapped(self.path / f"{name}.features.npy", (num_rows, self.dim))
        y = np.asarray(_mapped(self.path / f"{name}.labels.npy", (num_rows,)))
        check_labels(y, len(self.class_names), where=f"the {name} split of '{self.path}'")
        return Split(x, y)

    def verify(self) -> None:
        """Read everything and compare its SHA-256 with the index.

        Raises:
            DataError[store-damaged]: a file differs from what was written.
        """
        for name, expected in self.sha256.items():
            path = self.path / name
            if not path.is_file() or _sha256(path) != expected:
                raise _damaged(path, "is not the file that was written")


def open_store(path: Path | str, *, expected: Fingerprint | None = None) -> FeatureStore:
    """Open a finished store.

    Args:
        path: its folder.
        expected: refuse a store that something else made.

    Raises:
        DataError[store-missing]: there is no store in that folder.
        DataError[store-damaged]: its index cannot be read, or contradicts itself.
        DataError[store-incomplete]: its extraction was interrupted.
        DataError[store-fingerprint]: another model, preprocessing or data set made it.
    """
    path = Path(path)
    index = _read_index(path)
    if index is None:
        raise DataError(
            f"There is no feature store at '{path}'. Make one: reticent features extract --out {path}, or "
            "name embedded features, e.g. features=digits.",
            code="store-missing",
        )
    if expected is not None:
        _check_same(path, expected, index)
    if index["sha256"] is None:
        done = ", ".join(f"{n} {index['done'][n]} of {total}" for n, total in index["num_rows"].items())
        raise DataError(
            f"The store '{path}' is not complete ({done} rows). Go on with it: run the same "
            "`reticent features extract` again.",
            code="store-incomplete",
        )
    return FeatureStore(
        path=path,
        fingerprint=index["fingerprint"],
        dim=index["dim"],
        precision=index["precision"],
        side=index.get("side"),
        class_names=tuple(index["class_names"]),
        num_rows=index["num_rows"],
        sha256=index["sha256"],
        licence=index["licence"],
    )


class StoreWriter:
    """A store that is being filled, by one process at a time. A context manager.

    Guarantee:
        Rows that `num_done` counts are on disk, finite, and never written again. A full disk, a kill or
        a bad row leaves the store as `num_done` says, and the next writer goes on from there.
    """

    def __init__(self, path: Path, index: dict[str, Any], lock: int) -> None:
        self._path = path
        self._index = index
        self._lock = lock

    @classmethod
    def begin(cls, path: Path | str, *, fingerprint: Fingerprint, shape: Shape) -> "StoreWriter":
        """Make a store, or go on with one that the same model, preprocessing and data began.

        Raises:
            DataError[store-fingerprint]: the folder holds a store of something else.
            DataError[store-exists]: it holds other files.
            DataError[store-locked]: another process is filling it.
            DataError[store-disk]: there is no room for it, or the system refuses to write.
        """
        path = Path(path)
        with _disk(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        try:
            index = _read_index(path)
            if index is None:
                index = _new_index(path, fingerprint, shape)
            else:
                _check_same(path, fingerprint, index, shape)
            return cls(path, index, lock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._index["sha256"] is not None

    def num_done(self, split: str) -> int:
        """Rows of a split that are on disk."""
        return self._index["done"][split]

    def append(self, split: str, block: np.ndarray) -> None:
        """Write the next rows of a split, durable when this returns.

        Args:
            split: its name.
            block: (B, D), any real dtype.

        Raises:
            DataError[data-shape]: of another shape, or more rows than the split has.
            DataError[store-values]: a feature is NaN or infinite, or too large for float16.
            DataError[store-disk]: the disk is full, or the system refuses to write.
        """
        index = self._index
        done, num_rows = index["done"][split], index["num_rows"][split]
        if block.ndim != 2 or block.shape[1] != index["dim"] or done + len(block) > num_rows:
            raise DataError(
                f"A block of shape {block.shape} does not fit the {split} split of '{self._path}': "
                f"{num_rows - done} rows of {index['dim']} features are left.",
                code="data-shape",
            )
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(block, dtype=index["precision"])
        if not np.isfinite(rows).all():
            too_large = np.isfinite(block).all()
            raise DataError(
                f"Features of the {split} split, rows {done} to {done + len(block) - 1}, "
                + (
                    "are too large for float16: keep them as float32 (--precision float32)."
                    if too_large
                    else "hold NaN or infinity. Nothing of that block was kept; mend the model or its inputs."
                ),
                code="store-values",
            )
        path = self._path / f"{split}.features.npy"
        with _disk(path):
            _write_rows(path, rows, done)
            index["done"][split] = done + len(block)
            self._save()

    def put_labels(self, split: str, labels: np.ndarray) -> None:
        """Write the labels of a split.

        Raises:
            DataError[data-shape]: not one label a row.
            DataError[data-labels]: a label is not an integer, or no class of the store.
        """
        num_rows = self._index["num_rows"][split]
        if labels.shape != (num_rows,):
            raise DataError(
                f"Labels of shape {labels.shape} for the {split} split, which has {num_rows} rows.",
                code="data-shape",
            )
        check_labels(labels, len(self._index["class_names"]), where=f"the {split} split")
        path = self._path / f"{split}.labels.npy"
        with _disk(path), open(path, "wb") as f:
            np.save(f, labels.astype(np.int64))
            os.fsync(f.fileno())

    def finish(self) -> FeatureStore:
        """Seal the store: every row and label is there, and its checksum is written down.

        Raises:
            DataError[store-incomplete]: rows or labels are missing.
        """
        index = self._index
        names = [f"{split}.{kind}.npy" for split in index["num_rows"] for kind in ("features", "labels")]
        absent = [name for name in names if not (self._path / name).is_file()]
        if absent or index["done"] != index["num_rows"]:
            raise DataError(
                f"The store '{self._path}' lacks rows or files: {absent or index['done']}.",
                code="store-incomplete",
            )
        with _disk(self._path):
            index["sha256"] = {name: _sha256(self._path / name) for name in names}
            self._save()
        return open_store(self._path)

    def _save(self) -> None:
        write_json(self._path / INDEX, self._index)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)


def check_labels(labels: np.ndarray, num_classes: int, *, where: str) -> None:
    """Refuse labels that are not integers from 0 to `num_classes` - 1.

    Raises:
        DataError[data-labels]: as said. The message names no label.
    """
    if not np.issubdtype(labels.dtype, np.integer) or (
        len(labels) and (labels.min() < 0 or labels.max() >= num_classes)
    ):
        raise DataError(
            f"Labels of {where} must be integers from 0 to {num_classes - 1}; some are not.",
            code="data-labels",
        )


def _new_index(path: Path, fingerprint: Fingerprint, shape: Shape) -> dict[str, Any]:
    """Take the room on disk that the store needs, then write its index."""
    if any(p.name != ".lock" and not p.name.endswith(".features.npy") for p in path.iterdir()):
        raise DataError(
            f"'{path}' holds files and no feature store. Choose another folder for --out.",
            code="store-exists",
        )
    index = {
        "format": FORMAT,
        "fingerprint": asdict(fingerprint),
        **shape.record(),
        "done": dict.fromkeys(shape.num_rows, 0),
        "sha256": None,
    }
    with _disk(path):
        for split, num_rows in shape.num_rows.items():
            _reserve(path / f"{split}.features.npy", (num_rows, shape.dim), shape.precision)
        write_json(path / INDEX, index)
    return index


def _reserve(path: Path, shape: tuple[int, int], precision: Precision) -> None:
    """A file of the right length, its blocks taken now: a disk that fills later cannot tear it."""
    try:
        with open(path, "wb") as f:
            header = {
                "descr": npy.dtype_to_descr(np.dtype(precision)),
                "fortran_order": False,
                "shape": shape,
            }
            npy.write_array_header_1_0(f, header)
            f.flush()
            size = f.tell() + shape[0] * shape[1] * np.dtype(precision).itemsize
            os.posix_fallocate(f.fileno(), 0, size)
            os.fsync(f.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _write_rows(path: Path, rows: np.ndarray, start: int) -> None:
    with open(path, "r+b") as f:
        npy.read_magic(f)
        npy.read_array_header_1_0(f)
        f.seek(f.tell() + start * rows.shape[1] * rows.itemsize)
        f.write(rows.data)
        f.flush()
        os.fsync(f.fileno())


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        mapped = npy.open_memmap(path, mode="r")  # not numpy.load, which opens archives too
    except (OSError, ValueError) as e:
        raise _damaged(path, f"cannot be read ({type(e).__name__})") from e
    if mapped.shape != shape:
        raise _damaged(path, f"has shape {mapped.shape}, and by the index {shape}")
    return mapped


def _read_index(path: Path) -> dict[str, Any] | None:
    where = path / INDEX
    if not where.exists():
        return None
    try:
        index = json.loads(where.read_text(encoding="utf-8"))
        known = index["format"] == FORMAT
        whole = isinstance(index["fingerprint"], dict) and index["done"].keys() == index["num_rows"].keys()
        whole = whole and {"dim", "precision", "class_names", "sha256", "licence"} <= index.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise _damaged(where, f"cannot be read ({type(e).__name__})") from e
    if not known or not whole:
        raise _damaged(where, "is not an index of format 1")
    return index


def _check_same(
    path: Path, expected: Fingerprint, index: Mapping[str, Any], shape: Shape | None = None
) -> None:
    wrong = expected.differences(index["fingerprint"])
    if shape is not None:
        # What an older version did not note is not held against its store.
        wrong += [name for name, value in shape.record().items() if index.get(name, value) != value]
    if wrong:
        raise DataError(
            f"The store '{path}' was made by something else: {', '.join(wrong)} differ. Choose another "
            "folder, or delete the store if nothing needs it.",
            code="store-fingerprint",
        )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise DataError(
            f"Cannot write '{path}': {e.strerror or e}. What was counted before is whole; make room, and run "
            "the same command again to go on.",
            code="store-disk",
        ) from e


def _locked(path: Path) -> int:
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(handle)
        raise DataError(
            f"Another process is filling the store '{path}'. Wait for it, or choose another folder.",
            code="store-locked",
        ) from e
    return handle


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"'{path}' {what}. Delete the store and extract it again.", code="store-damaged")


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
