"""Images with any number of labels each, named in a table beside them.

Room: data. Imports numpy and Pillow through `_image_folder`.

    FOLDER/train/labels.csv:    file,cat,dog        FOLDER/train/1.png    FOLDER/test/labels.csv    ...
                                1.png,1,0
"""

import csv
from pathlib import Path
from typing import Final, Literal

from reticent.data._image_folder import ImageFolder, both_splits, file_key, name_of_test
from reticent.errors import DataError

TABLE: Final = "labels.csv"


def read_image_table(
    folder: Path,
    *,
    side: int,
    unreadable: Literal["refuse", "skip"] = "refuse",
    mixed: Literal["refuse", "skip", "convert"] = "refuse",
) -> tuple[ImageFolder, ImageFolder]:
    """Training and test images whose labels are rows of zeros and ones.

    Args:
        folder: holds `train` and one of `test`, `val`, `valid`, `validation`; each with a `labels.csv`: a
            column `file`, a path from there, and one column for each label, the same ones.
        side: as for `read_image_folder`.
        unreadable: alike.
        mixed: alike.

    Guarantee:
        As of `read_image_folder`. An image is in the table once: nobody counts twice.

    Raises:
        DataError[image-table]: a table is missing, malformed, names a file twice or one that is not there.
        DataError[image-folder]: there is not one folder of public images, or an image is in both tables.
        DataError[image-unreadable], DataError[image-mixed]: as `read_image_folder`.
    """
    test_name = name_of_test(folder)
    (train, names), (test, other) = (table_rows(folder / split) for split in ("train", test_name))
    if names != other:
        raise DataError(
            f"The tables in train and {test_name} must have the same labels; they have {names[:5]} and "
            f"{other[:5]}.",
            code="image-table",
        )
    return both_splits(train, test, names, side=side, unreadable=unreadable, mixed=mixed)


def table_rows(base: Path) -> tuple[list[tuple[Path, tuple[int, ...]]], list[str]]:
    """Files with their labels in the table's order, and the labels' names."""
    path = base / TABLE
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except (OSError, ValueError, csv.Error) as e:
        raise _bad(path, f"cannot be read ({e})") from e
    if len(lines) < 2 or lines[0][0] != "file" or len(lines[0]) < 2:
        raise _bad(path, "must begin with a line 'file,LABEL,...' and have a line for each image")
    names, rows = lines[0][1:], lines[1:]
    if len(set(names)) != len(names):
        raise _bad(path, "names a label twice")
    odd = sum(len(row) != len(lines[0]) or not set(row[1:]) <= {"0", "1"} for row in rows)
    if odd:
        raise _bad(path, f"has {odd} lines that are not a file and {len(names)} zeros or ones")
    try:
        files = [(base / row[0]).resolve() for row in rows]
        absent = [file for file in files if not file.is_file()]
    except (OSError, ValueError) as e:  # too long, or with a null byte
        raise _bad(path, f"names what can be no file ({type(e).__name__})") from e
    if absent:
        raise _bad(path, f"names {len(absent)} files that are not there, e.g. '{absent[0].name}'")
    if twice := len(files) - len({file_key(file) for file in files}):
        raise _bad(path, f"names {twice} files more than once")
    return [(file, tuple(map(int, row[1:]))) for file, row in zip(files, rows, strict=True)], names


def _bad(path: Path, what: str) -> DataError:
    return DataError(f"The table '{path}' {what}.", code="image-table")
