"""Rules for look-ups in a trainable table.

Room: rules. May import torch and `reticent.errors`; holds functions and frozen records, no state.

Shape letters (this file): V rows, D width; ids of any shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.errors import UnsupportedModel
from reticent.rules._forms import Form
from reticent.rules._gather import Gather
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingMeeting:
    """y = W[ids]; the row `padding_idx`, if any, receives no gradient."""

    weight: Tensor
    padding_idx: int | None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        (ids,) = inputs
        return F.embedding(ids, self.weight), (ids,)

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`: integers have no gradient."""
        return (None,)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`."""
        return layout.axis < output_dim - 1

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        ids_UP, g_UPD = layout.positions(saved[0], 0), layout.positions(g, 1)
        if self.padding_idx is not None:
            g_UPD = torch.where((ids_UP == self.padding_idx)[:, :, None], 0, g_UPD)
        return {"weight": Gather(ids_UP, g_UPD, self.weight.shape[0])}


def _record(recorder: Recorder, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Any:
    if weight.dim() != 2 or not recorder.is_trainable(weight) or ids.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return recorder.record(EmbeddingMeeting(weight.detach(), padding_idx), {"weight": weight}, (ids,))


def embedding(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.embedding`.

    Raises:
        UnsupportedModel[embedding-max-norm]: rows looked up would be rewritten without noise.
        UnsupportedModel[scale-grad-by-freq]: gradients would be divided by counts of the batch.
    """

    def bound(
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Any:
        refuse_embedding_settings(max_norm, scale_grad_by_freq, "an embedding")
        return _record(recorder, input, weight, padding_idx)

    return bound(*args, **kwargs)


def refuse_embedding_settings(max_norm: float | None, scale_grad_by_freq: bool, where: str) -> None:
    """Refuse the two settings under which a look-up's influence cannot be bounded.

    Raises:
        UnsupportedModel[embedding-max-norm], UnsupportedModel[scale-grad-by-freq].
    """
    if max_norm is not None:
        raise UnsupportedModel(
            f"{where} has max_norm={max_norm}: looking rows up rewrites them, so data changes weights "
            "without clipping or noise. Build it without max_norm.",
            code="embedding-max-norm",
        )
    if scale_grad_by_freq:
        raise UnsupportedModel(
            f"{where} has scale_grad_by_freq=True: gradients are divided by how often a row occurs in "
            "the batch, which couples examples. Build it without scale_grad_by_freq.",
            code="scale-grad-by-freq",
        )


def getitem(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`W[ids]` with one integer tensor."""
    if kwargs or len(args) != 2 or not isinstance(args[1], Tensor):
        return NotImplemented
    table, ids = args
    if ids.dtype not in (torch.int64, torch.int32) or not recorder.is_trainable(table):
        return NotImplemented
    from_the_start = torch.where(ids < 0, ids + table.shape[0], ids)  # -1 is the last row
    return _record(recorder, from_the_start, table, None)


def index_select(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.index_select(W, 0, ids)`."""
    if kwargs or len(args) != 3 or args[1] != 0:
        return NotImplemented
    return _record(recorder, args[2], args[0], None)
