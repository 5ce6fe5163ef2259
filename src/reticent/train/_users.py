"""Users as privacy units: a data set whose items are users, each with up to k rows.

Room: train. May import torch, `reticent.data` and `reticent.errors`.

Shape letters (this file): U users of a physical chunk, K rows of each, R = U * K.

Sources:
    [1] McMahan et al. 2018, arXiv:1710.06963 (users are drawn, and the divisor counts them).
    [2] Charles et al. 2024, arXiv:2407.07737 (one user's rows averaged before clipping; a cap on them).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reticent.data import check_user_names
from reticent.errors import ConfigError, DataError

from ._rows import Rows, count, fetch, leaves, num_rows

ROW_WEIGHTS: Final = "row_weights"  # the key that a dict of rows gains
_CHOICES: Final = ("first", "seeded")
_REDUCTIONS: Final = ("mean", "sum")


class UserRows:
    """A data set of users: item i is user i, with at most `max_rows` of their rows.

    A plan for it has `unit="user"`, and its sampler counts users: `num_examples=len(users)`. The joint
    then draws each user with probability q, clips what all rows of a user give together, and divides by
    the expected number of users [1]. A physical chunk holds whole users, and `physical_batch_size`
    counts them.

    Args:
        dataset: rows, in any form `PrivateStep` takes.
        users: whose each row is; one string or integer for each row.
        max_rows: K >= 1, the most rows of one user that take part; the rest are never used.
        choose: which rows, if a user has more: the "first" of them in the data set's order, or a
            "seeded" choice. Either looks at nothing but the user's own rows.
        reduce: what a user's loss is: the "mean" over their rows [2], or the "sum".
        seed: of the seeded choice. Public.

    Guarantee:
        Which rows of a user take part, and with what weight, does not depend on any other user. So a
        change to one user's rows, however many, changes one item.

    Raises:
        ConfigError[user-rows]: `max_rows`, `choose` or `reduce` is not one of the above.
        DataError[user-column]: `users` has another length than the data set, names nobody for a row, or has
            one name in two spellings (see `reticent.data.check_user_names`).

    Sources:
        [1] McMahan et al. 2018, arXiv:1710.06963.
        [2] Charles et al. 2024, arXiv:2407.07737.
    """

    unit: Final = "user"

    def __init__(
        self,
        dataset: Any,
        users: Sequence[str] | Sequence[int] | np.ndarray | Tensor,
        *,
        max_rows: int,
        choose: Literal["first", "seeded"] = "first",
        reduce: Literal["mean", "sum"] = "mean",
        seed: int = 0,
    ) -> None:
        if not isinstance(max_rows, int) or isinstance(max_rows, bool) or max_rows < 1:
            raise ConfigError(f"max_rows must be a positive integer, got {max_rows!r}.", code="user-rows")
        if choose not in _CHOICES or reduce not in _REDUCTIONS:
            raise ConfigError(
                f"choose must be one of {_CHOICES} and reduce one of {_REDUCTIONS}, got {choose!r} and "
                f"{reduce!r}.",
                code="user-rows",
            )
        self._dataset = dataset
        self.max_rows: int = max_rows
        self.choose, self.reduce = choose, reduce
        rows_of = _rows_of(users, num_rows(dataset))
        self._rows: list[list[int]] = [
            _chosen(user, rows, max_rows, None if choose == "first" else seed)
            for user, rows in rows_of.items()
        ]

    def __len__(self) -> int:
        """Number of users."""
        return len(self._rows)

    def __repr__(self) -> str:  # not the number of users, which may be private
        return f"UserRows(max_rows={self.max_rows}, choose={self.choose!r}, reduce={self.reduce!r})"

    def fetch(self, indices: np.ndarray) -> Rows:
        """The users `indices`: each tensor of rows as (U, K, ...), and weights (U, K) behind them.

        A user with fewer than K rows has copies of their own first row to fill up, of weight zero.
        """
        chosen = [self._rows[int(i)] for i in indices]
        filled = [rows + rows[:1] * (self.max_rows - len(rows)) for rows in chosen]
        rows = fetch(self._dataset, np.asarray(filled, dtype=np.int64).reshape(-1))
        weights = torch.zeros(len(chosen), self.max_rows, dtype=torch.float64)
        for u, mine in enumerate(chosen):
            weights[u, : len(mine)] = 1.0 / len(mine) if self.reduce == "mean" else 1.0
        if isinstance(rows, dict):
            return {name: self._grouped(t) for name, t in rows.items()} | {ROW_WEIGHTS: weights}
        return (*(self._grouped(t) for t in leaves(rows)), weights)

    def _grouped(self, t: Tensor) -> Tensor:
        return t.reshape(-1, self.max_rows, *t.shape[1:])


def over_users(
    loss_per_row: Callable[[nn.Module, Any], Tensor],
) -> Callable[[nn.Module, Any], Float[Tensor, " U"]]:
    """The loss of users, from the loss of single rows: for chunks of a `UserRows`.

    Args:
        loss_per_row: called as `loss_per_row(model, rows)` on rows as the data set under the `UserRows` has
            them (one tensor if it is one); returns one loss for each row, shape (R,).

    Returns:
        A `loss_per_example`: each user's mean (or sum) over their rows. Its gradient is the mean (sum) of
        the rows' gradients, so the rows are put together before anything is clipped.
    """

    def losses(model: nn.Module, chunk: Any) -> Tensor:
        rows, weights = _split(chunk)
        num_users, rows_each = weights.shape
        loss = loss_per_row(model, rows)
        if loss.shape != (num_users * rows_each,):
            raise ConfigError(
                f"The loss of single rows must return one loss for each of {num_users * rows_each} rows, "
                f"got shape {tuple(loss.shape)}.",
                code="loss-shape",
            )
        weighted = loss.view(num_users, rows_each) * weights.to(loss.dtype)
        return torch.where(weights > 0, weighted, torch.zeros_like(weighted)).sum(1)

    return losses


def over_views(
    loss_per_row: Callable[[nn.Module, Any], Tensor],
) -> Callable[[nn.Module, Any], Float[Tensor, " U"]]:
    """The loss of rows in K views each, from the loss of single views: their mean, so K views are one unit.

    Args:
        loss_per_row: called as `loss_per_row(model, rows)`; returns one loss for each row, shape (R,).

    Returns:
        A `loss_per_example` for chunks whose tensors all have shape (B, K, ...): a transform makes them.
    """

    def losses(model: nn.Module, chunk: Any) -> Tensor:
        num_units, views = count(chunk), leaves(chunk)[0].shape[1]
        return loss_per_row(model, _flat(chunk)).view(num_units, views).mean(1)

    return losses


def _split(chunk: Any) -> tuple[Any, Tensor]:
    """Rows in one row of tensors, (R, ...), and weights (U, K)."""
    if isinstance(chunk, dict) and ROW_WEIGHTS in chunk:
        rest = {name: t for name, t in chunk.items() if name != ROW_WEIGHTS}
        return _flat(rest), chunk[ROW_WEIGHTS]
    if isinstance(chunk, tuple) and len(chunk) > 1 and chunk[-1].dim() == 2:
        rest = chunk[:-1]
        return _flat(rest[0] if len(rest) == 1 else rest), chunk[-1]
    raise ConfigError(
        "over_users makes the loss of a UserRows, and the chunk it was given has no weights of rows: train "
        "on the UserRows, and let a transform keep the last tensor.",
        code="user-rows",
    )


def _flat(rows: Any) -> Any:
    if isinstance(rows, Tensor):
        return rows.flatten(0, 1)
    if isinstance(rows, dict):
        return {name: t.flatten(0, 1) for name, t in rows.items()}
    return tuple(t.flatten(0, 1) for t in rows)


def _rows_of(users: Any, size: int) -> dict[str | int, list[int]]:
    """User -> their rows, in the data set's order."""
    listed = users.tolist() if isinstance(users, Tensor | np.ndarray) else list(users)
    if len(listed) != size:
        raise DataError(
            f"There are {len(listed)} names of users for {size} rows: give one for each row.",
            code="user-column",
        )
    found: dict[str | int, list[int]] = {}
    for row, user in enumerate(listed):
        if not isinstance(user, str | int) or isinstance(user, bool) or user == "":
            raise DataError(
                f"Row {row} has no user: a name must be a string that is not empty, or an integer, and this "
                f"one is a {type(user).__name__}. A row that is nobody's has no privacy unit; leave it out "
                "or give it a name of its own.",
                code="user-column",
            )
        found.setdefault(user, []).append(row)
    check_user_names(found)
    return found


def _chosen(user: str | int, rows: list[int], max_rows: int, seed: int | None) -> list[int]:
    """At most `max_rows` of a user's rows, by their order among the user's own rows only."""
    if len(rows) <= max_rows or seed is None:
        return rows[:max_rows]

    def lot(nth: int) -> bytes:
        return hashlib.blake2b(repr((seed, user, nth)).encode(), digest_size=16).digest()

    return [rows[nth] for nth in sorted(sorted(range(len(rows)), key=lot)[:max_rows])]
