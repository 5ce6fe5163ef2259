"""Small networks: tanh and GELU convolutions, a multilayer perceptron, a linear layer.

Room: recipes. May import torch.

Sources:
    [1] Papernot et al. 2020, arXiv:2007.14191, Table 1 (tanh; the architectures for MNIST and CIFAR-10).
    [2] De et al. 2022, arXiv:2204.13650 (group normalisation).
"""

import torch
from torch import Tensor, nn


def tanh_cnn(channels: int, side: int, num_classes: int, *, groups: int = 0) -> nn.Module:
    """Two convolutions, two linear layers [1]: 26,010 parameters for 28 x 28 grey images, 10 classes.

    Above 0, `groups` are those of a group normalisation after each convolution [2]: 26,106 parameters.
    """

    def norm(width: int) -> list[nn.Module]:
        return [nn.GroupNorm(groups, width)] if groups else []

    features = nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=2, padding=2),
        *norm(16),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        *norm(32),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
    )
    return nn.Sequential(
        features,
        nn.Linear(_width(features, channels, side), 32),
        nn.Tanh(),
        nn.Linear(32, num_classes),
    )


def deep_tanh_cnn(channels: int, num_classes: int) -> nn.Module:
    """Six convolutions, two linear layers [1, for CIFAR-10]: 550,570 parameters for 32 x 32 colour images."""
    layers: list[nn.Module] = []
    wide_in = channels
    for wide_out in (32, 64, 128):
        layers += [nn.Conv2d(wide_in, wide_out, 3, padding=1), nn.Tanh()]
        layers += [nn.Conv2d(wide_out, wide_out, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
        wide_in = wide_out
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 128), nn.Tanh(), nn.Linear(128, num_classes)
    )


class SmallCNN(nn.Module):
    """Four convolutions with group normalisation and GELU, then a mean: trains on two cores."""

    def __init__(self, channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        wide_in = channels
        for index, wide_out in enumerate((width, 2 * width, 2 * width, 4 * width)):
            layers += [nn.Conv2d(wide_in, wide_out, 3, stride=1 + index % 2, padding=1)]
            layers += [nn.GroupNorm(8, wide_out), nn.GELU()]
            wide_in = wide_out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(wide_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def mlp(num_inputs: int, hidden: int, num_classes: int) -> nn.Module:
    """One hidden layer of ReLU."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )


def linear_on_features(standardise: nn.Module, num_inputs: int, num_classes: int) -> nn.Module:
    """A linear layer that starts at zero, on features standardised image by image."""
    head = nn.Linear(num_inputs, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(standardise, nn.Flatten(), head)


def cnn_on_features(standardise: nn.Module, channels: int, side: int, num_classes: int) -> nn.Module:
    """Two tanh convolutions on standardised features."""
    features = nn.Sequential(
        standardise,
        nn.Conv2d(channels, 64, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 60, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return nn.Sequential(features, nn.Linear(_width(features, channels, side), num_classes))


def _width(features: nn.Module, channels: int, side: int) -> int:
    with torch.no_grad():
        return features(torch.zeros(1, channels, side, side)).shape[1]
