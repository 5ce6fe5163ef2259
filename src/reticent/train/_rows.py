"""Rows of a data set by index, as one physical batch: where private data enters the joint.

Room: train. May import torch and `reticent.errors`.

A physical batch is a tensor, or a tuple or dict of tensors, with the example axis first.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from reticent.errors import CoupledExamples, DataError

Rows: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Transform: TypeAlias = Callable[[Any, torch.Generator], Any]


@runtime_checkable
class Units(Protocol):
    """A data set whose items are privacy units of several rows, `UserRows` for one."""

    @property
    def unit(self) -> str:
        """What one item is, as a plan names it."""
        ...

    def fetch(self, indices: np.ndarray) -> Rows:
        """The units `indices` as tensors, the units' axis first."""
        ...


def fetch(dataset: Any, indices: np.ndarray) -> Rows:
    """Return the rows `indices` of `dataset` as tensors, example axis first.

    Args:
        dataset: a tensor or numpy array; a tuple, list or dict of them; a `TensorDataset`; or a
            map-style `torch.utils.data.Dataset`, whose rows go through `default_collate`; or `Units`.
            Arrays may be memory-mapped. Rows of a `Dataset` are taken one at a time, never with
            `__getitems__`: a transform of many rows at once could let one change another. A table of
            Hugging Face's `datasets` in the format "torch", which has no transform, is read together.
        indices: shape (B,), B > 0, integers.

    Returns:
        A tensor, or a tuple or dict of tensors, each with B rows.

    Raises:
        DataError[data-rows]: the data set is none of these, or its rows do not collate to tensors.
    """
    if isinstance(dataset, Units):
        return dataset.fetch(indices)
    if isinstance(dataset, TensorDataset):
        return tuple(_pick(t, indices) for t in dataset.tensors)
    if isinstance(dataset, Tensor | np.ndarray):
        return _pick(dataset, indices)
    if isinstance(dataset, tuple | list) and all(isinstance(a, Tensor | np.ndarray) for a in dataset):
        return tuple(_pick(a, indices) for a in dataset)
    if isinstance(dataset, Mapping):
        return {name: _pick(array, indices) for name, array in dataset.items()}
    together = _of_table(dataset, indices)
    if together is not None:
        return together
    if hasattr(dataset, "__getitem__"):
        return _as_rows(default_collate([dataset[int(i)] for i in indices]))
    raise DataError(
        f"Cannot take rows from a {type(dataset).__name__}. Give tensors or numpy arrays (alone, in a "
        "tuple or in a dict) or a map-style Dataset; a stream cannot be sampled by Poisson.",
        code="data-rows",
    )


def num_rows(dataset: Any) -> int:
    """Number of rows of a data set in any form that `fetch` takes."""
    if isinstance(dataset, Mapping):
        return len(next(iter(dataset.values())))
    if isinstance(dataset, tuple | list) and all(isinstance(a, Tensor | np.ndarray) for a in dataset):
        return len(dataset[0])
    return len(dataset)


def count(rows: Rows) -> int:
    """Number of examples in a physical batch."""
    return len(leaves(rows)[0])


def leaves(rows: Rows) -> tuple[Tensor, ...]:
    """The tensors of a physical batch, in order."""
    if isinstance(rows, Tensor):
        return (rows,)
    return tuple(rows.values()) if isinstance(rows, dict) else rows


def move(rows: Rows, device: torch.device) -> Rows:
    """The same rows on `device`."""
    return _map(rows, lambda t: t.to(device))


