"""Logical batches: what one private step sees of the data, before it is cut to fit in memory.

Room: plan. May import NumPy, `reticent.sample` and `reticent.errors`.
"""

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from reticent.errors import DataError
from reticent.sample import Sampler

_NEXT_FOR_DAMAGED: Final = ("timm.data.dataset", "ImageDataset")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LogicalBatch:
    """All examples of one step; possibly none, which is a step like any other.

    Args:
        step: number of the step, from 0.
        indices: rows of `dataset` that take part, shape (B,), sorted and distinct. Secret.
        dataset: the data set that `Plan.batches` was given.
        expected_batch_size: what the noised sum is divided by; never the realised B.
        sampler: what drew it: the description that the accountant knows.
        private: whether the draw is secret; False from a reproducible stream.
    """

    step: int
    indices: npt.NDArray[np.int64] = field(repr=False)
    dataset: object = field(repr=False)
    expected_batch_size: float
    sampler: Sampler = field(repr=False)
    private: bool = field(repr=False)


def num_rows(dataset: object) -> int:
    """Number of examples: the length, or the common length of a tuple, list or dict of arrays.

    Raises:
        DataError[data-rows]: the data set has no length, is a stream, a loader or timm's, or its
            arrays differ in length.
    """
    parts = _arrays_of(dataset)
    if not all(isinstance(part, Sized) for part in parts):
        raise DataError(
            f"A {type(dataset).__name__} has no length, so its examples cannot be drawn at random. Give "
            "arrays or a map-style data set.",
            code="data-rows",
        )
    if any(kind.__name__ == "IterableDataset" for part in parts for kind in type(part).__mro__):
        raise DataError(
            f"A {type(dataset).__name__} is a stream: its length is known, but no example can be taken by "
            "its index, so none can be drawn at random. Give arrays or a map-style data set.",
            code="data-rows",
        )
    if any(kind.__name__.startswith("DataLoader") for part in parts for kind in type(part).__mro__):
        raise DataError(
            f"A {type(dataset).__name__} hands out batches of its own, in an order of its own: examples are "
            "drawn by the plan. Give the data set itself, its `.dataset`.",
            code="data-rows",
        )
    if any(
        (kind.__module__, kind.__name__) == _NEXT_FOR_DAMAGED for part in parts for kind in type(part).__mro__
    ):
        raise DataError(
            "timm's ImageDataset hands out the next image in place of one that cannot be read, and that "
            "image would count twice. Give a data set that raises, e.g. torchvision's ImageFolder.",
            code="data-rows",
        )
    lengths = {len(part) for part in parts if isinstance(part, Sized)}
    if len(lengths) > 1:
        raise DataError(
            f"The data set's arrays have different lengths: {sorted(lengths)}. Row i of each must be "
            "example i.",
            code="data-rows",
        )
    return lengths.pop() if lengths else 0


def _arrays_of(dataset: object) -> list[object]:
    if isinstance(dataset, Mapping):
        return list(dataset.values())
    if isinstance(dataset, tuple | list) and all(hasattr(part, "shape") for part in dataset):
        return list(dataset)
    return [dataset]
