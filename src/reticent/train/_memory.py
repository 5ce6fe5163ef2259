"""The most bytes that tensors take at once while something runs, on any device.

Room: train. May import torch.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside its block, and keeps the largest count in `bytes`.

    What an operation allocates for itself while it runs is not seen. `trail` has, for each new tensor in
    turn, the operation that made it and the count then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: int = 0
        self.trail: list[tuple[str, int]] = []
        self._now = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and _address(t) not in given:
                self._count(t.untyped_storage(), str(func))
        return out

    def _count(self, storage: Any, by: str) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._now += size
        self.bytes = max(self.bytes, self._now)
        self.trail.append((by, self._now))
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._now -= size


def _address(t: Tensor) -> int:
    return t.untyped_storage()._cdata
