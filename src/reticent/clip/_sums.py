"""Sums of gradients, made when something is first added: not while activations still take memory.

Room: clip. May import torch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def sum_dtype(param: Tensor) -> torch.dtype:
    """Clipped sums are kept in float32, or float64 if the parameter is."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


class SumsOnDemand(dict[str, Tensor]):
    """Name -> sum; zeros for a parameter that was not asked for before."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._params = params

    def __missing__(self, name: str) -> Tensor:
        p = self._params[name]
        made = self[name] = torch.zeros_like(p, dtype=sum_dtype(p), requires_grad=False)
        return made
