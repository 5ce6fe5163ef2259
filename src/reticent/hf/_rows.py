"""A data set behind a collator, row by row: what becomes of one row depends on no other.

Room: hf. May import torch and `reticent.{train,errors}`.

A `DataLoader` hands a collator whole batches, which it pads to their longest row and whose random masks
it draws one after the other: there, one row changes others, and its influence has no bound.
"""

import copy
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from reticent.errors import ConfigError, DataError
from reticent.train import mix_seed

_MULTIPLE: Final = "pad_to_multiple_of"
_NUM_NAMED: Final = 3


class CollatedRows:
    """Rows of a map-style data set, each collated alone, from draws of its own.

    Args:
        dataset: has a length and items by index.
        collate: turns a list of one item into tensors by name, of one row each.
        seed: public seed of what `collate` draws (torch, numpy, random). The n-th time that row i is
            fetched it draws from (seed, i, n), whatever is drawn for other rows.
        problem: what is wrong with a collated row, in words that tell nothing of it; None: nothing is.

    Guarantee:
        What `fetch` returns for a row is a function of the row, its index, how often it was fetched, and
        the seed.
    """

    unit: Final = "example"

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        *,
        seed: int,
        problem: Callable[[Mapping[str, Tensor]], str | None] = lambda row: None,
    ) -> None:
        self._dataset, self._collate, self._seed, self._problem = dataset, collate, seed, problem
        self._fetched: dict[int, int] = {}
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._dataset)

    def __repr__(self) -> str:  # not the number of rows, which may be private
        return "CollatedRows()"

    def fetch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The rows `indices`, the tensors of each under one another.

        Raises:
            DataError[trainer-rows]: a row that is no dict of tensors of one row, or of another shape
                than others.
        """
        rows = [self._row(int(i)) for i in indices]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def check(self) -> bytes:
        """Collate every row once, so that no row stops the run in the middle of it.

        Returns:
            A digest of all of them, in their order. It is private.

        Raises:
            DataError[trainer-rows]: as `fetch`; or there is a `problem` with rows, of which it says how many
                they are and the numbers of the first.
        """
        found: dict[str, list[int]] = {}
        digest = hashlib.sha256()
        for index in range(len(self)):
            row = self._row(index)
            wrong = self._problem(row)
            if wrong is not None:
                found.setdefault(wrong, []).append(index)
            for name in sorted(row):
                raw = row[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(raw.numpy().data)
        self._fetched.clear()
        if found:
            raise DataError(
                "Rows of train_dataset would stop the run in the middle: "
                + "; ".join(f"{_numbers(rows)} {wrong}" for wrong, rows in found.items())
                + ".",
                code="trainer-rows",
            )
        return digest.digest()

    def _row(self, index: int) -> dict[str, Tensor]:
        times = self._fetched[index] = self._fetched.get(index, -1) + 1
        with _own_draws(mix_seed(self._seed, "collate", index, times)):
            made = self._collate([self._dataset[index]])
        row = {name: t for name, t in dict(made).items() if t is not None}
        if not row or not all(isinstance(t, Tensor) and t.dim() and len(t) == 1 for t in row.values()):
            raise DataError(
                "The collator must turn a list of one row into tensors whose first axis has length 1, by "
                "name. "
                "Tokenise the data set first, and leave text columns out.",
                code="trainer-rows",
            )
        shapes = {name: (t.shape, t.dtype) for name, t in row.items()}
        if self._shapes is None:
            self._shapes = shapes
        if {name: t.dtype for name, t in row.items()} != {
            name: kind for name, (_, kind) in self._shapes.items()
        }:
            raise DataError(
                "The collator gives rows names or types of number of their own, and one row would change "
                "what the others are made of. Give every row the same columns, of one type each.",
                code="trainer-rows",
            )
        if shapes != self._shapes:
            raise DataError(
                "The collator pads rows to different lengths, which would let the longest row of a batch "
                "change "
                "what becomes of the others. Set PrivacyArguments(max_length=...) to pad every row to it "
                "(longer "
                "ones must be cut by the tokenizer: truncation=True, max_length=...), or pad all rows alike "
                'in the tokenizer: padding="max_length".',
                code="trainer-rows",
            )
        return row


def fixed_length(collator: Any, max_length: int | None) -> Any:
    """The collator, or a copy that pads every row to `max_length`.

    Raises:
        ConfigError[trainer-rows]: it has no setting for that, or a random generator of its own.
    """
    if getattr(collator, "seed", None) is not None:
        raise ConfigError(
            f"{type(collator).__name__}(seed=...) draws for one row after the other, so that one row "
            f"changes what "
            "becomes of the next. Leave it out: rows draw from TrainingArguments(seed=...), each for itself.",
            code="trainer-rows",
        )
    if max_length is None:
        return collator
    if not hasattr(collator, _MULTIPLE):
        raise ConfigError(
            f"max_length is read by collators that have {_MULTIPLE}, and {type(collator).__name__} has "
            f"not: leave "
            "max_length out and let the collator, or the tokenizer, pad all rows alike.",
            code="trainer-rows",
        )
    padding = copy.copy(collator)
    setattr(padding, _MULTIPLE, max_length)
    return padding


def _numbers(rows: list[int]) -> str:
    first = ", ".join(map(str, rows[:_NUM_NAMED])) + (", ..." if len(rows) > _NUM_NAMED else "")
    return f"{len(rows)} of them (number {first})"


@contextmanager
def _own_draws(seed: int) -> Iterator[None]:
    """Public generators seeded for a block, and afterwards as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
