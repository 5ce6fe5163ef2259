"""Two backwards of one forward must meet the same numbers: norms of one bound the sums of the other.

What is recomputed in a backward (activation checkpointing) may come out otherwise the second time: a block
that draws from a generator of its own, say, which nobody winds back.

Room: clip. May import torch, `reticent.errors`.

Shape letters (this file): R rows of a tensor, N numbers in a row.
"""

import torch
from torch import Tensor

from reticent.errors import UnsupportedModel

# Of a row's length. Kernels that add in no fixed order differ by far less, other draws by far more.
_TOLERANCE = 1e-3


class Twice:
    """Remembers what the first backward met, and refuses a second one that meets anything else.

    Of each tensor the length of every row is compared, and its inner product with fixed numbers, so that a
    row whose numbers have changed places is seen too.
    """

    def __init__(self) -> None:
        self._first: list[list[Tensor]] = []
        self._at: int | None = None
        self._fixed: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def turn(self) -> None:
        """The first backward is over; the second begins."""
        self._at = 0

    def see(self, *tensors: Tensor) -> None:
        """What a recorded operation handed over: the output's gradient and what it was saved with.

        Raises:
            UnsupportedModel[unstable-forward]: in the first backward it was something else.
        """
        found = [self._digest(t.detach()) for t in tensors]
        if self._at is None:
            self._first.append(found)
            return
        was = self._first[self._at] if self._at < len(self._first) else []
        self._at += 1
        if len(was) != len(found) or not all(map(_alike, was, found)):
            raise _unlike()

    def end(self) -> None:
        """The second backward is over.

        Raises:
            UnsupportedModel[unstable-forward]: it met less than the first.
        """
        if self._at != len(self._first):
            raise _unlike()

    def _digest(self, t: Tensor) -> Tensor:
        """(2, R): each row's inner product with fixed numbers, and its length."""
        t_RN = t.flatten(1) if t.dim() > 1 else t[None] if t.dim() else t[None, None]
        t_RN = t_RN.to(torch.promote_types(t.dtype, torch.float32))
        key = (t_RN.shape[1], t_RN.dtype, t_RN.device)
        if key not in self._fixed:
            wave = torch.arange(key[0], dtype=torch.float64).mul_(12.9898).sin_().mul_(43758.5453)
            self._fixed[key] = (wave - wave.floor() - 0.5).to(dtype=key[1], device=key[2])
        return torch.stack([t_RN @ self._fixed[key], torch.linalg.vector_norm(t_RN, dim=1)])


def _alike(was: Tensor, now: Tensor) -> bool:
    if was.shape != now.shape:
        return False
    limit = _TOLERANCE * was[1]
    # What is not finite is so in both: such a unit counts as zero.
    same = (was == now) | (was.isnan() & now.isnan()) | ((was - now).abs() <= limit)
    return bool(same.all())


def _unlike() -> UnsupportedModel:
    return UnsupportedModel(
        "The second of two backwards met other numbers than the first: something that is recomputed in "
        "the backward (activation checkpointing) came out otherwise, a draw from a generator of its own, "
        "say. The norms of one would not bound the sums of the other. Use method='book-keeping' (leave out "
        "low_memory), or make what is recomputed repeatable.",
        code="unstable-forward",
    )
