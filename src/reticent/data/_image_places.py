"""Places365 as its authors publish it: folders of images, and lists that say which class each is of.

Room: data. Imports Pillow through `_image_folder`.

    FOLDER/categories_places365.txt        /a/airfield 0
    FOLDER/places365_train_standard.txt    /a/airfield/00000001.jpg 0
    FOLDER/places365_val.txt               Places365_val_00000001.jpg 165
    FOLDER/data_256/a/airfield/00000001.jpg    FOLDER/val_256/Places365_val_00000001.jpg    ...

The "easyformat" of the same images is a folder of class folders, for `read_image_folder`.

Sources:
    [1] Zhou et al. 2017, Places: a 10 million image database for scene recognition; places2.csail.mit.edu.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from reticent.data._image_folder import ImageFolder, both_splits, file_key, refuse_one_folder
from reticent.errors import DataError

_CATEGORIES: Final = "categories_places365.txt"
_LISTS: Final = ("places365_train_standard.txt", "places365_train_challenge.txt")
_TRAIN: Final = ("data_256", "data_large", "data_256_standard", "data_large_standard")
_TEST: Final = ("val_256", "val_large")


def read_places(
    folder: Path,
    *,
    side: int,
    unreadable: Literal["refuse", "skip"] = "refuse",
    mixed: Literal["refuse", "skip", "convert"] = "refuse",
) -> tuple[ImageFolder, ImageFolder]:
    """Training and validation images; the latter are public ones to score on.

    Args:
        folder: holds the authors' lists, and one folder of training and one of validation images.
        side: as for `read_image_folder`.
        unreadable: alike.
        mixed: alike.

    Guarantee:
        As of `read_image_folder`. An image is listed once: nobody counts twice.

    Raises:
        DataError[image-table]: a list is missing, malformed, names a file twice or one that is not there.
        DataError[image-folder]: there is not one folder of each kind, or an image is in both.
        DataError[image-unreadable], DataError[image-mixed]: as `read_image_folder`.
    """
    names = _categories(folder / _CATEGORIES)
    train, test = _one_of(folder, _TRAIN), _one_of(folder, _TEST)
    refuse_one_folder(train, test)
    listed = [folder / name for name in _LISTS if (folder / name).exists()]
    if len(listed) != 1:
        raise DataError(
            f"'{folder}' must hold one list of training images, {' or '.join(_LISTS)}; it holds "
            f"{len(listed)}.",
            code="image-table",
        )
    return both_splits(
        _files(listed[0], train, len(names)),
        _files(folder / "places365_val.txt", test, len(names)),
        names,
        side=side,
        unreadable=unreadable,
        mixed=mixed,
    )


def _categories(path: Path) -> list[str]:
    """Label -> name, without the folder of its first letter."""
    rows = _rows(path)
    if sorted(label for _, label in rows) != list(range(len(rows))) or len(rows) < 2:
        raise _bad(path, f"must number its {len(rows)} classes from 0 on, two or more")
    return [name.strip("/").partition("/")[2] for name, _ in sorted(rows, key=lambda row: row[1])]


def _files(path: Path, base: Path, num_classes: int) -> list[tuple[Path, int]]:
    rows = _rows(path)
    outside = sum(not 0 <= label < num_classes for _, label in rows)
    if outside:
        raise _bad(path, f"has {outside} labels beyond its {num_classes} classes")
    try:
        files = [((base / name.lstrip("/")).resolve(), label) for name, label in rows]
        absent = [file for file, _ in files if not file.is_file()]
    except (OSError, ValueError) as e:  # too long, or with a null byte
        raise _bad(path, f"names what can be no file ({type(e).__name__})") from e
    if absent:
        raise _bad(path, f"names {len(absent)} files that are not in '{base.name}', e.g. '{absent[0].name}'")
    twice = len(files) - len({file_key(file) for file, _ in files})
    if twice:
        raise _bad(path, f"names {twice} files more than once")
    return files


def _rows(path: Path) -> list[tuple[str, int]]:
    """Lines of a name, a blank and a number."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as e:
        raise _bad(path, f"cannot be read ({type(e).__name__})") from e
    parts = [line.rpartition(" ") for line in lines]
    odd = sum(
        not name.strip() or not label.isascii() or not label.isdigit() or len(label) > 9
        for name, _, label in parts
    )
    if odd or not parts:
        raise _bad(path, f"has {odd} of {len(parts)} lines that are not a name and a number")
    return [(name, int(label)) for name, _, label in parts]


def _one_of(folder: Path, names: Sequence[str]) -> Path:
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) != 1:
        raise DataError(
            f"'{folder}' must hold one folder of images named {' or '.join(names)}; it holds {len(found)}. "
            "For class folders leave out labels = places.",
            code="image-folder",
        )
    return found[0]


def _bad(path: Path, what: str) -> DataError:
    return DataError(f"The list '{path}' {what}.", code="image-table")
