"""Recipes on image-like arrays with integer labels.

Room: recipes. May import torch, `reticent.{train,data}` and the floors below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reticent.audit import Inputs
from reticent.data import ArrayPair, Dataset, class_names, load, read_image_files
from reticent.errors import DataError

from ._parts import build_model, scored_at_once
from ._reader import Given, Reader, Watch, given_images, outputs_of_inputs, with_weights
from ._training import Material, TrainingRecipe
from ._training_config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayRecipe(TrainingRecipe):
    """A ready plan with model and data, for arrays of one shape with integer labels.

    Args:
        name: what a person types.
        summary: one line.
        config: its settings, with its defaults.
        dataset: name of the data set.
        size: number of examples in the training set, a public constant.
        row_shape: shape of one row of inputs.
        num_classes: labels are 0 .. num_classes - 1.
        scale: public constant that inputs are divided by.
        make: settings -> model, from torch's global generator.
        strange: what `strange_rows` are.
    """

    name: str
    summary: str
    config: type[TrainingConfig]
    dataset: str
    size: int
    row_shape: tuple[int, ...]
    num_classes: int
    scale: float
    make: Callable[[Any], nn.Module]
    strange: Inputs | None = "out of distribution"

    def num_examples(self, config: TrainingConfig) -> int:
        return self.size

    def fetch(self, config: TrainingConfig, *, report: Callable[[str], None], progress: bool) -> Dataset:
        return load(self.dataset, report=report, progress=progress)

    def prepare(self, config: TrainingConfig, fetched: Dataset) -> Material:
        return Material(
            train=self._tensors(fetched.train, split="train"),
            test=self._tensors(fetched.test, split="test"),
            about={
                "name": fetched.name,
                "source": fetched.source,
                "licence": fetched.licence,
                "sha256": fetched.sha256,
            },
        )

    def build(self, config: TrainingConfig) -> nn.Module:
        return self.make(config)

    def random_rows(self, config: TrainingConfig, num_rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((num_rows, *self.row_shape), generator=generator).mul_(2.0).sub_(1.0)
        return x, torch.randint(self.num_classes, (num_rows,), generator=generator)

    def strange_rows(self, config: TrainingConfig, num_rows: int) -> tuple[Tensor, Tensor]:
        x, y = self.random_rows(config, num_rows)
        return at_the_ends(x), y

    def loss_per_example(self, config: TrainingConfig) -> Callable[[nn.Module, Any], Tensor]:
        return cross_entropy

    def scores(self, config: TrainingConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        return accuracy_and_loss

    def reader(self, config: TrainingConfig, about: Mapping[str, Any], folder: Path) -> Reader:
        classes = class_names(self.dataset)

        def read(path: Path, watch: Watch) -> Given:
            files = read_image_files(
                path,
                side=self.row_shape[0],
                grey=True,
                class_names=classes,
                on_file=lambda done, total: watch("reading", done, total),
            )
            # A pixel of the data set is a whole number up to `scale`, one of a file a byte.
            x = np.rint(np.stack([pixels for pixels, _ in files]) * (self.scale / 255.0))
            rows = TensorDataset(self._scaled(x), torch.from_numpy(files.labels))
            return given_images(files, rows)

        return Reader(
            classes=classes,
            answer="one",
            load=lambda run, weights: with_weights(build_model(self, config), run, weights),
            read=read,
            outputs=outputs_of_inputs,
            batch_size=scored_at_once(self, config),
        )

    def _scaled(self, x: np.ndarray) -> Tensor:
        """Inputs in [-1, 1], float32."""
        return torch.from_numpy(x.astype(np.float32)).div_(self.scale / 2).sub_(1.0)

    def _tensors(self, pair: ArrayPair, *, split: str) -> TensorDataset:
        """Check one split, and make tensors of it: inputs (N, *row) float32 in [-1, 1], labels (N,).

        Raises:
            DataError[data-empty]: it has no rows.
            DataError[data-shape]: rows of another shape, or inputs and labels of different number.
            DataError[data-labels]: a label is not an integer in the recipe's range.
        """
        x, y = np.asarray(pair.x), np.asarray(pair.y)
        if len(y) == 0:
            raise DataError(f"The {split} split of '{self.dataset}' is empty.", code="data-empty")
        if x.shape != (len(y), *self.row_shape) or y.ndim != 1:
            raise DataError(
                f"The {split} split of '{self.dataset}' must have one row of shape {self.row_shape} and one "
                f"label an example; got arrays of shapes {x.shape} and {y.shape}.",
                code="data-shape",
            )
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= self.num_classes:
            raise DataError(
                f"Labels of the {split} split of '{self.dataset}' must be integers from 0 to "
                f"{self.num_classes - 1}; some are not.",
                code="data-labels",
            )
        return TensorDataset(self._scaled(x), torch.from_numpy(y.astype(np.int64)))


def at_the_ends(x: Tensor) -> Tensor:
    """Inputs of the same shape and kind, each entry at the lower or upper end of their range, by chance."""
    upper = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.bool)
    return torch.where(upper, x.max(), x.min())


def cross_entropy(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Each row's cross-entropy, shape (B,)."""
    x, y = rows
    return F.cross_entropy(model(x), y, reduction="none")


def accuracy_and_loss(model: nn.Module, rows: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Each row's accuracy (0 or 1) and cross-entropy, shape (B,)."""
    x, y = rows
    logits = model(x)
    return {
        "accuracy": (logits.argmax(1) == y).double(),
        "loss": F.cross_entropy(logits, y, reduction="none"),
    }
