"""Data sets as inputs of an extraction: by name, or a folder of images.

Room: recipes. May import numpy and `reticent.data`.

Shape letters: B image, S side.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import numpy as np

from reticent.data import ImageFolder, load, names, read_image_folder
from reticent.errors import DataError

from ._extract import Inputs

DEFAULT_SIDE: Final = 224  # of images of a folder, which have to be brought to one size


def load_inputs(
    data: str, *, side: int | None = None, report: Callable[[str], None], progress: bool
) -> Inputs:
    """Load a data set of images or texts.

    Args:
        data: a name that `reticent.data` knows, or a folder of images: see `read_image_folder`.
        side: images of a folder are brought to this many pixels square; default 224.
        report: is told what is fetched.
        progress: draw download bars.

    Raises:
        DataError[data-unknown]: no data set of that name, and no such folder.
        DataError[data-kind]: it holds neither images nor texts.
        DataError: a folder of images is not whole; see `read_image_folder`.
    """
    if data not in names():
        if Path(data).is_dir():
            return _folder(Path(data), side or DEFAULT_SIDE)
        raise DataError(
            f"No data set is named {data!r}, and no folder. Known: {', '.join(names())}; or a folder of "
            "images with train/CLASS and test/CLASS in it.",
            code="data-unknown",
        )
    found = load(data, report=report, progress=progress)
    x = found.train.x
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        kind = "images"
    elif x.dtype.kind in "UO":
        kind = "texts"
    else:
        raise DataError(
            f"'{data}' holds columns of numbers, which are features already: train on them with "
            f"`reticent train last-layer --set features={data}`.",
            code="data-kind",
        )
    return Inputs(
        name=found.name,
        kind=kind,
        sha256=found.sha256,
        x={"train": found.train.x, "test": found.test.x},
        y={"train": found.train.y, "test": found.test.y},
        class_names=found.class_names,
        licence=found.licence,
        side=x.shape[1] if kind == "images" else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _ImagesOf(Sequence[Any]):
    """The images of a folder by slice, uint8 (B, S, S, 3), read when they are asked for."""

    images: ImageFolder

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...
    def __getitem__(self, index: int | slice) -> np.ndarray:
        if isinstance(index, int):
            return self.images[index][0]
        return np.stack([self.images[i][0] for i in range(*index.indices(len(self)))])


def _folder(folder: Path, side: int) -> Inputs:
    train, test = read_image_folder(folder, side=side, mixed="convert")
    both = f"{side} {train.sha256} {test.sha256}"
    return Inputs(
        name=folder.name,
        kind="images",
        sha256=hashlib.sha256(both.encode()).hexdigest(),
        x={"train": _ImagesOf(train), "test": _ImagesOf(test)},
        y={"train": train.labels, "test": test.labels},
        class_names=train.class_names,
        licence="not stated",
        folder=folder,
        side=side,
    )
