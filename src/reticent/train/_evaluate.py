"""Scores of a model on data that the user declares public.

Room: train. May import torch and `reticent.errors`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from reticent.errors import ConfigError

from . import _rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What to measure, on which public data.

    Args:
        dataset: public test data, in any form a training set may have. Its scores are written down and
            shown: nothing protects it.
        scores: called as `scores(model, rows)`; returns name -> one value for each row, shape (B,), e.g.
            `{"accuracy": ..., "loss": ...}`. Each is averaged over the data set.
        kept: names of `scores` that are no scores, such as a row's logits: in place of a mean, all rows'
            values are kept, in order, for whoever needs them together. Shape (B, ...).
        batch_size: rows at once; fewer where memory runs out.
    """

    dataset: Any
    scores: Callable[[nn.Module, Any], Mapping[str, Tensor]]
    batch_size: int = 1024
    kept: Collection[str] = ()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Measured:
    """What one pass over the data set gave.

    Args:
        means: name -> mean score.
        kept: name -> all rows' values, as `Evaluation.kept` asks for them; on the CPU.
    """

    means: Mapping[str, float]
    kept: Mapping[str, Tensor]


@torch.no_grad()
def evaluate(model: nn.Module, evaluation: Evaluation, *, halve: bool = True) -> Measured:
    """Score the data set in eval mode; leaves the model as it was.

    Args:
        model: scored on the device where its parameters are.
        evaluation: what to measure, on which data.
        halve: whether fewer rows at once are tried where memory runs out; not where others take part in
            every pass, who would still be in the one that failed.
    """

    def measured(rows: _rows.Rows) -> dict[str, float | Tensor]:
        found = evaluation.scores(model, rows)
        return {
            name: values.cpu() if name in evaluation.kept else float(values.double().sum())
            for name, values in found.items()
        }

    sums: dict[str, float] = {}
    kept: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device
    with eval_mode(model):
        for found in in_chunks(
            evaluation.dataset, measured, size=evaluation.batch_size, device=device, halve=halve
        ):
            for name, value in found.items():
                if isinstance(value, Tensor):
                    kept.setdefault(name, []).append(value)
                else:
                    sums[name] = sums.get(name, 0.0) + value
    num_rows = _rows.num_rows(evaluation.dataset)
    return Measured(
        means={name: total / num_rows for name, total in sums.items()},
        kept={name: torch.cat(values) for name, values in kept.items()},
    )


def in_chunks(
    dataset: Any, act: Callable[[_rows.Rows], T], *, size: int, device: torch.device, halve: bool = True
) -> Iterator[T]:
    """What `act` makes of a data set's rows on `device`, in order, at most `size` at a time.

    Where memory runs out, the rows that did not fit come again in halves, and no more at once from there on.

    Raises:
        OutOfMemoryError: not even one row fits, or `halve` is off.
    """
    assert size >= 1, "rows at once"
    start, num_rows = 0, _rows.num_rows(dataset)
    while start < num_rows:
        indices = np.arange(start, min(start + size, num_rows))
        try:
            found = act(_rows.move(_rows.fetch(dataset, indices), device))
        except torch.OutOfMemoryError:
            if len(indices) < 2 or not halve:
                raise
        else:
            yield found
            start += len(indices)
            continue
        size = len(indices) // 2  # outside the handler, which would keep the failed pass's tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def check_scores(model: nn.Module, evaluation: Evaluation) -> None:
    """Score the first rows, as many as later, so that a mistake in `scores` shows before anything is spent.

    So does memory that not even one row fits in.

    Raises:
        DataError[data-rows]: the data set has no rows that can be read.
        ConfigError[scores]: a score is no tensor of one value for each row.
        OutOfMemoryError: one row does not fit in memory.
    """

    def check(rows: _rows.Rows) -> None:
        size = _rows.count(rows)
        for name, values in evaluation.scores(model, rows).items():
            if not isinstance(values, Tensor) or tuple(values.shape[:1]) != (size,):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ConfigError(
                    f"Evaluation.scores gave {got} for '{name}' of {size} rows: return a tensor of one value "
                    "for each row, shape (B,).",
                    code="scores",
                )

    device = next(model.parameters()).device
    with eval_mode(model):
        next(in_chunks(evaluation.dataset, check, size=evaluation.batch_size, device=device), None)


@contextmanager
def eval_mode(model: nn.Module):
    """Every module in eval mode; afterwards each in the mode it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
