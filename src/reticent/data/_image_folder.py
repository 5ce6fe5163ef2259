"""Images in folders named by their class, read one by one, so that they need not fit in memory.

Room: data. Imports numpy, and Pillow through `_image_pixels`.

    FOLDER/train/cat/1.png    FOLDER/train/dog/7.jpg    FOLDER/test/cat/3.png    ...
    FOLDER/cat/1.png          FOLDER/dog/7.jpg          ...    (a tenth is then held out)

Shape letters: S side.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from reticent.data._image_pixels import Kind, fitted, opened, refusal, short_name, some, trial
from reticent.errors import DataError

ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST_NAMES: Final = ("test", "val", "valid", "validation")
_HELD_OUT: Final = 0.1
_SPLIT_SEED: Final = 20_220_416  # which images are held out; a public constant
Label = int | tuple[int, ...]
_Refuse = Literal["refuse", "skip"]
_Mixed = Literal["refuse", "skip", "convert"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFolder:
    """Images of one split, by index: (uint8 (S, S, 3), label). Made by `read_image_folder` and
    `read_image_table`; of the latter a label is a row of zeros and ones, int64 (K,).

    Args:
        class_names: label -> its name.
        skipped: reason -> how many files were left out.
        converted: how many images have another mode or size than most, and were made like them.
        unusual: reason, as in `skipped`, or "converted" -> names of the files. Of private images: for the
            operator's screen alone.
    """

    class_names: tuple[str, ...]
    skipped: dict[str, int]
    converted: int
    unusual: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    _files: Sequence[tuple[Path, Label]] = field(repr=False)
    _side: int = field(repr=False)

    @property
    def labels(self) -> np.ndarray:
        """Each image's label, int64 (N,) or (N, K); no image is read."""
        return np.array([label for _, label in self._files], dtype=np.int64)

    @property
    def sha256(self) -> str:
        """Checksum of the files' bytes and labels, in order; reads them all."""
        digest = hashlib.sha256()
        for path, label in self._files:
            digest.update(f"{_text(label)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def without(self, count: int) -> "ImageFolder":
        """All but `count` of the images; those left out are chosen by their places and a public constant."""
        out = _chosen(len(self), count)
        return replace(self, _files=tuple(file for k, file in enumerate(self._files) if k not in out))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        path, label = self._files[index]
        return fitted(opened(path), self._side), label if isinstance(label, int) else np.array(label)


def _text(label: Label) -> str:
    return str(label) if isinstance(label, int) else " ".join(map(str, label))


def has_splits(folder: Path) -> bool:
    """Whether a folder is divided into training and test images, or should be: not class folders alone."""
    return any((folder / name).is_dir() for name in ("train", *TEST_NAMES))


def read_image_folder(
    folder: Path,
    *,
    side: int,
    unreadable: _Refuse = "refuse",
    mixed: _Mixed = "refuse",
    hold_out: bool = False,
) -> tuple[ImageFolder, ImageFolder]:
    """Training and test images of a folder; every file is opened and decoded once, to be sure of it.

    Args:
        folder: holds `train` and one of `test`, `val`, `valid`, `validation`, each with a folder for every
            class, the same ones; or the class folders alone, with `hold_out`.
        side: images become this many pixels square: the shorter side is scaled to it, the middle is cut out.
        unreadable: what becomes of files that cannot be decoded, are cut short or have 32 bits a channel.
        mixed: what becomes of images of another mode or size than most of the test images have;
            "convert" turns all into RGB of one size.
        hold_out: of class folders alone a tenth of the images becomes the test images, chosen by their
            places in the listing and a public constant. Those are NOT public.

    Guarantee:
        Nothing is left out or changed that the arguments do not allow. What was left out or converted is
        counted and named. Every image went through the conversion that training will ask for. A file is one
        image, whatever other names and links it has: nobody counts twice.

    Raises:
        DataError[image-folder]: a split or class folder is missing or empty, there are not two, one is a link
            to another, an image is there twice or in both splits, by a link too, or there are too few images
            to hold a tenth out.
        DataError[image-unreadable]: files cannot be read; counts them by why, and names the first three.
        DataError[image-mixed]: modes or sizes differ; says which there are, how often, and names three files.
    """
    divide = _held_out if hold_out and not has_splits(folder) else _divided
    train, test, names = divide(folder)
    return both_splits(train, test, names, side=side, unreadable=unreadable, mixed=mixed)


_Files = list[tuple[Path, Label]]


def name_of_test(folder: Path) -> str:
    """The name of the one folder of public images beside `train`.

    Raises:
        DataError[image-folder]: there is not one, or it is `train` by another name.
    """
    names = [name for name in TEST_NAMES if (folder / name).is_dir()]
    if len(names) != 1:
        raise DataError(
            f"'{folder}' must hold one folder of public images to score on, named one of "
            f"{', '.join(TEST_NAMES)}; it holds {len(names)}.",
            code="image-folder",
        )
    refuse_one_folder(folder / "train", folder / names[0])
    return names[0]


def refuse_one_folder(train: Path, test: Path) -> None:
    """Refuse two names of one folder: scores on private images are not public.

    Raises:
        DataError[image-folder]: as said.
    """
    if train.exists() and train.samefile(test):
        raise DataError(
            f"'{train}' and '{test}' are one folder: those are the private images, whose scores are not "
            "public. Put other, public images in the second.",
            code="image-folder",
        )


def _divided(folder: Path) -> tuple[_Files, _Files, list[str]]:
    train = _class_folders(folder, "train")
    test_name = name_of_test(folder)
    test = _class_folders(folder, test_name)
    names = [path.name for path in train]
    if len(names) < 2 or names != [path.name for path in test]:
        raise DataError(
            f"'{folder}' must hold the same class folders, two or more, in train and {test_name}; "
            f"there are {names[:5]} and {[path.name for path in test][:5]}.",
            code="image-folder",
        )
    for one, other in zip(train, test, strict=True):
        refuse_one_folder(one, other)
    return _labelled(train), _labelled(test), names


def _held_out(folder: Path) -> tuple[_Files, _Files, list[str]]:
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}'.", code="image-folder")
    classes = _class_folders(folder, "")
    names = [path.name for path in classes]
    files = _labelled(classes)
    num_test = round(_HELD_OUT * len(files))
    if len(names) < 2 or not num_test:
        raise DataError(
            f"'{folder}' holds {len(files)} images in {len(names)} class folders; it must hold ten or more "
            "in two folders, named by their class. Or divide them yourself: train/CLASS and test/CLASS.",
            code="image-folder",
        )
    out = _chosen(len(files), num_test)
    train = [file for k, file in enumerate(files) if k not in out]
    return train, [files[k] for k in sorted(out)], names


