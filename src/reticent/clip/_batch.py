"""Slices a batch, a tree of tensors with the example axis first.

Room: clip. May import torch and `reticent.errors`.
"""

import hashlib
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from reticent.errors import ConfigError

_CANDIDATES: Final = 64


def num_rows(batch: Any) -> int:
    """Rows of a batch.

    Raises:
        ConfigError[batch-mismatch]: no tensor in it, a tensor without axes, or different lengths.
    """
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    sizes = {t.shape[0] if t.dim() else -1 for t in tensors}
    if len(sizes) != 1 or -1 in sizes:
        shapes = [tuple(t.shape) for t in tensors]
        raise ConfigError(
            f"The tensors of a batch must share their first axis, the examples; got shapes {shapes}. "
            "Close over what is not per example instead of putting it in the batch.",
            code="batch-mismatch",
        )
    return sizes.pop()


def digest(batch: Any) -> bytes:
    """SHA-256 of every tensor of a batch, and of the state of torch's random draws where these are."""
    found, devices = hashlib.sha256(torch.get_rng_state().numpy().tobytes()), set[torch.device]()
    for t in (leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)):
        found.update(repr((tuple(t.shape), t.dtype)).encode())
        found.update(_bytes(t.detach().cpu().contiguous()))
        devices.add(t.device)
    for device in sorted((d for d in devices if d.type == "cuda"), key=str):
        found.update(torch.cuda.get_rng_state(device).numpy().tobytes())
    return found.digest()


def rows(batch: Any, start: int, stop: int) -> Any:
    """Rows start to stop - 1 of every tensor."""
    return tree_map_only(Tensor, lambda t: t[start:stop], batch)


def varied_rows(batch: Any, *, at_most: int, num_units: int | None = None) -> Any:
    """The rows of a few units, among the first 64, that have as little in common as can be.

    Coupled examples that are alike (blank ones, or all of one class) can have the losses of separate ones.
    Where all chosen units are the same, made-up numbers are added to their floating-point tensors.

    Args:
        batch: a tree of tensors, example axis first.
        at_most: how many units.
        num_units: U, if a unit has more than one row, in contiguous rows.

    Raises:
        ConfigError[batch-mismatch]: see `num_rows`.
    """
    num_units = num_rows(batch) if num_units is None else num_units
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    k = num_rows(batch) // num_units
    heads = [t.detach()[: k * min(num_units, _CANDIDATES)].cpu().contiguous() for t in tensors]
    kinds = [
        tuple(hashlib.sha256(_bytes(t[u * k : (u + 1) * k])).digest() for t in heads)
        for u in range(min(num_units, _CANDIDATES))
    ]
    chosen = [0]
    left = list(range(1, len(kinds)))
    while left and len(chosen) < at_most:
        seen = [{kinds[u][i] for u in chosen} for i in range(len(tensors))]
        best = max(left, key=lambda u: sum(kind not in old for kind, old in zip(kinds[u], seen, strict=True)))
        chosen.append(best)
        left.remove(best)
    at = torch.tensor([u * k + i for u in sorted(chosen) for i in range(k)])
    few = tree_map_only(Tensor, lambda t: t.detach()[at.to(t.device)].requires_grad_(t.requires_grad), batch)
    if len(chosen) > 1 and len({kinds[u] for u in chosen}) == 1:
        few = tree_map_only(Tensor, _roughened, few)
    return few


def _roughened(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = x.detach() + ((1 + x.detach().abs()) * noise.to(x.device)).to(x.dtype)
    return made.requires_grad_(x.requires_grad)


def _bytes(t: Tensor) -> bytes:
    return t.reshape(-1).view(torch.uint8).numpy().tobytes()
