"""Slices a batch, a tree of tensors with the example axis first.

Room: clip. May import torch and `reticent.errors`.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from reticent.errors import ConfigError


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
        found.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        devices.add(t.device)
    for device in sorted((d for d in devices if d.type == "cuda"), key=str):
        found.update(torch.cuda.get_rng_state(device).numpy().tobytes())
    return found.digest()


def rows(batch: Any, start: int, stop: int) -> Any:
    """Rows start to stop - 1 of every tensor."""
    return tree_map_only(Tensor, lambda t: t[start:stop], batch)