def _chosen(number: int, count: int) -> set[int]:
    """Which `count` of so many places: the same ones whatever lies there."""
    return set(np.random.default_rng(_SPLIT_SEED).permutation(number)[:count].tolist())


def both_splits(
    train: Sequence[tuple[Path, Label]],
    test: Sequence[tuple[Path, Label]],
    names: Sequence[str],
    *,
    side: int,
    unreadable: _Refuse,
    mixed: _Mixed,
) -> tuple[ImageFolder, ImageFolder]:
    """Both splits of labelled files, each file opened and decoded once.

    Guarantee:
        No file, by any name, symbolic or hard link, is in both, or twice in one. Copies are other files.

    Raises:
        DataError[image-folder]: one is.
        DataError[image-unreadable], DataError[image-mixed]: as `read_image_folder`.
    """
    for split, files in (("training", train), ("test", test)):
        _refuse_repeated(split, files)
    _refuse_shared(train, test)
    usual = None
    splits = []
    for files in (test, train):  # what is usual is said by the test images: training does not protect them
        kept, unusual, usual = _checked(files, side, unreadable, mixed, usual)
        splits.append(
            ImageFolder(
                class_names=tuple(names),
                skipped={why: len(found) for why, found in unusual.items() if why != "converted"},
                converted=len(unusual.get("converted", ())),
                unusual=unusual,
                _files=tuple(kept),
                _side=side,
            )
        )
    return splits[1], splits[0]


