"""The work that engines are compared on: a model, its per-example losses, and a batch.

Random weights and random data: what is measured does not depend on either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """`losses(batch)` runs `model` and returns one loss for each example, shape (B,)."""

    model: nn.Module
    losses: Callable[[Any], Tensor]
    batch: Any


def gpt2(num_layers: int, num_examples: int = 8, length: int = 100) -> Work:
    """GPT-2 shapes (d 768, 12 heads, vocabulary 50,257, tied head), next-token loss, dropout off."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(n_layer=num_layers, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    )
    ids = torch.randint(0, 50257, (num_examples, length))

    def losses(ids: Tensor) -> Tensor:
        logits = model(ids).logits[:, :-1]
        return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)

    return Work(model, losses, ids)


def tanh_cnn(num_examples: int = 256) -> Work:
    """The small tanh CNN for 28 x 28 images."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )
    batch = (torch.randn(num_examples, 1, 28, 28), torch.randint(0, 10, (num_examples,)))

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")

    return Work(model, losses, batch)


CASES: Final = MappingProxyType(
    {
        "gpt2": lambda: gpt2(12),
        "gpt2-4": lambda: gpt2(4),
        "tanh-cnn": tanh_cnn,
    }
)
