"""One case for each layer and each of its settings, on inputs of every rank it takes."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from ..case import B, Case, Problem, Sandwich, supervised, token_ids


def layer_case(name: str, layer: Callable[[], nn.Module], *shape: int, upcasts: bool = False) -> Case:
    """A layer in a sandwich, on normal inputs of shape (B, *shape)."""
    return Case(
        name=name, make=lambda: supervised(Sandwich(layer()), torch.randn(B, *shape)), upcasts=upcasts
    )


def ids_case(name: str, layer: Callable[[], nn.Module], ids: Callable[[], Tensor]) -> Case:
    """An embedding and a Linear after it, on integer ids."""

    def make() -> Problem:
        embed = layer()
        assert isinstance(embed.embedding_dim, int)
        return supervised(nn.Sequential(embed, nn.Linear(embed.embedding_dim, 3)), ids())

    return Case(name=name, make=make)


def _bilinear() -> Problem:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.pair = nn.Linear(3, 4), nn.Bilinear(4, 5, 6)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.pair(self.left(x), y)

    return supervised(Pair(), torch.randn(B, 3), torch.randn(B, 5))


def _identical_ids() -> Tensor:
    return torch.full((B, 6), 3)


LINEAR: Final = tuple(
    layer_case(f"linear-{rank}d{'' if bias else '-no-bias'}", lambda b=bias: nn.Linear(4, 3, bias=b), *shape)
    for rank, shape in ((2, (4,)), (3, (6, 4)), (4, (2, 3, 4)), (5, (2, 1, 3, 4)))
    for bias in (True, False)
)

DENSE: Final = (
    layer_case("linear-out-1", lambda: nn.Linear(4, 1), 4),
    layer_case("linear-in-1", lambda: nn.Linear(1, 3), 6, 1),
    layer_case("linear-one-position", lambda: nn.Linear(4, 3), 1, 4),
    layer_case("linear-long", lambda: nn.Linear(3, 2), 40, 3),
    layer_case("hf-conv1d-2d", lambda: Conv1D(3, 4), 4),
    layer_case("hf-conv1d-3d", lambda: Conv1D(3, 4), 6, 4),
    layer_case("hf-conv1d-4d", lambda: Conv1D(3, 4), 2, 3, 4),
    layer_case("prelu-one", lambda: nn.PReLU(), 4, 3),
    layer_case("prelu-channels", lambda: nn.PReLU(4), 4, 3),
    Case(name="bilinear", make=_bilinear),
)

EMBEDDING: Final = (
    ids_case("embedding", lambda: nn.Embedding(20, 4), lambda: token_ids(20, B, 6)),
    ids_case("embedding-repeated-ids", lambda: nn.Embedding(20, 4), lambda: token_ids(3, B, 8)),
    ids_case("embedding-identical-ids", lambda: nn.Embedding(20, 4), _identical_ids),
    ids_case("embedding-padding-idx", lambda: nn.Embedding(4, 4, padding_idx=0), lambda: token_ids(4, B, 8)),
    ids_case(
        "embedding-padding-idx-negative",
        lambda: nn.Embedding(4, 4, padding_idx=-1),
        lambda: token_ids(4, B, 8),
    ),
    ids_case("embedding-1d-ids", lambda: nn.Embedding(20, 4), lambda: token_ids(20, B)),
    ids_case("embedding-3d-ids", lambda: nn.Embedding(9, 4), lambda: token_ids(9, B, 2, 3)),
    ids_case("embedding-int32-ids", lambda: nn.Embedding(9, 4), lambda: token_ids(9, B, 3).int()),
)

NORM: Final = (
    layer_case("layer-norm", lambda: nn.LayerNorm(6), 6),
    layer_case("layer-norm-3d", lambda: nn.LayerNorm(6), 5, 6),
    layer_case("layer-norm-no-affine", lambda: nn.LayerNorm(6, elementwise_affine=False), 5, 6),
    layer_case("layer-norm-no-bias", lambda: nn.LayerNorm(6, bias=False), 5, 6),
    layer_case("layer-norm-two-axes", lambda: nn.LayerNorm((4, 6)), 3, 4, 6),
    layer_case("layer-norm-three-axes", lambda: nn.LayerNorm((3, 4, 6)), 3, 4, 6),
    layer_case("group-norm", lambda: nn.GroupNorm(2, 6), 6, 4, 4),
    layer_case("group-norm-one-group", lambda: nn.GroupNorm(1, 6), 6, 4),
    layer_case("group-norm-2d-input", lambda: nn.GroupNorm(2, 6), 6),
    layer_case("group-norm-no-affine", lambda: nn.GroupNorm(2, 6, affine=False), 6, 4),
    layer_case("instance-norm-1d", lambda: nn.InstanceNorm1d(3, affine=True), 3, 7),
    layer_case("instance-norm-2d", lambda: nn.InstanceNorm2d(3, affine=True), 3, 4, 4),
    layer_case("rms-norm", lambda: nn.RMSNorm(6), 5, 6),
    layer_case("rms-norm-two-axes", lambda: nn.RMSNorm((5, 6)), 5, 6),
    layer_case("rms-norm-llama", lambda: LlamaRMSNorm(6), 5, 6, upcasts=True),
    layer_case("rms-norm-gemma", lambda: GemmaRMSNorm(6), 5, 6, upcasts=True),
    layer_case("rms-norm-t5", lambda: T5LayerNorm(6), 5, 6, upcasts=True),
    layer_case("rms-norm-qwen3", lambda: Qwen3RMSNorm(6), 5, 6, upcasts=True),
    layer_case("batch-norm-eval", lambda: nn.BatchNorm2d(3).eval(), 3, 4, 4),
)

CASES: Final = (*LINEAR, *DENSE, *EMBEDDING, *NORM)
