"""Layers of networks for private training: standardised convolutions, gains that start at zero, pixels.

Room: recipes. May import torch.

Shape letters: B image, C channel, H row, W column.

Sources:
    [1] De et al. 2022, arXiv:2204.13650 (what works in private training).
    [2] Brock et al. 2021, arXiv:2101.08692 (scaled weight standardisation, with gain).
    [3] De, Smith 2020, arXiv:2002.10444 (skip-init).
    [4] Huang et al. 2016, arXiv:1603.09382 (stochastic depth).
    [5] Hu et al. 2017, arXiv:1709.01507 (squeeze and excitation).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALLEST = 1e-4  # of fan-in times variance [2]


class WSConv2d(nn.Conv2d):
    """A convolution whose filters are standardised, then scaled by a gain that is learnt [2].

    At gain 1 every filter has mean 0 and squared norm 1. Raw weight, gain and bias are the parameters: an
    example's gradient is taken through the standardisation, so what is clipped is what is learnt.
    """

    def __init__(self, wide_in: int, wide_out: int, size: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(wide_in, wide_out, size, stride=stride, padding=padding)
        self.gain = nn.Parameter(torch.ones(wide_out))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        assert self.bias is not None, "the bias stays"
        nn.init.zeros_(self.bias)

    def standardised(self) -> Tensor:
        """The filters that are applied, of the weight's shape."""
        fan_in = self.weight[0].numel()
        flat = self.weight.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        variance = centred.square().mean(1)
        scale = self.gain * torch.rsqrt((variance * fan_in).clamp_min(_SMALLEST))
        return (centred * scale[:, None]).view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.standardised(), self.bias)


class SkipGain(nn.Module):
    """One learnt factor at the end of a residual branch; at 0 the block begins as the identity [3]."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class StochasticDepth(nn.Module):
    """In training, each image's branch is left out with some probability, else scaled up by what is kept [4].

    Args:
        rate: probability of leaving it out, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept_B111 = F.dropout(x.new_ones(len(x), 1, 1, 1), self.rate)
        return x * kept_B111


class SqueezeExcite(nn.Module):
    """Each channel times twice a gate in (0, 1), which an image's means over its channels decide [5] [2].

    Args:
        channels: in and out.
        share: hidden units, of the channels.
    """

    def __init__(self, channels: int, share: float = 0.5) -> None:
        super().__init__()
        hidden = max(1, round(channels * share))
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate_BC = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return 2.0 * gate_BC[:, :, None, None] * x


ACTIVATIONS: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType(
    {
        "celu": nn.CELU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "identity": nn.Identity,
        "leakyrelu": nn.LeakyReLU,
        "logsigmoid": nn.LogSigmoid,
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "selu": nn.SELU,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
        "softsign": nn.Softsign,
        "tanh": nn.Tanh,
    }
)

# These mix an image's channels, so that no constant gives them variance 1; GLU halves the channels too.
ACROSS_CHANNELS: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType(
    {"glu": lambda: nn.GLU(dim=1), "logsoftmax": lambda: nn.LogSoftmax(dim=1)}
)


class Scaled(nn.Module):
    """An activation, times what gives it variance 1 on inputs of mean 0 and variance 1 [2]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = variance_gain(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain


@torch.no_grad()
def variance_gain(activation: nn.Module) -> float:
    """1 / deviation of the activation of a standard normal number, by quadrature."""
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64, device="cpu")
    weight = torch.exp(-z.square() / 2)
    weight = weight / weight.sum()
    y = activation(z)
    return float((weight * (y - (weight * y).sum()).square()).sum().rsqrt())


class Pixels(nn.Module):
    """Bytes (B, H, W) or (B, H, W, C) to numbers (B, C, H, W) in [-2, 2], by constants that no data chose.

    Args:
        deviation: what pixels from 0 to 1, less 0.5, are divided by; of 0.5 they end in [-1, 1].
    """

    def __init__(self, deviation: float = 0.25) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return (_planes(x) / 255.0 - 0.5) / self.deviation


class PixelsLike(nn.Module):
    """Bytes to numbers (B, C, H, W) as a pretrained network had them: less a mean, over a deviation.

    Args:
        mean: of each channel, or one for all; pixels are from 0 to 1.
        std: alike.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (_planes(x) / 255.0 - self.mean) / self.std


def _planes(x: Tensor) -> Tensor:
    """(B, H, W) or (B, H, W, C) to floating (B, C, H, W), still from 0 to 255."""
    planes = x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1)
    return planes if planes.is_floating_point() else planes.to(torch.float32)


class GroupStandardise(nn.Module):
    """Each image's features to mean 0 and variance 1 within groups of channels; nothing is learnt."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.to(torch.promote_types(x.dtype, torch.float32)), self.groups)