def file_key(path: Path) -> Hashable:
    """What all names of a file have in common, links of both kinds; of no two files at once.

    File numbers are asked for only where a file has several names: some file systems give one to many files.
    """
    found = path.stat()
    return (found.st_dev, found.st_ino) if found.st_ino and found.st_nlink > 1 else path.resolve()


def _refuse_repeated(split: str, files: Sequence[tuple[Path, Label]]) -> None:
    first: dict[Hashable, Path] = {}
    again = [(path, one) for path, _ in files if (one := first.setdefault(file_key(path), path)) is not path]
    if again:
        named = [f"{short_name(path)}' = '{short_name(one)}" for path, one in again]
        raise DataError(
            f"{len(again)} of {len(files)} {split} images are files that are there already, by another name "
            f"or a link: {some(named)}. Whose image it is would count several times. Leave one name of each.",
            code="image-folder",
        )


def _refuse_shared(train: Sequence[tuple[Path, Label]], test: Sequence[tuple[Path, Label]]) -> None:
    private = {file_key(path) for path, _ in train}
    shared = [path for path, _ in test if file_key(path) in private]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(test)} test images are training images too, by another path or a link, "
            f"e.g. '{short_name(shared[0])}': those are private, and their scores are not "
            "public. Take them out of either.",
            code="image-folder",
        )


def _labelled(classes: Sequence[Path]) -> list[tuple[Path, Label]]:
    return [(path, label) for label, folder in enumerate(classes) for path in images_in(folder)]


def _class_folders(folder: Path, split: str) -> list[Path]:
    base = folder / split
    if not base.is_dir():
        raise DataError(
            f"'{folder}' holds no folder '{split}'. It must hold train/CLASS and test/CLASS folders with "
            "images in them.",
            code="image-folder",
        )
    classes = sorted(path for path in base.iterdir() if path.is_dir())
    empty = [path.name for path in classes if not images_in(path)]
    if empty or not classes:
        listed = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(
            f"'{base}' holds {len(empty)} class folders without an image: {listed}. Remove or fill them."
            if classes
            else f"'{base}' holds no class folders: make one for each class, with its images in it.",
            code="image-folder",
        )
    return classes


def images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())


def _checked(
    given: Sequence[tuple[Path, Label]], side: int, unreadable: _Refuse, mixed: _Mixed, usual: Kind | None
) -> tuple[list[tuple[Path, Label]], dict[str, list[str]], Kind]:
    """The files of a split to be used, the unusual ones' names by what became of them, and what is usual."""
    files, kinds, bad = [], [], []
    for path, label in given:
        found = trial(path, side)
        if isinstance(found, str):
            bad.append((short_name(path), found))
            continue
        files.append((path, label))
        kinds.append(found)
    if bad and unreadable == "refuse":
        raise refusal(
            bad, len(given), advice="Repair or remove them, or leave them out with unreadable = skip."
        )
    if not files:
        raise DataError("No image of a split can be read.", code="image-unreadable")
    usual = Counter(kinds).most_common(1)[0][0] if usual is None else usual
    other = [short_name(path) for (path, _), kind in zip(files, kinds, strict=True) if kind != usual]
    if other and mixed == "refuse":
        raise _unlike(kinds, other)
    if mixed == "skip":
        files = [file for file, kind in zip(files, kinds, strict=True) if kind == usual]
    unusual = {
        "unreadable": [f"{name} ({why})" for name, why in bad],
        "mixed" if mixed == "skip" else "converted": other,
    }
    return files, {why: names for why, names in unusual.items() if names}, usual


def _unlike(kinds: Sequence[Kind], other: Sequence[str]) -> DataError:
    counts = Counter(kinds)
    listed = "; ".join(f"{mode} {w} x {h}: {n}" for (mode, (w, h)), n in counts.most_common(4))
    return DataError(
        f"{len(other)} of {len(kinds)} images differ from the others in mode or size ({listed}"
        + "; ..." * (len(counts) > 4)
        + f"): {some(other)}. Make all RGB of one size with mixed = convert, or leave them out with "
        "mixed = skip.",
        code="image-mixed",
    )
