"""Random compositions: residual, parallel, repeated and frozen blocks, drawn from a seed of their own."""

import random
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from ..case import Case, Problem, supervised
from .sequences import SelfAttention, TimeMajor
from .sharing import Adapted, CosineLinear, DoubledLinear, Thrice, _FirstOutput
from .toys import OwnRMSNorm

D = 6  # every block maps (B, T, D) to (B, T, D)


class Channels(nn.Module):
    """A block over (B, D, T)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mT).mT


class Apply(nn.Module):
    """A function of the input and this module's one parameter."""

    def __init__(self, shape: tuple[int, ...], how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(shape) * 0.4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.p)


class Residual(nn.Module):
    """x + scale * inner(x), the scale being fixed or a parameter over columns."""

    def __init__(self, inner: nn.Module, learned: bool) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(D)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        return x + (out if self.scale is None else out * self.scale)


class Parallel(nn.Module):
    """Two blocks on one input, multiplied or added."""

    def __init__(self, left: nn.Module, right: nn.Module, product: bool) -> None:
        super().__init__()
        self.left, self.right, self.product = left, right, product

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return torch.tanh(left) * right if self.product else left + right


class Flattened(nn.Module):
    """A block over (B*T, D) or (T*B, D) rows."""

    def __init__(self, inner: nn.Module, time_first: bool) -> None:
        super().__init__()
        self.inner, self.time_first = inner, time_first

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(0, 1) if self.time_first else x
        h = self.inner(h.reshape(-1, D)).view(h.shape)
        return h.transpose(0, 1) if self.time_first else h


def _adapted() -> nn.Module:
    return nn.Sequential(Adapted(merged=bool(torch.rand(()) < 0.5)), nn.Linear(5, D))


BLOCKS: Final[tuple[Callable[[int], nn.Module], ...]] = (
    lambda t: nn.Linear(D, D),
    lambda t: nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, D, bias=False)),
    lambda t: nn.LayerNorm(D),
    lambda t: OwnRMSNorm(),
    lambda t: Channels(nn.GroupNorm(2, D)),
    lambda t: Channels(nn.Conv1d(D, D, 3, padding=1)),
    lambda t: Channels(nn.Conv1d(D, D, 3, padding="same", groups=D, padding_mode="circular")),
    lambda t: SelfAttention(nn.MultiheadAttention(D, 2, batch_first=True)),
    lambda t: TimeMajor(SelfAttention(nn.MultiheadAttention(D, 3))),
    lambda t: _encoder_block(),
    lambda t: _FirstOutput(nn.GRU(D, D, batch_first=True)),
    lambda t: TimeMajor(nn.LSTM(D, D // 2, bidirectional=True)),
    lambda t: Apply((D,), lambda x, p: x * p),
    lambda t: Apply((1, t, D), lambda x, p: x + p),
    lambda t: Apply((t, t), lambda x, p: p @ x),
    lambda t: Apply((D, D), lambda x, p: x @ p),
    lambda t: Apply((D, 2, D), lambda x, p: torch.einsum("btd,dhe->bte", x.sin(), p)),
    lambda t: Apply((), lambda x, p: torch.tanh(x * p.exp())),
    lambda t: Apply((D, 2), lambda x, p: torch.tanh(x @ p) @ p.T),
    lambda t: Apply((1, 1, D), lambda x, p: torch.cat([p.expand(len(x), 1, D), x], 1)[:, :-1]),
    lambda t: Thrice(nn.Linear(D, D)),
    lambda t: DoubledLinear(D, D),
    lambda t: CosineLinear(D, D),
    lambda t: _adapted(),
    lambda t: nn.PReLU(),
)


def _encoder_block() -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True)


def compose(rng: random.Random, length: int) -> nn.Module:
    """A net of three to six blocks; blocks may recur, sit in branches, or be frozen."""
    made: list[nn.Module] = []
    for _ in range(rng.randint(3, 6)):
        if made and rng.random() < 0.15:
            block = rng.choice(made)
        else:
            block = rng.choice(BLOCKS)(length)
        shape = rng.random()
        if shape < 0.3:
            block = Residual(block, learned=rng.random() < 0.5)
        elif shape < 0.45:
            block = Parallel(block, rng.choice(BLOCKS)(length), product=rng.random() < 0.5)
        elif shape < 0.6:
            block = nn.Sequential(block, Flattened(nn.Linear(D, D), time_first=rng.random() < 0.5))
        if rng.random() < 0.1:
            block.requires_grad_(False)
        made.append(block)
        made.append(nn.Tanh())
    return nn.Sequential(*made, nn.Linear(D, 3))


def _make(seed: int) -> Problem:
    rng = random.Random(seed)
    examples = rng.randint(4, 6)
    length = examples if rng.random() < 0.4 else rng.randint(2, 7)
    return supervised(compose(rng, length), torch.randn(examples, length, D))


CASES: Final = tuple(Case(name=f"composition-{seed}", make=lambda s=seed: _make(s)) for seed in range(40))
