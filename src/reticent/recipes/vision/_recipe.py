"""Recipes on labelled images of one shape: data, network, views, losses and scores.

Room: recipes. May import torch, `reticent.{train,data}` and the floors below.

Shape letters: B image, K class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from reticent.audit import Inputs
from reticent.data import ArrayPair, Dataset, class_names, load, names, read_image_files
from reticent.errors import ConfigError, DataError

from .._arrays import at_the_ends
from .._going_on import read_result
from .._parts import build_model, scored_at_once
from .._reader import Given, Reader, Watch, given_images, outputs_of_inputs, with_weights
from .._recipe import Request
from .._training import Material, TrainingRecipe
from ._assess import assess
from ._augment import Views, mean_over_views
from ._config import VisionConfig
from ._cost import what_it_takes
from ._features import scattered, scattering_of
from ._foreign import NETWORK, folder_of, keep, scaling_as
from ._networks import network
from ._pink import standardiser
from ._scattering import num_coefficients
from ._start import mixing_layers, start, take_head

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisionRecipe(TrainingRecipe):
    """A ready plan with network and data, for images of one shape with integer labels.

    Args:
        name: what a person types.
        summary: one line.
        config: its settings, with its defaults.
        dataset: name of the data set.
        size: number of examples in the training set, a public constant.
        shape: (channels, rows, columns) of an image.
        num_classes: labels are 0 .. num_classes - 1.
        fallback: recipe to take, loudly, if no source of the data can be reached.
        strange: what `strange_rows` are.
        deviation: public constant that networks of ours scale pixels by; see `Pixels`.
    """

    name: str
    summary: str
    config: type[VisionConfig]
    dataset: str
    size: int
    shape: tuple[int, int, int]
    num_classes: int
    fallback: str | None = None
    strange: Inputs | None = "out of distribution"
    deviation: float = 0.25
    kept: ClassVar[tuple[str, ...]] = ("logits", "labels")
    holding_out: ClassVar[str | None] = "set validation=N, the number of training rows to score instead"

    def num_examples(self, config: VisionConfig) -> int:
        if config.validation >= self.size:
            raise ConfigError(
                f"validation = {config.validation} leaves none of the {self.size:,} training images.",
                code="config",
            )
        return self.size - config.validation

    def shape_of(self, config: VisionConfig) -> tuple[int, int, int]:
        """(channels, rows, columns) of an image."""
        return self.shape

    def classes_of(self, config: VisionConfig) -> int:
        """Number of classes."""
        return self.num_classes

    def several_labels(self, config: VisionConfig) -> bool:
        """Whether an image's label is a row of zeros and ones, one for each class."""
        return False

    def describe(self, asked: Request) -> dict[str, Any]:
        """Also epsilon by each accountant alone, the network's size, and what a run costs."""
        return {**TrainingRecipe.describe(self, asked), **what_it_takes(self, asked)}

    def inputs_each(self, config: VisionConfig) -> int:
        return max(1, config.augmult)

    def holds_out(self, config: VisionConfig) -> bool:
        return config.validation > 0

    def assess(
        self, config: VisionConfig, model: nn.Module, test: Any, kept: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        return assess(kept["logits"], kept["labels"], num_classes=self.classes_of(config))

    def fetch(self, config: VisionConfig, *, report: Callable[[str], None], progress: bool) -> Dataset:
        return load(self.dataset, report=report, progress=progress)

    def prepare(self, config: VisionConfig, fetched: Dataset) -> Material:
        about = {
            "name": fetched.name,
            "source": fetched.source,
            "licence": fetched.licence,
            "sha256": fetched.sha256,
        }
        return self._material(config, fetched.train, fetched.test, about)

    def _material(
        self, config: VisionConfig, train: ArrayPair, test: ArrayPair, about: Mapping[str, Any]
    ) -> Material:
        """Both splits checked, validation rows kept out of training, and features in the pixels' place."""
        here, there = self._checked(train, "train"), self._checked(test, "test")
        scored = {}
        if config.validation:
            kept = len(here[1]) - config.validation
            here, there = (here[0][:kept], here[1][:kept]), (here[0][kept:], here[1][kept:])
            scored = {"scored": "validation rows, NOT private"}
        if config.features == "scattering":
            here, there = (
                (scattering_of(x, name=self.dataset, mirrored=config.mirror), y) for x, y in (here, there)
            )
        return Material(train=here, test=there, about={**about, **scored})

    def reader(self, config: VisionConfig, about: Mapping[str, Any], folder: Path) -> Reader:
        classes = self._class_names(about)
        same = replace(self, num_classes=len(classes))  # so that nobody counts folders of private images
        several = self.several_labels(config)
        channels, side, _ = self.shape_of(config)

        def read(path: Path, watch: Watch) -> Given:
            files = read_image_files(
                path,
                side=side,
                grey=channels == 1,
                class_names=classes,
                several=several,
                on_file=lambda done, total: watch("reading", done, total),
            )
            rows: Any = files
            if config.features == "scattering":
                rows = scattered(np.stack([x for x, _ in files]), mirrored=config.mirror), files.labels
            return given_images(files, rows)

        def load(run: Path, weights: str) -> nn.Module:
            kept, noted = run / NETWORK, (read_result(run, concluded=True) or {}).get("pixels")
            here = {"model": f"transformers:{kept}"} if kept.is_dir() else {}
            model = build_model(same, self.unloaded(config).model_copy(update=here))
            return scaling_as(with_weights(model, run, weights), noted)

        return Reader(
            classes=classes,
            answer="several" if several else "one",
            load=load,
            read=read,
            outputs=outputs_of_inputs,
            batch_size=scored_at_once(self, config),
        )

    def finish(
        self, config: VisionConfig, model: nn.Module, folder: Path, *, console: Console | None
    ) -> dict[str, Any]:
        """What a network of another library is made of."""
        return keep(model, folder)

    def _class_names(self, about: Mapping[str, Any]) -> tuple[str, ...]:
        """Label -> its name: of folders, as the run noted; else the data set's own, or numbers."""
        noted = about["data"].get("classes")
        if isinstance(noted, list):
            return tuple(map(str, noted))
        if self.dataset in names():
            return class_names(self.dataset)
        return tuple(map(str, range(self.num_classes)))

    def begins_with(self, config: VisionConfig) -> Path | None:
        if config.pretrained:
            return folder_of(config.model)
        return None if config.start_from is None else Path(config.start_from)

    def unloaded(self, config: VisionConfig) -> VisionConfig:
        return config.model_copy(update={"start_from": None, "pretrained": False})

    def check(self, config: VisionConfig) -> None:
        if config.batch_norm == "refuse":
            return
        with torch.device("meta"):
            model = self._network(config, pretrained=False)
        if not mixing_layers(model):
            raise ConfigError(
                f"batch_norm = {config.batch_norm} would be ignored: the network has no batch "
                "normalisation. Leave it out.",
                code="config",
            )

    def _network(self, config: VisionConfig, *, pretrained: bool) -> nn.Module:
        return network(
            config.model,
            shape=self._input_shape(config),
            num_classes=self.classes_of(config),
            standardise=self._standardise(config),
            pretrained=pretrained,
            keep_head=not config.reset_head,
            deviation=self.deviation,
        )

    def build(self, config: VisionConfig) -> nn.Module:
        model = self._network(config, pretrained=config.pretrained)
        if config.pretrained and config.reset_head:  # a library keeps its head where the classes are as many
            take_head(model, self._network(config, pretrained=False))
        return start(
            model,
            weights=config.start_from,
            reset_head=config.reset_head,
            train_only=config.train_only,
            batch_norm=config.batch_norm,
        )

    def random_rows(self, config: VisionConfig, num_rows: int) -> Rows:
        generator = torch.Generator().manual_seed(0)
        classes = self.classes_of(config)
        y = (
            torch.randint(2, (num_rows, classes), generator=generator)
            if self.several_labels(config)
            else torch.randint(classes, (num_rows,), generator=generator)
        )
        if config.features == "scattering":
            return torch.rand((num_rows, *self._input_shape(config)), generator=generator).half(), y
        channels, height, width = self.shape_of(config)
        shape = (height, width) if channels == 1 else (height, width, channels)
        views = (config.augmult,) if config.augmult else ()
        x = torch.randint(256, (num_rows, *views, *shape), generator=generator, dtype=torch.uint8)
        return x, y

    def strange_rows(self, config: VisionConfig, num_rows: int) -> Rows:
        x, y = self.random_rows(config, num_rows)
        return at_the_ends(x), y

    def transform(self, config: VisionConfig) -> Views | None:
        if not config.augmult:
            return None
        return Views(
            multiplicity=config.augmult,
            pad=config.crop_pad,
            flip=config.flip,
            colour=config.colour,
            hue=config.hue,
        )

    def loss_per_example(self, config: VisionConfig) -> Callable[[nn.Module, Any], Tensor]:
        def losses(model: nn.Module, rows: Rows) -> Tensor:
            x, y = rows
            return F.cross_entropy(model(x), y, reduction="none", label_smoothing=config.label_smoothing)

        chosen = losses_of_several if self.several_labels(config) else losses
        return mean_over_views(chosen) if config.augmult else chosen

    def scores(self, config: VisionConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        return scores_of_several if self.several_labels(config) else accuracies_and_loss

    def _standardise(self, config: VisionConfig) -> nn.Module | None:
        """What makes features alike in size; None for pixels."""
        if config.features == "none":
            return None
        channels, side, _ = self.shape_of(config)
        return standardiser(config.standardise, channels, side, mirrored=config.mirror)

    def _input_shape(self, config: VisionConfig) -> tuple[int, int, int]:
        if config.features == "none":
            return self.shape_of(config)
        channels, height, width = self.shape_of(config)
        return channels * num_coefficients(scales=2, angles=8), height // 4, width // 4

    def _checked(self, pair: ArrayPair, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Bytes (N, H, W) or (N, H, W, C) and int64 labels (N,).

        Raises:
            DataError[data-empty]: it has no rows.
            DataError[data-shape]: images of another shape or type, or another number of labels.
            DataError[data-labels]: a label is not an integer in the recipe's range.
        """
        x, y = np.asarray(pair.x), np.asarray(pair.y)
        channels, height, width = self.shape
        wanted = (height, width) if channels == 1 else (height, width, channels)
        if len(y) == 0:
            raise DataError(f"The {split} split of '{self.dataset}' is empty.", code="data-empty")
        if x.shape != (len(y), *wanted) or y.ndim != 1 or x.dtype != np.uint8:
            raise DataError(
                f"The {split} split of '{self.dataset}' must have images of bytes of shape {wanted} and one "
                f"label each; got {x.dtype} {x.shape} and {y.shape}.",
                code="data-shape",
            )
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= self.num_classes:
            raise DataError(
                f"Labels of the {split} split of '{self.dataset}' must be integers from 0 to "
                f"{self.num_classes - 1}; some are not.",
                code="data-labels",
            )
        return x, y.astype(np.int64)


def losses_of_several(model: nn.Module, rows: Rows) -> Tensor:
    """Each image's loss, the mean over its labels of the binary cross-entropy: (B,)."""
    x, y_BK = rows
    logits_BK = model(x)
    losses_BK = F.binary_cross_entropy_with_logits(logits_BK, y_BK.to(logits_BK.dtype), reduction="none")
    return losses_BK.mean(1)


def scores_of_several(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """Each image's share of right labels, whether all are right, and its loss, (B,); and `kept`."""
    x, y_BK = rows
    logits_BK = model(x)
    right_BK = ((logits_BK > 0) == (y_BK == 1)).double()
    losses_BK = F.binary_cross_entropy_with_logits(logits_BK, y_BK.to(logits_BK.dtype), reduction="none")
    return {
        "accuracy": right_BK.mean(1),
        "all_right": right_BK.amin(1),
        "loss": losses_BK.mean(1),
        "logits": logits_BK,
        "labels": y_BK,
    }


def accuracies_and_loss(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """Each image's accuracy (0 or 1), whether its class is among the first five, loss, (B,); and `kept`."""
    x, y = rows
    logits = model(x)
    scores = {
        "accuracy": (logits.argmax(1) == y).double(),
        "loss": F.cross_entropy(logits, y, reduction="none"),
        "logits": logits,
        "labels": y,
    }
    if logits.shape[1] > 5:
        scores["top5"] = (logits.topk(5, 1).indices == y[:, None]).any(1).double()
    return scores
