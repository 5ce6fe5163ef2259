"""The toy models on which other libraries' engines were compared, that no other file has."""

from typing import Final

import torch
from torch import Tensor, nn

from ..case import B, Case, Problem, supervised
from .parameters import ClassToken
from .sequences import TimeMajor

D = 6


def _mlp() -> Problem:
    return supervised(nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(B, D))


def _classifier() -> Problem:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(4, 6, 2),
        nn.GroupNorm(3, 6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    labels = torch.randint(5, (B,))

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Problem(model=model, losses=losses, batch=(torch.randn(B, 1, 10, 10), labels))


class OwnRMSNorm(nn.Module):
    """A norm of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


def _own_norm() -> Problem:
    return supervised(nn.Sequential(nn.Linear(D, D), OwnRMSNorm(), nn.Linear(D, 2)), torch.randn(B, 3, D))


class Downsampled(nn.Module):
    """A residual block with a strided shortcut, as in wide residual nets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.short = nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.one, self.two = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(x))
        return self.short(h) + self.two(torch.relu(self.one(h)))


def _everything() -> Problem:
    """A ViT, a time-major GRU and an MLP over one batch, added: no part may disturb another."""
    parts = nn.ModuleDict({"vit": ClassToken(), "gru": TimeMajor(nn.GRU(3, 3)), "mlp": nn.Linear(72, 3)})

    def run(x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return parts["vit"](x) + parts["gru"](rows.view(-1, 24, 3))[:, -1] + parts["mlp"](rows)

    return supervised(parts, torch.randn(B, 2, 6, 6), call=run)


def _one_parameter() -> Problem:
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(()))})
    return supervised(model, torch.randn(B, 2), call=lambda x: x * model["w"])


CASES: Final = (
    Case(name="mlp", make=_mlp),
    Case(name="cnn-group-norm", make=_classifier),
    Case(name="own-rms-norm", make=_own_norm),
    Case(name="residual-downsampled", make=lambda: supervised(Downsampled(), torch.randn(B, 4, 6, 6))),
    Case(name="many-branches", make=_everything),
    Case(name="one-scalar-parameter", make=_one_parameter),
)
