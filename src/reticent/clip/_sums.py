"""Sums of gradients, made when something is first added: not while activations still take memory.

Room: clip. May import torch, `reticent.rules`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from reticent.rules import Form, Overwrites


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

    def put_first(self, name: str, form: Form, weights: Tensor, keep: Tensor | None) -> bool:
        """Write a form's weighted sum, if nothing was added before and the form can; say whether it was.

        Args:
            name: the parameter.
            form: its per-unit gradients.
            weights: (U,).
            keep: (U,), which units are not left out; None: none is.
        """
        if name in self or not isinstance(form, Overwrites):
            return False
        p = self._params[name]
        made = torch.empty_like(p, dtype=sum_dtype(p), requires_grad=False)
        form.write_weighted(weights, keep, made)
        self[name] = made
        return True
