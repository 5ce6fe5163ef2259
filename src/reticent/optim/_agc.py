"""Adaptive gradient clipping: no unit's gradient is large beside its weights.

Room: optim. May import torch and `reticent.errors`.

Sources:
    [1] Brock, De, Smith, Simonyan 2021, arXiv:2102.06171 (section 4: units are output rows).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reticent.errors import ConfigError


def clip_units(optimizer: Optimizer, ratio: float, *, least: float = 1e-3) -> Optimizer:
    """Before each of the optimizer's steps, shrink gradients that are large beside their weights [1].

        g_i = g_i min(1, ratio max(||w_i||, least) / ||g_i||)

    for each row i along a parameter's first axis: an output channel, a unit. A parameter of one axis is one
    row. This is not what bounds an example's influence: it sees the noised gradient and the weights, and is
    post-processing.

    Args:
        optimizer: it is changed, and returned.
        ratio: largest norm of a row's gradient, of that of its weights; finite, > 0.
        least: norm that weights at least count with, so that those at zero can move; finite, > 0.

    Raises:
        ConfigError[optimizer-settings]: `ratio` or `least` is out of range.
    """
    for name, value in (("ratio", ratio), ("least", least)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be finite and > 0, got {value!r}.", code="optimizer-settings")

    @torch.no_grad()
    def shrink(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    allowed = _row_norms(w).clamp_min(least) * ratio
                    w.grad.mul_((allowed / _row_norms(w.grad).clamp_min(1e-30)).clamp_max(1.0))

    optimizer.register_step_pre_hook(shrink)
    return optimizer


def _row_norms(t: Tensor) -> Tensor:
    """Of each row along the first axis, in a shape that broadcasts over `t`."""
    axes = tuple(range(1, t.ndim)) if t.ndim > 1 else None
    return torch.linalg.vector_norm(t, dim=axes, keepdim=True)
