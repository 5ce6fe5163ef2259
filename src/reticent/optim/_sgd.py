"""Gradient descent with decoupled weight decay.

Room: optim. May import torch and `reticent.errors`.

Sources:
    [1] Loshchilov, Hutter 2017, arXiv:1711.05101 (Algorithm 1: the decay is no part of the momentum).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from reticent.errors import ConfigError


def decayed_sgd(
    params: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """torch's SGD, before each of whose steps the weights shrink by a share of their own [1].

        m = momentum m + g
        w = w - lr weight_decay w - lr m

    With Nesterov's momentum g + momentum m takes the place of m in the last line.

    torch's own `weight_decay` adds to g instead, and so to the momentum; without momentum both are the same.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; finite, >= 0.
        momentum: in [0, 1).
        nesterov: whether it is Nesterov's; momentum must then be above 0.
        weight_decay: decoupled decay; finite, >= 0. At 0 this is torch's SGD.

    Raises:
        ConfigError[optimizer-settings]: `weight_decay` is out of range.
    """
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ConfigError(
            f"weight_decay must be finite and >= 0, got {weight_decay!r}.", code="optimizer-settings"
        )
    optimizer = SGD(params, lr=lr, momentum=momentum, nesterov=nesterov)

    @torch.no_grad()
    def shrink(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.mul_(1.0 - group["lr"] * weight_decay)

    if weight_decay:
        optimizer.register_step_pre_hook(shrink)
    return optimizer