def augment(rows: Rows, transform: Transform, generator: torch.Generator) -> Rows:
    """Apply a user's transform; as many rows must come out as went in.

    Raises:
        DataError[data-rows]: the transform changed the number of rows, or returned no tensors.
    """
    out = _as_rows(transform(rows, generator))
    if any(len(t) != count(rows) for t in leaves(out)):
        raise DataError(
            f"The transform was given {count(rows)} rows and returned "
            f"{[len(t) for t in leaves(out)]}: it must return one row for each row.",
            code="data-rows",
        )
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Seal:
    """What a physical batch was when it was handed out, to tell whether it was changed since.

    Args:
        names: of a dict's items.
        tensors: the very tensors.
        states: of each, shape, number of writes that torch counted, and the sum of each row's bits.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    states: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, rows: Rows) -> "Seal":
        """The seal of rows as they are now."""
        tensors = leaves(rows)
        return cls(tuple(rows) if isinstance(rows, dict) else (), tensors, tuple(map(_state, tensors)))

    def holds_for(self, rows: Rows) -> bool:
        """Whether these rows are unchanged."""
        now = leaves(rows)
        same = len(now) == len(self.tensors) and all(map(operator.is_, now, self.tensors))
        names = tuple(rows) if isinstance(rows, dict) else ()
        return same and names == self.names and tuple(map(_state, self.tensors)) == self.states


_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _state(t: Tensor) -> tuple[Any, ...]:
    bits = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
    as_integers = bits.contiguous().view(_INTEGERS[bits.element_size()])
    of_rows = as_integers.flatten(1).sum(1, dtype=torch.int64) if as_integers.ndim > 1 else as_integers
    return tuple(t.shape), t._version, tuple(of_rows.tolist())


def refuse_mixing(rows: Rows, transform: Transform, *, seed: int) -> None:
    """Refuse a transform in which one row changes what becomes of another.

    Each row in turn is replaced by a copy of its neighbour, under the same random draws: every
    other row must come out bit for bit the same.

    Raises:
        CoupledExamples[mixing-transform]: another row changed.
    """

    def run(given: Rows) -> Rows:
        return augment(given, transform, torch.Generator().manual_seed(seed))

    num_rows = count(rows)
    expected = run(rows)
    for replaced in range(num_rows):
        order = list(range(num_rows))
        order[replaced] = (replaced + 1) % num_rows
        rest = [i for i in range(num_rows) if i != replaced]
        seen = run(_map(rows, lambda t, order=order: t[order]))
        for a, b in zip(leaves(expected), leaves(seen), strict=True):
            if not torch.equal(torch.nan_to_num(a[rest]), torch.nan_to_num(b[rest])):
                raise CoupledExamples(
                    "The transform lets one example change another (as mixup, batch statistics or a "
                    "draw that depends on the data do), so one example's influence has no bound. "
                    "Transform each row by itself, and draw as much randomness for every row.",
                    code="mixing-transform",
                )


def _of_table(dataset: Any, indices: np.ndarray) -> Rows | None:
    """Rows of a table of `datasets`, which makes tensors of each by itself; None for anything else."""
    kind = type(dataset)
    known = (kind.__module__, kind.__qualname__) == ("datasets.arrow_dataset", "Dataset")
    if not known or dataset.format["type"] != "torch":
        return None
    together = dataset[[int(i) for i in indices]]
    return together if all(isinstance(column, Tensor) for column in together.values()) else None


def _pick(array: Tensor | np.ndarray, indices: np.ndarray) -> Tensor:
    if isinstance(array, Tensor):
        return array[torch.from_numpy(indices).to(array.device)]
    return torch.from_numpy(np.ascontiguousarray(array[indices]))


def _map(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    if isinstance(rows, Tensor):
        return change(rows)
    if isinstance(rows, dict):
        return {name: change(t) for name, t in rows.items()}
    return tuple(change(t) for t in rows)


def _as_rows(value: Any) -> Rows:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) and value and all(isinstance(t, Tensor) for t in value.values()):
        return dict(value)
    if isinstance(value, tuple | list) and value and all(isinstance(t, Tensor) for t in value):
        return tuple(value)
    raise DataError(
        f"A batch of rows came out as {type(value).__name__}, not as tensors. Let each item of the data "
        "set be a tensor, a number, or a flat tuple or dict of them.",
        code="data-rows",
    )


def chunks_of(dataset: Any, indices: np.ndarray, *, size: int, device: torch.device) -> Iterator[Rows]:
    """The rows `indices` on `device`, at most `size` at a time, in order."""
    for start in range(0, len(indices), size):
        yield move(fetch(dataset, indices[start : start + size]), device)
