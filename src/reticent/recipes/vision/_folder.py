"""Recipes on images that lie on this machine: class folders, or data sets in their authors' layout.

Room: recipes. May import torch, `reticent.{train,data}` and the floors below.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from reticent.data import (
    ArrayPair,
    ImageFolder,
    has_splits,
    read_image_folder,
    read_image_table,
    read_places,
)
from reticent.errors import ConfigError, DataError

from .._stamp import remembered
from .._training import Material
from ._config import VisionConfig
from ._recipe import VisionRecipe

_Splits = tuple[ArrayPair, ArrayPair]


class LocalConfig(VisionConfig):
    """Settings of recipes that read a folder."""

    data: Annotated[str | None, Field(description="the folder that holds the data set")] = None


class FolderConfig(LocalConfig):
    """Settings of recipes on class folders."""

    image_size: Annotated[int, Field(ge=8, le=1024, description="pixels of a side; others are scaled")] = 32
    labels: Annotated[
        Literal["folders", "table", "places"],
        Field(
            description="table: several labels for an image, in train/labels.csv and test/labels.csv; "
            "places: Places365's own lists"
        ),
    ] = "folders"
    unreadable: Annotated[
        Literal["refuse", "skip"], Field(description="what becomes of files that cannot be read")
    ] = "refuse"
    mixed: Annotated[
        Literal["refuse", "skip", "convert"],
        Field(description="what becomes of images of other modes or sizes than most have"),
    ] = "convert"

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        if self.features == "scattering":
            problems.append("features: scattering is for data sets that fit in memory; leave it out here")
        if self.labels == "table" and self.label_smoothing:
            problems.append("label_smoothing is for one class each, and labels is 'table': leave it out")
        if self.augmult and self.crop_pad >= self.image_size:
            problems.append(
                f"crop_pad = {self.crop_pad} mirrors more than an image of {self.image_size} pixels has: "
                "set it below image_size"
            )
        if self.validation:
            problems.append("validation: the folder has its own images to score on; leave it out here")
        return problems


class FinetuneConfig(FolderConfig):
    """Settings of a recipe that begins with public weights."""

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        if self.start_from is None and not self.pretrained:
            problems.append(
                "there are no weights to fine-tune: give start_from = FILE, or pretrained = true with a "
                "timm: or transformers: network. From random weights trains vision-scratch"
            )
        return problems


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalRecipe(VisionRecipe):
    """A data set of public size in its authors' layout, from the folder `data`.

    Args:
        read: the layout's reader.
        fine_tunes: whether the recipe is one of public weights, without which it does not begin.
    """

    read: Callable[[Path], _Splits]
    fine_tunes: bool = False

    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> _Splits:
        if self.fine_tunes and config.start_from is None and not config.pretrained:
            raise ConfigError(
                f"'{self.name}' fine-tunes public weights: set start_from = FILE, the .safetensors of "
                "another run.",
                code="start-from",
            )
        return self.read(_folder_of(config, self.name))

    def prepare(self, config: Any, fetched: Any) -> Material:
        train, test = fetched
        return self._material(config, train, test, {"name": self.dataset, "source": "folder"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderRecipe(VisionRecipe):
    """Class folders. Where `size` is 0, images and classes are counted, and both numbers are public.

    Args:
        spare: images of a public data set beyond `size`, which the published run did not train on: so many
            are left out where the folder holds them too, chosen by their places in it and a constant.
    """

    spare: int = 0
    holding_out: ClassVar[str | None] = "give a folder of class folders alone, of which a tenth is held out"

    def num_examples(self, config: Any) -> int:
        return self.size or len(_read(config, self.name)[0])

    def shape_of(self, config: Any) -> tuple[int, int, int]:
        return 3, config.image_size, config.image_size

    def classes_of(self, config: Any) -> int:
        return self.num_classes or len(_read(config, self.name)[0].class_names)

    def holds_out(self, config: Any) -> bool:
        return config.labels == "folders" and not has_splits(_folder_of(config, self.name))

    def several_labels(self, config: Any) -> bool:
        return config.labels == "table"

    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Any:
        train, test = _read(config, self.name)
        for split, images in (("train", train), ("test", test)):
            for reason, count in images.skipped.items():
                report(
                    f"{count} {reason} images of {split} were left out, as asked: "
                    f"{_first(images.unusual[reason])}"
                )
            if images.converted:
                report(
                    f"Images of {split} differ in mode or size, {images.converted} of {len(images)} from the "
                    f"most frequent ({_first(images.unusual['converted'])}): all become RGB, "
                    f"{config.image_size} x {config.image_size} (mixed=refuse stops there, mixed=skip leaves "
                    "them out)"
                )
        if self.num_classes and len(train.class_names) != self.num_classes:
            raise DataError(
                f"'{self.name}' is of {self.num_classes:,} classes, and the folder holds "
                f"{len(train.class_names):,}. For your own images take vision-scratch or vision-finetune.",
                code="image-folder",
            )
        if self.spare and len(train) == self.size + self.spare:
            report(
                f"{self.spare:,} images of train are left out, as in the published run: {self.size:,} stay"
            )
            train = train.without(self.spare)
        return train, test

    def prepare(self, config: Any, fetched: Any) -> Material:
        train, test = fetched
        # What was left out is said to the operator only: a run's description may be published.
        about = {"name": "folder", "classes": list(train.class_names)}
        if self.holds_out(config):
            about["scored"] = "held-out images of the folder, NOT private"
        return Material(train=train, test=test, about=about)


def _first(names: Sequence[str]) -> str:
    """Three of them, for the operator's screen alone."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _read(config: Any, name: str) -> tuple[ImageFolder, ImageFolder]:
    folder = _folder_of(config, name)
    return _read_once(folder.resolve(), config.labels, config.image_size, config.unreadable, config.mixed)


@remembered(lambda folder, *_: [folder], maxsize=4)
def _read_once(
    folder: Path, labels: str, side: int, unreadable: Any, mixed: Any
) -> tuple[ImageFolder, ImageFolder]:
    if labels == "table":
        return read_image_table(folder, side=side, unreadable=unreadable, mixed=mixed)
    if labels == "places":
        return read_places(folder, side=side, unreadable=unreadable, mixed=mixed)
    return read_image_folder(folder, side=side, unreadable=unreadable, mixed=mixed, hold_out=True)


def _folder_of(config: Any, name: str) -> Path:
    if config.data is None:
        raise ConfigError(
            f"'{name}' reads its images from a folder: set data = FOLDER, which holds a folder for each "
            "class, or train/CLASS and test/CLASS folders, or the data set's files as its authors publish "
            "them.",
            code="config",
        )
    return Path(config.data)
