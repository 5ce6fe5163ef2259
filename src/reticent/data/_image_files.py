"""Images to be predicted: files of a folder, with labels where its folders or its table name them.

Room: data. Imports numpy, and Pillow through `_image_pixels`.

    FOLDER/1.png    FOLDER/trip/7.jpg    ...      without labels, whatever other folders are called
    FOLDER/cat/1.png    FOLDER/dog/7.jpg          with labels, if cat and dog are classes
    FOLDER/labels.csv    FOLDER/1.png    ...      with several labels each, as `read_image_table` has them

Shape letters: N image, S side, K class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reticent.data._image_folder import (
    ENDINGS,
    TEST_NAMES,
    Label,
    has_splits,
    images_in,
)
from reticent.data._image_pixels import fitted, opened, refusal, trial
from reticent.data._image_table import TABLE, table_rows
from reticent.errors import DataError

_Files = list[tuple[Path, Label]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFiles:
    """Images by index: (uint8 (S, S, 3), or (S, S) if grey; label). Made by `read_image_files`.

    A label is as `ImageFolder` has it; 0, or a row of zeros, where nobody said any.

    Args:
        names: of the files, from the folder on.
        labelled: whether the labels were said.
        left_out: how many files of the folder are no images by their endings.
    """

    names: tuple[str, ...] = field(repr=False)
    labelled: bool
    left_out: int
    _files: Sequence[tuple[Path, Label]] = field(repr=False)
    _side: int = field(repr=False)
    _grey: bool = field(repr=False)

    @property
    def labels(self) -> np.ndarray:
        """Each image's label, int64 (N,) or (N, K); no image is read."""
        return np.array([label for _, label in self._files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        path, label = self._files[index]
        pixels = fitted(opened(path), self._side, "L" if self._grey else "RGB")
        return pixels, label if isinstance(label, int) else np.array(label)


def read_image_files(
    path: Path,
    *,
    side: int,
    grey: bool = False,
    class_names: Sequence[str],
    several: bool = False,
    on_file: Callable[[int, int], None] | None = None,
) -> ImageFiles:
    """An image, or those of a folder and the folders in it; each is decoded once, to be sure of it.

    Args:
        path: an image file or a folder.
        side: as for `read_image_folder`, whose images are fitted in the same way.
        grey: whether they become one channel.
        class_names: of all classes. Folders of these names say their images' labels.
        several: whether labels are those of a `labels.csv`, if there is one, and not folders' names.
        on_file: called with the number of files decoded, and of all.

    Raises:
        DataError[data-missing]: there is no such file or folder.
        DataError[predict-data]: no image is there, or the folder is divided into splits.
        DataError[predict-labels]: some images lie in folders named by a class and others do not, or the
            table has other labels.
        DataError[image-table]: the table is malformed; see `read_image_table`.
        DataError[image-unreadable]: files cannot be read; counts them by why, and names the first three.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder '{path}'.", code="data-missing")
    base = path.parent if path.is_file() else path
    files, labelled = _listed(path, class_names, several)
    bad = []
    for k, (file, _) in enumerate(files):
        found = trial(file, side, "L" if grey else "RGB")
        if isinstance(found, str):
            bad.append((_name(file, base), found))
        if on_file is not None:
            on_file(k + 1, len(files))
    if bad:
        raise refusal(bad, len(files), advice="Repair or remove them.")
    return ImageFiles(
        names=tuple(_name(file, base) for file, _ in files),
        labelled=labelled,
        left_out=0 if path.is_file() else _num_others(path),
        _files=tuple(files),
        _side=side,
        _grey=grey,
    )


def _listed(path: Path, class_names: Sequence[str], several: bool) -> tuple[_Files, bool]:
    """Files with labels, and whether those were said."""
    none: Label = (0,) * len(class_names) if several else 0
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise DataError(
                f"The model reads images, and '{path.name}' is none by its ending: {', '.join(ENDINGS)}.",
                code="predict-data",
            )
        return [(path, none)], False
    if several and (path / TABLE).is_file():
        rows, named = table_rows(path)
        if named != list(class_names):
            raise DataError(
                f"The labels of '{path / TABLE}' must be those of the run, {', '.join(class_names)}, in this "
                f"order; they are {', '.join(named)}.",
                code="predict-labels",
            )
        return list(rows), True
    folders = {sub.name: sub for sub in sorted(path.iterdir()) if sub.is_dir() and images_in(sub)}
    if not several and folders.keys() & set(class_names):
        return _of_classes(path, folders, class_names), True
    if has_splits(path):
        raise DataError(
            f"'{path}' is divided into splits: name one of them, e.g. '{path / _a_split(path)}'.",
            code="predict-data",
        )
    files = images_in(path)
    if not files:
        raise DataError(
            f"'{path}' holds no image. Endings that are read: {', '.join(ENDINGS)}.", code="predict-data"
        )
    return [(file, none) for file in files], False


def _of_classes(path: Path, folders: dict[str, Path], class_names: Sequence[str]) -> _Files:
    place = {name: k for k, name in enumerate(class_names)}
    foreign = [name for name in folders if name not in place]
    loose = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file()]
    if foreign or loose:
        raise DataError(
            f"Some folders of '{path}' are named by a class, which labels their images, and "
            f"{len(foreign)} folders with images and {len(loose)} images are not. Put those elsewhere, or "
            f"give all a folder of their class: {', '.join(class_names)}.",
            code="predict-labels",
        )
    return [(file, place[name]) for name, folder in folders.items() for file in images_in(folder)]


def _a_split(path: Path) -> str:
    return next(name for name in (*TEST_NAMES, "train") if (path / name).is_dir())


def _num_others(path: Path) -> int:
    others = (p for p in path.rglob("*") if p.suffix.lower() not in ENDINGS and p.is_file())
    return sum(not p.name.startswith(".") and p.name != TABLE for p in others)


def _name(file: Path, base: Path) -> str:
    for above in (base, base.resolve()):
        if file.is_relative_to(above):
            return file.relative_to(above).as_posix()
    return file.name
