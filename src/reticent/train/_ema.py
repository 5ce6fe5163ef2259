"""A moving average of weights, once per update. Post-processing: costs no privacy.

Room: train. May import torch.

Sources:
    [1] De et al. 2022, arXiv:2204.13650, section 3.2 (EMA with warm-up in private training).
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

Average: TypeAlias = float | Literal["polyak"]
AVERAGES: Final = ("ema", "polyak")  # names of those that a run may keep, of their files and metrics


def ema_decay(t: int, *, mu: Average) -> float:
    """How much of the average update t = 0, 1, ... keeps.

    | average | decay |
    |---|---|
    | exponential, with warm-up [1] | min(mu, (1 + t) / (10 + t)) |
    | "polyak", the plain mean of all weights so far | t / (t + 1) |
    | either, before it starts (t < 0) | 0: the average is the last weights |
    """
    if t < 0:
        return 0.0
    return t / (t + 1) if mu == "polyak" else min(mu, (1 + t) / (10 + t))


def ema_start(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of `weights` in at least float32, to average from."""
    return {
        name: w.detach().to(dtype=torch.promote_types(w.dtype, torch.float32), copy=True)
        for name, w in weights.items()
    }


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, t: int, mu: Average) -> None:
    """Move `average`, in place, towards `weights`: a <- d a + (1 - d) w with d = ema_decay(t)."""
    decay = ema_decay(t, mu=mu)
    for name, a in average.items():
        a.lerp_(weights[name].to(a.dtype), 1.0 - decay)
