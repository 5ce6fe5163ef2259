"""Scores of a model on data that the user declares public.

Room: train. May import torch and `reticent.errors`.
"""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reticent.errors import ConfigError

from . import _rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What to measure, on which public data.

    Args:
        dataset: public test data, in any form a training set may have. Its scores are written down and
            shown: nothing protects it.
        scores: called as `scores(model, rows)`; returns name -> one value for each row, shape (B,), e.g.
            `{"accuracy": ..., "loss": ...}`. Each is averaged over the data set.
        batch_size: rows at once.
    """

    dataset: Any
    scores: Callable[[nn.Module, Any], Mapping[str, Tensor]]
    batch_size: int = 1024


@torch.no_grad()
def evaluate(model: nn.Module, evaluation: Evaluation) -> dict[str, float]:
    """Mean of each score over the data set, in eval mode; leaves the model as it was."""
    sums: dict[str, float] = {}
    num_rows = _rows.num_rows(evaluation.dataset)
    device = next(model.parameters()).device
    with eval_mode(model):
        for start in range(0, num_rows, evaluation.batch_size):
            indices = np.arange(start, min(start + evaluation.batch_size, num_rows))
            rows = _rows.move(_rows.fetch(evaluation.dataset, indices), device)
            for name, values in evaluation.scores(model, rows).items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
    return {name: total / num_rows for name, total in sums.items()}


@torch.no_grad()
def check_scores(model: nn.Module, evaluation: Evaluation) -> None:
    """Score a row or two, so that a mistake in `scores` shows before anything is spent.

    Raises:
        DataError[data-rows]: the data set has no rows that can be read.
        ConfigError[scores]: a score is no tensor of one value for each row.
    """
    size = min(2, _rows.num_rows(evaluation.dataset))
    if size == 0:
        return
    device = next(model.parameters()).device
    with eval_mode(model):
        rows = _rows.move(_rows.fetch(evaluation.dataset, np.arange(size)), device)
        for name, values in evaluation.scores(model, rows).items():
            if not isinstance(values, Tensor) or tuple(values.shape[:1]) != (size,):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise ConfigError(
                    f"Evaluation.scores gave {got} for '{name}' of {size} rows: return a tensor of one value "
                    "for each row, shape (B,).",
                    code="scores",
                )


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
