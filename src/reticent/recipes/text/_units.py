"""Rows as the privacy units of a plan: each row by itself, or a user's rows together.

Room: recipes.text. Imports torch and `reticent.train`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from reticent.plan import ROW
from reticent.train import UserRows, over_users

from ._text_config import TextConfig


def unit_of(config: TextConfig) -> str:
    """Whom epsilon speaks of, and what is counted and drawn."""
    return ROW if config.user_column is None else UserRows.unit


def as_units(rows: tuple[Tensor, ...], users: Sequence[Any] | None, config: TextConfig) -> Any:
    """A data set of rows; with `users`, one of users: a choice among a user's own rows by the public seed."""
    dataset = TensorDataset(*rows)
    if users is None:
        return dataset
    return UserRows(dataset, users, max_rows=config.rows_each, choose="seeded", seed=config.seed)


def made_up_units(rows: tuple[Tensor, ...], config: TextConfig) -> Any:
    """A chunk of made-up rows; with users, every `rows_each` of them in a row are one's."""
    if config.user_column is None:
        return rows
    users = [k // config.rows_each for k in range(len(rows[0]))]
    made: UserRows = as_units(rows, users, config)
    return made.fetch(np.arange(len(made)))


def losses_of_units(
    losses: Callable[[nn.Module, Any], Tensor], config: TextConfig
) -> Callable[[nn.Module, Any], Tensor]:
    """Each unit's loss, from the loss of rows: of a user, the mean over the rows that take part."""
    return losses if config.user_column is None else over_users(losses)
