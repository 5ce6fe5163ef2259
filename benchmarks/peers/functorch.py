"""`torch.func`: vmap of grad, then clip and sum. What one writes without a library.

Shape letters: B examples.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.work import Work


class _Losses(nn.Module):
    """The work's losses as a module's forward, so that its parameters can be swapped."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model = work.model
        self._losses = work.losses

    def forward(self, batch: Any) -> Tensor:
        return self._losses(batch)


def one_loss(work: Work) -> Callable[..., Tensor]:
    """(name -> parameter, one example's tensors without the example axis) -> its loss."""
    module = _Losses(work)

    def loss(params: dict[str, Tensor], *row: Tensor) -> Tensor:
        batch = tuple(t[None] for t in row)
        named = {f"model.{n}": p for n, p in params.items()}
        return functional_call(module, named, (batch if isinstance(work.batch, tuple) else batch[0],)).sum()

    return loss


def tensors(work: Work) -> tuple[Tensor, ...]:
    """The batch as a tuple."""
    return work.batch if isinstance(work.batch, tuple) else (work.batch,)


def per_example(work: Work, max_norm: float) -> Callable[[], dict[str, Tensor]]:
    """All examples' gradients at once, (B, *shape) for each parameter."""
    batch = tensors(work)
    gradients = vmap(grad(one_loss(work)), in_dims=(None, *(0 for _ in batch)))

    def step() -> dict[str, Tensor]:
        params = {n: p.detach() for n, p in work.trainable().items()}
        grads = gradients(params, *batch)
        norm_B = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        weight_B = (max_norm / norm_B).clamp(max=1.0)
        return {n: torch.tensordot(weight_B, g, 1) for n, g in grads.items()}

    return step
