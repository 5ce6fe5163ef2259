"""Small work in plain torch: perceptron, small CNN, mean of embeddings."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.work import Work


def classify(model: nn.Module, batch: Any, twin: str = "") -> Work:
    """Cross entropy of `model(x)` against `y`, for a batch (x, y)."""

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")

    return Work(model, losses, batch, twin)


def mlp(num_examples: int = 256, widths: tuple[int, ...] = (784, 1024, 1024, 10)) -> Work:
    """Linear layers with GELU between them: at ReLU's kink, rounding decides about a gradient."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.GELU()]
    batch = (torch.randn(num_examples, widths[0]), torch.randint(0, widths[-1], (num_examples,)))
    return classify(nn.Sequential(*layers[:-1]), batch, "mlp")


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
    return classify(model, batch, "tanh-cnn")


class _MeanOfEmbeddings(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).mean(1))


def embedding_bag(
    num_examples: int = 64, length: int = 64, vocabulary: int = 100_000, width: int = 64
) -> Work:
    """Text classification whose parameters are nearly all in the embedding."""
    batch = (torch.randint(0, vocabulary, (num_examples, length)), torch.randint(0, 10, (num_examples,)))
    return classify(_MeanOfEmbeddings(vocabulary, width), batch)
