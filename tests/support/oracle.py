"""Algorithm 1 of DP-SGD, one privacy unit at a time, by plain autograd: the judge of every engine.

Imports torch and nothing of ours, so that it can share no mistake with what it judges. It is slow on
purpose. It touches the model's `.grad` while it runs (activation checkpointing with
`use_reentrant=True` works with nothing else) and puts back what was there.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Batch: TypeAlias = Any  # a tensor, or a tuple, list or dict of batches
Losses: TypeAlias = Callable[[Batch], Tensor]


def num_rows(batch: Batch) -> int:
    """The length of the example axis of a batch's first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    parts = list(batch.values()) if isinstance(batch, dict) else list(batch)
    return num_rows(parts[0])


def take_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """The same batch, holding only the chosen rows of every tensor in it."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {key: take_rows(part, rows) for key, part in batch.items()}
    return type(batch)(take_rows(part, rows) for part in batch)


def without_row(batch: Batch, row: int) -> Batch:
    """The neighbouring batch: one row removed."""
    return take_rows(batch, torch.tensor([r for r in range(num_rows(batch)) if r != row], dtype=torch.int64))


def unit_gradient(model: nn.Module, losses: Losses, rows: Batch) -> dict[str, Tensor]:
    """Float64 gradient of the sum of `losses(rows)`, for every trainable parameter."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.grad for name, p in params.items()}
    try:
        for p in params.values():
            p.grad = None
        loss = losses(rows).sum()
        if loss.requires_grad:
            loss.backward()
        return {name: _dense_float64(p.grad, like=p) for name, p in params.items()}
    finally:
        for name, p in params.items():
            p.grad = kept[name]


def norm_of(grads: dict[str, Tensor]) -> Tensor:
    """L2 norm over all tensors together, scaled so that no square overflows; NaN or inf if any entry is."""
    largest = max((g.abs().max().item() for g in grads.values() if g.numel()), default=0.0)
    if any(not bool(g.isfinite().all()) for g in grads.values()):
        return torch.tensor(torch.inf, dtype=torch.float64)
    if largest == 0.0:
        return torch.tensor(0.0, dtype=torch.float64)
    squares = [(g / largest).square().sum() for g in grads.values()]
    return largest * torch.stack(squares).sum().sqrt()


def loop_clipped_sum(
    model: nn.Module, losses: Losses, batch: Batch, max_norm: float, num_units: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum over units of each unit's gradient scaled to L2 norm at most `max_norm` [1].

    Args:
        model: read only; its trainable parameters are those the result names.
        losses: rows of `batch` -> their losses; a unit's loss is the sum of what it returns.
        batch: tensors with the example axis first; unit u owns contiguous rows.
        max_norm: the clipping norm C.
        num_units: number of units, each of rows / num_units rows; every row is a unit if None.

    Returns:
        Parameter name -> float64 sum; and the norms before clipping, (units,), float64. A unit whose
        gradient is not finite adds nothing and has norm inf.
    """
    rows = num_rows(batch)
    units = rows if num_units is None else num_units
    size = rows // max(units, 1)
    assert units * size == rows, f"{rows} rows are not {units} equal units"
    slices = (slice(unit * size, (unit + 1) * size) for unit in range(units))
    return _clip_and_add(model, (unit_gradient(model, losses, take_rows(batch, s)) for s in slices), max_norm)


def loop_clipped_sum_of_views(
    model: nn.Module, batch: tuple[Tensor, Tensor], max_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The same for images in K views, one view at a time: an image's gradient is the average of its views'.

    Args:
        model: a classifier; no view meets another in it.
        batch: views (B, K, ...) and labels (B,).
        max_norm: the clipping norm C, of an image.
    """
    return _clip_and_add(
        model, (_mean_gradient(model, x_K, y) for x_K, y in zip(*batch, strict=True)), max_norm
    )


def _mean_gradient(model: nn.Module, x_K: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The average of K gradients, each of one view's cross-entropy."""

    def loss(view: Tensor) -> Tensor:
        return -torch.log_softmax(model(view), dim=1)[0, int(y)]

    mean: dict[str, Tensor] = {}
    for view in x_K:  # one after another: K gradients of a large network would not fit
        for name, grad in unit_gradient(model, loss, view[None]).items():
            mean[name] = mean.get(name, 0.0) + grad / len(x_K)
    return mean


def _clip_and_add(
    model: nn.Module, units: Iterable[dict[str, Tensor]], max_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    total = {
        n: torch.zeros_like(p, dtype=torch.float64) for n, p in model.named_parameters() if p.requires_grad
    }
    total = {name: t.detach() for name, t in total.items()}
    norms = []
    for grads in units:
        norm = norm_of(grads)
        norms.append(norm)
        if torch.isfinite(norm):
            for name, grad in grads.items():
                total[name] += grad / max(1.0, norm.item() / max_norm)
    return total, torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """L2 distance of two sums, over all parameters together, in float64."""
    assert left.keys() == right.keys(), sorted(left.keys() ^ right.keys())
    squares = [(left[name].double() - right[name].double()).square().sum() for name in left]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _dense_float64(grad: Tensor | None, *, like: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(like, dtype=torch.float64).detach()
    return (grad.to_dense() if grad.is_sparse else grad).detach().double()
