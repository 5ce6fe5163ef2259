"""Residual networks without normalisation: standardised filters keep the signal's size instead.

Room: recipes. May import torch.

Shape letters: B image, C channel, H row, W column.

Sources:
    [1] Brock, De, Smith 2021, arXiv:2101.08692 (NF-ResNets: variances known in advance).
    [2] De et al. 2022, arXiv:2204.13650 (NF-ResNet-50 trained privately on ImageNet).
"""

import math
from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from ._layers import SkipGain, SqueezeExcite, StochasticDepth, WSConv2d

_BLOCKS: Final = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}
_SCALED_RELU: Final = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))  # variance 1 in, variance 1 out [1]


class NFResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes): bottleneck blocks h + alpha f(h / beta) [1].

    Args:
        blocks: number of blocks of each stage.
        widths: channels out of each stage.
        num_classes: width of the head.
        stem: channels of the 7 x 7 stem.
        alpha: how much variance each block adds.
        skip_gain: a learnt factor at the end of each branch, from 1 as in [2], or None.
        squeeze_excite: whether a branch's channels are gated by their means.
        stochastic_depth: how often the last block's branch is left out in training; earlier ones less, in
            proportion to their place.
        dropout: rate of dropout before the head.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        stem: int = 64,
        alpha: float = 0.2,
        skip_gain: float | None = 1.0,
        squeeze_excite: bool = False,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        made, wide_in, variance = [], stem, 1.0
        for stage, (count, wide_out) in enumerate(zip(blocks, widths, strict=True)):
            for index in range(count):
                opens = index == 0
                made.append(
                    _Bottleneck(
                        wide_in,
                        wide_out,
                        stride=2 if opens and stage else 1,
                        alpha=alpha,
                        beta=math.sqrt(variance),
                        opens=opens,
                        skip_gain=skip_gain,
                        squeeze_excite=squeeze_excite,
                        left_out=stochastic_depth * len(made) / sum(blocks),
                    )
                )
                variance = (1.0 if opens else variance) + alpha**2
                wide_in = wide_out
        self.stem = WSConv2d(3, stem, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.blocks = nn.Sequential(*made)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(wide_in, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.pool(self.stem(x)))
        return self.head(self.dropout(_activate(h).mean((2, 3))))


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 at unit variance, times alpha, beside the input (or a 1 x 1 of it)."""

    def __init__(
        self,
        wide_in: int,
        wide_out: int,
        *,
        stride: int,
        alpha: float,
        beta: float,
        opens: bool,
        skip_gain: float | None,
        squeeze_excite: bool,
        left_out: float,
    ) -> None:
        super().__init__()
        narrow = wide_out // 4
        self.alpha, self.beta = alpha, beta
        self.first = WSConv2d(wide_in, narrow, 1)
        self.second = WSConv2d(narrow, narrow, 3, stride=stride, padding=1)
        self.third = WSConv2d(narrow, wide_out, 1)
        self.excite = SqueezeExcite(wide_out) if squeeze_excite else nn.Identity()
        self.depth = StochasticDepth(left_out)
        self.gain = SkipGain(skip_gain) if skip_gain is not None else nn.Identity()
        self.skip = WSConv2d(wide_in, wide_out, 1, stride=stride) if opens else None

    def forward(self, x: Tensor) -> Tensor:
        h = _activate(x) / self.beta
        beside = x if self.skip is None else self.skip(h)
        h = self.excite(self.third(_activate(self.second(_activate(self.first(h))))))
        return beside + self.alpha * self.gain(self.depth(h))


def _activate(x: Tensor) -> Tensor:
    return F.relu(x) * _SCALED_RELU


def nf_resnet(
    depth: int,
    num_classes: int,
    *,
    squeeze_excite: bool = False,
    stochastic_depth: float = 0.0,
    dropout: float = 0.0,
) -> nn.Module:
    """NF-ResNet of a published depth: 50, 101, 152, 200, 288 or 600."""
    return NFResNet(
        _BLOCKS[depth],
        num_classes=num_classes,
        squeeze_excite=squeeze_excite,
        stochastic_depth=stochastic_depth,
        dropout=dropout,
    )
