"""Clipped sums one unit at a time, through plain autograd: slow, and exact for any model.

Room: clip. May import torch, `reticent.rules`, `reticent.errors`.

Shape letters (this file): U unit, L groups.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reticent.clip._batch import num_rows, rows
from reticent.clip._groups import Group
from reticent.clip._guards import State, check_losses, checked_units
from reticent.clip._held import Held
from reticent.clip._passes import round_up
from reticent.clip._sums import sum_dtype
from reticent.errors import ConfigError


def loop_norms(
    held: Held,
    params: Mapping[str, nn.Parameter],
    groups: Sequence[Group],
    losses: Callable[..., Tensor],
    batch: Any,
    num_units: int | None,
    total: Mapping[str, Tensor],
) -> Tensor:
    """Add each unit's clipped gradient to `total`; returns norms, (U, L), float64, rounded up.

    Where processes hold parts of the parameters, all of them run the same units, and `total` is those parts.
    """
    if batch is None:
        raise ConfigError("method='loop' needs `batch`, to run each unit alone.", code="loop-needs-batch")
    size = num_rows(batch)
    units = size if num_units is None else checked_units(size, num_units)
    slack, norms = round_up({sum_dtype(p) for p in params.values()}), []
    before = State(held, params)
    for unit in range(units):
        k = size // units
        loss = losses(rows(batch, unit * k, (unit + 1) * k))
        check_losses(loss, k if num_units is None else None)
        finite = bool(torch.isfinite(loss).all())
        grads = held.common_gradients(loss)
        norms.append([_add_one(held, group, grads, finite, slack, total) for group in groups])
    before.refuse_changes(params)
    return torch.tensor(norms, dtype=torch.float64).reshape(units, len(groups))


def _add_one(
    held: Held,
    group: Group,
    grads: Mapping[str, Tensor],
    finite: bool,
    slack: float,
    total: Mapping[str, Tensor],
) -> float:
    mine = {name: grads[name] for name in group.names if name in grads}
    square = held.square({name: float(g.double().square().sum()) for name, g in mine.items()})
    norm = math.sqrt(square) * (1 + slack) if finite and math.isfinite(square) else math.inf
    if math.isfinite(norm):
        weight = float(group.weights(torch.tensor([norm], dtype=torch.float64))[0])
        for name, grad in mine.items():
            total[name].add_(grad.to(total[name].dtype), alpha=weight)
    return norm
