"""Sums of gradients, made when something is first added: not while activations still take memory.

Room: clip. May import torch, `reticent.rules`.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reticent.rules import Form, overwrites


def sum_dtype(param: Tensor) -> torch.dtype:
    """Clipped sums are kept in float32, or float64 if the parameter is."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


class SumsOnDemand(Mapping[str, Tensor]):
    """Name -> sum, for every parameter and in their order, whatever was added to first.

    A sum takes memory from the moment something is added to it; one that is read before then is zeros.

    Args:
        params: name -> parameter.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self._params = params
        self.made: dict[str, Tensor] = {}  # those that take memory: all that holds anything of the data

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.made:
            p = self._params[name]
            self.made[name] = torch.zeros_like(p, dtype=sum_dtype(p), requires_grad=False)
        return self.made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._params

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def put_first(self, name: str, form: Form, weights: Tensor, keep: Tensor | None) -> bool:
        """Write a form's weighted sum, if nothing was added before and the form can; say whether it was.

        Args:
            name: the parameter.
            form: its per-unit gradients.
            weights: (U,).
            keep: (U,), which units are not left out; None: none is.
        """
        if name in self.made or not overwrites(form):
            return False
        p = self._params[name]
        # Among the sums before anything is in it, so that whoever destroys them finds it after an error too.
        made = self.made[name] = torch.empty_like(p, dtype=sum_dtype(p), requires_grad=False)
        form.write_weighted(weights, keep, made)
        return True

    def adopt_first(self, name: str, added: Tensor) -> bool:
        """Take a tensor that nobody else has as the sum, if nothing was added before; say whether it was."""
        p = self._params[name]
        if name in self.made or added.shape != p.shape or added.dtype != sum_dtype(p):
            return False
        self.made[name] = added
        return True
