"""Wide residual networks as trained privately from scratch.

Room: recipes. May import torch.

Shape letters: B image, C channel, H row, W column.

Sources:
    [1] Zagoruyko, Komodakis 2016, arXiv:1605.07146 (depth and width).
    [2] De et al. 2022, arXiv:2204.13650 (standardised filters, group normalisation after the activation).
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from ._layers import ACROSS_CHANNELS, ACTIVATIONS, Scaled, SkipGain, WSConv2d

_TRUNCATED: Final = 0.87962566103423978  # deviation of a standard normal number cut at -2 and 2

Norm = Literal["group", "layer", "none"]


class WideResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes) [2]: activation *before* normalisation, standardised filters.

    Args:
        depth: 6 n + 4 layers; n blocks a stage.
        widen: channels are 16, 32, 64 times this.
        num_classes: width of the head.
        channels: of the images.
        groups: of group normalisation.
        norm: "layer" is one group of all channels; "none" leaves normalisation out.
        standardise: whether filters are standardised; otherwise plain convolutions.
        skip_gain: whether residual branches end in a learnt factor that starts at 0.
        skip: whether there is a way past the branches; without it blocks are their branches alone.
        activation: name of one of `ACTIVATIONS` or `ACROSS_CHANNELS`.
        scaled: whether it is scaled to variance 1.
        dropout: rate of dropout before each branch's second convolution [1].
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        num_classes: int,
        *,
        channels: int = 3,
        groups: int = 16,
        norm: Norm = "group",
        standardise: bool = True,
        skip_gain: bool = False,
        skip: bool = True,
        activation: str = "relu",
        scaled: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, "depth is 6 n + 4"
        make = _Maker(
            groups=1 if norm == "layer" else groups,
            norm=norm != "none",
            standardise=standardise,
            skip_gain=skip_gain,
            skip=skip,
            activation=activation,
            scaled=scaled,
            dropout=dropout,
        )
        self.stem = make.conv(channels, 16, 3, 1)
        blocks, wide_in = [], 16
        for stage, stride in enumerate((1, 2, 2)):
            for index in range((depth - 4) // 6):
                wide_out = 16 * widen * 2**stage
                blocks.append(_Block(make, wide_in, wide_out, stride if index == 0 else 1, opens=index == 0))
                wide_in = wide_out
        self.blocks = nn.Sequential(*blocks)
        self.end = make.activate(wide_in)
        self.head = nn.Linear(make.after(wide_in), num_classes)
        _begin(self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.end(self.blocks(self.stem(x))).mean((2, 3)))


class _Block(nn.Module):
    """[activation, norm, 3 x 3] twice beside the input; a stage's first beside [activation, norm, 1 x 1]."""

    def __init__(self, make: "_Maker", wide_in: int, wide_out: int, stride: int, *, opens: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            make.activate(wide_in),
            make.conv(make.after(wide_in), wide_out, 3, stride),
            make.activate(wide_out),
            *([nn.Dropout(make.dropout)] if make.dropout else []),
            make.conv(make.after(wide_out), wide_out, 3, 1),
            *([SkipGain()] if make.skip_gain else []),
        )
        self.skip = None
        if make.skip:
            self.skip = (
                nn.Sequential(make.activate(wide_in), make.conv(make.after(wide_in), wide_out, 1, stride))
                if opens
                else nn.Identity()
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) if self.skip is None else self.skip(x) + self.branch(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """The layers that a network's options ask for."""

    groups: int
    norm: bool
    standardise: bool
    skip_gain: bool
    skip: bool
    activation: str
    scaled: bool
    dropout: float

    def conv(self, wide_in: int, wide_out: int, size: int, stride: int) -> nn.Module:
        if self.standardise:
            return WSConv2d(wide_in, wide_out, size, stride=stride, padding=size // 2)
        made = nn.Conv2d(wide_in, wide_out, size, stride=stride, padding=size // 2)
        _begin(made)
        return made

    def activate(self, channels: int) -> nn.Module:
        made = {**ACTIVATIONS, **ACROSS_CHANNELS}[self.activation]()
        made = Scaled(made) if self.scaled else made
        return nn.Sequential(made, nn.GroupNorm(self.groups, self.after(channels))) if self.norm else made

    def after(self, channels: int) -> int:
        """Channels that an activation leaves."""
        return channels // 2 if self.activation == "glu" else channels


@torch.no_grad()
def _begin(layer: nn.Linear | nn.Conv2d) -> None:
    """Truncated normal of variance 1 / fan-in, and no bias: how layers start in [2]'s code."""
    std = layer.weight[0].numel() ** -0.5 / _TRUNCATED
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None, "every layer has one"
    nn.init.zeros_(layer.bias)
