"""LAMB: Adam's direction, its length set layer by layer from the weights' own.

Room: optim. May import torch and `reticent.errors`.

Names as in [1, Algorithm 2]: w weights, g gradient, m and v the moments, r Adam's direction,
u = r + weight_decay * w, and phi(z) = z.

Sources:
    [1] You et al. 2019, arXiv:1904.00962.
    [2] Mehta et al. 2022, arXiv:2205.02973 (LAMB on a noised gradient: DP-LAMB).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.errors import ConfigError

_LEAST_FLOAT: Final = torch.float32


class Lamb(Optimizer):
    """LAMB with bias correction and decoupled weight decay [1].

    For each parameter tensor, at its t-th step::

        m = b1 m + (1 - b1) g              v = b2 v + (1 - b2) g^2
        r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
        u = r + weight_decay w
        w = w - lr * ratio * u             ratio = ||w|| / ||u||

    The trust ratio is per parameter tensor: a layer's weight and its bias have one each.

    | case | trust ratio |
    |---|---|
    | ||w|| = 0: a bias or a head that starts from exact zeros | 1: the step is Adam's |
    | ||u|| = 0: no gradient and no decay yet | 1, and the step is 0 |
    | ||w|| tiny but not 0 | ||w|| / ||u||, as the formula says: such a tensor hardly moves |

    So LAMB is discontinuous at zero: from exact zeros the first update of a tensor of d entries
    has length about lr sqrt(d), from an initialisation of length 1e-5 it has lr 1e-5. Start a new
    last layer from exact zeros, or from weights of ordinary size, never from almost zero.

    Args:
        params: parameters, or groups of them with settings of their own.
        lr: learning rate; finite, >= 0.
        betas: decay of the moments b1 and b2, each in [0, 1).
        eps: added to the root of v; finite, > 0.
        weight_decay: decoupled decay; finite, >= 0.

    Raises:
        ConfigError[optimizer-settings]: a setting is out of range; lists them all.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Raises:
            ConfigError[optimizer-gradient]: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, w: Tensor, g: Tensor, group: Mapping[str, Any]) -> None:
        if g.is_sparse:
            raise ConfigError(
                "Lamb takes dense gradients, got a sparse one. Make the embedding with sparse=False.",
                code="optimizer-gradient",
            )
        state = self.state[w]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(w, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(w, memory_format=torch.preserve_format)
        state["step"] += 1
        (b1, b2), t = group["betas"], state["step"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1.0 - b1)
        v.mul_(b2).addcmul_(g, g, value=1.0 - b2)
        u = (v / (1.0 - b2**t)).sqrt_().add_(group["eps"])
        u = torch.div(m, u).div_(1.0 - b1**t)
        if group["weight_decay"]:
            u.add_(w, alpha=group["weight_decay"])
        ratio = _trust_ratio(w, u)
        state["trust_ratio"] = ratio
        w.sub_((u * ratio.to(u.dtype)).mul_(group["lr"]))

    def trust_ratios(self, model: nn.Module) -> dict[str, float]:
        """Parameter name -> trust ratio of its last step; parameters that never stepped are left out.

        After a private step the ratios are computed from the weights and the noised gradient alone:
        post-processing, which may be published.
        """
        return {
            name: float(self.state[p]["trust_ratio"])
            for name, p in model.named_parameters()
            if "trust_ratio" in self.state.get(p, {})
        }


def _trust_ratio(w: Tensor, u: Tensor) -> Tensor:
    """||w|| / ||u|| as a scalar tensor; 1 where either is 0. No copy to the host."""
    dtype = torch.promote_types(w.dtype, _LEAST_FLOAT)
    w_norm = torch.linalg.vector_norm(w, dtype=dtype)
    u_norm = torch.linalg.vector_norm(u, dtype=dtype)
    defined = (w_norm > 0) & (u_norm > 0)
    one = torch.ones_like(w_norm)
    return torch.where(defined, w_norm / torch.where(defined, u_norm, one), one)


def _check(group: Mapping[str, Any]) -> None:
    problems = []
    for name, least in (("lr", "0"), ("weight_decay", "0")):
        if not _real(group[name]) or group[name] < 0:
            problems.append(f"{name} must be a finite number >= {least}, got {group[name]!r}")
    if not _real(group["eps"]) or group["eps"] <= 0:
        problems.append(f"eps must be a finite number > 0, got {group['eps']!r}")
    betas = group["betas"]
    if len(betas) != 2 or not all(_real(b) and 0 <= b < 1 for b in betas):
        problems.append(f"betas must be two numbers in [0, 1), got {betas!r}")
    if problems:
        raise ConfigError(f"Settings of Lamb: {'; '.join(problems)}.", code="optimizer-settings")


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
