"""An exponential moving average of weights, once per update. Post-processing: costs no privacy.

Room: train. May import torch.

Sources:
    [1] De et al. 2022, arXiv:2204.13650, section 3.2 (EMA with warm-up in private training).
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def ema_decay(t: int, *, mu: float) -> float:
    """The decay of update t = 0, 1, ...: min(mu, (1 + t) / (10 + t)) [1]."""
    return min(mu, (1 + t) / (10 + t))


def ema_start(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of `weights` in at least float32, to average from."""
    return {
        name: w.detach().to(dtype=torch.promote_types(w.dtype, torch.float32), copy=True)
        for name, w in weights.items()
    }


@torch.no_grad()
def ema_update(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, t: int, mu: float) -> None:
    """Move `average`, in place, towards `weights`: a <- d a + (1 - d) w with d = ema_decay(t)."""
    decay = ema_decay(t, mu=mu)
    for name, a in average.items():
        a.lerp_(weights[name].to(a.dtype), 1.0 - decay)
