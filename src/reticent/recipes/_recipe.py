"""What a recipe is: a name, its settings, its public facts about the data, and its model.

Room: recipes. May import torch, `reticent.{plan,train,data}` and the floors below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reticent.data import ArrayPair
from reticent.errors import DataError

from ._config import RecipeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A ready plan with model and data, for image-like arrays with integer labels.

    Args:
        name: what a person types.
        summary: one line.
        config: its settings, with its defaults.
        dataset: name of the data set.
        num_examples: size of the training set, a public constant.
        row_shape: shape of one row of inputs.
        num_classes: labels are 0 .. num_classes - 1.
        scale: public constant that inputs are divided by.
        build: settings -> model, from torch's global generator.
        fallback: recipe to take, loudly, if no source of the data can be reached.
    """

    name: str
    summary: str
    config: type[RecipeConfig]
    dataset: str
    num_examples: int
    row_shape: tuple[int, ...]
    num_classes: int
    scale: float
    build: Callable[[Any], nn.Module]
    fallback: str | None = None


def tensors(recipe: Recipe, pair: ArrayPair, *, split: str) -> TensorDataset:
    """Check one split, and make tensors of it: inputs (N, *row) float32 in [-1, 1], labels (N,).

    Raises:
        DataError[data-empty]: it has no rows.
        DataError[data-shape]: rows of another shape, or inputs and labels of different number.
        DataError[data-labels]: a label is not an integer in the recipe's range.
    """
    x, y = np.asarray(pair.x), np.asarray(pair.y)
    if len(y) == 0:
        raise DataError(f"The {split} split of '{recipe.dataset}' is empty.", code="data-empty")
    if x.shape != (len(y), *recipe.row_shape) or y.ndim != 1:
        raise DataError(
            f"The {split} split of '{recipe.dataset}' must have one row of shape {recipe.row_shape} and one "
            f"label an example; got arrays of shapes {x.shape} and {y.shape}.",
            code="data-shape",
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= recipe.num_classes:
        raise DataError(
            f"Labels of the {split} split of '{recipe.dataset}' must be integers from 0 to "
            f"{recipe.num_classes - 1}; some are not.",
            code="data-labels",
        )
    scaled = torch.from_numpy(x.astype(np.float32)).div_(recipe.scale / 2).sub_(1.0)
    return TensorDataset(scaled, torch.from_numpy(y.astype(np.int64)))


def cross_entropy(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Each row's cross-entropy, shape (B,)."""
    x, y = rows
    return F.cross_entropy(model(x), y, reduction="none")


def scores(model: nn.Module, rows: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Each row's accuracy (0 or 1) and cross-entropy, shape (B,)."""
    x, y = rows
    logits = model(x)
    return {
        "accuracy": (logits.argmax(1) == y).double(),
        "loss": F.cross_entropy(logits, y, reduction="none"),
    }
