"""Convolutions and transposed convolutions with every setting."""

from typing import Final

from torch import nn

from ..case import Case
from .layers import layer_case

CONV: Final = (
    layer_case("conv1d", lambda: nn.Conv1d(3, 4, 3), 3, 8),
    layer_case("conv2d", lambda: nn.Conv2d(3, 4, 3), 3, 6, 6),
    layer_case("conv3d", lambda: nn.Conv3d(2, 3, 2), 2, 4, 4, 4),
    layer_case("conv2d-no-bias", lambda: nn.Conv2d(3, 4, 3, bias=False), 3, 6, 6),
    layer_case("conv2d-1x1", lambda: nn.Conv2d(3, 4, 1), 3, 5, 5),
    layer_case("conv2d-whole-input", lambda: nn.Conv2d(3, 4, 5), 3, 5, 5),
    layer_case("conv2d-stride-padding", lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), 3, 7, 7),
    layer_case("conv2d-uneven", lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1)), 3, 7, 6),
    layer_case("conv2d-stride-leaves-a-rest", lambda: nn.Conv2d(3, 4, 2, stride=3), 3, 7, 7),
    layer_case("conv2d-patches", lambda: nn.Conv2d(3, 4, 4, stride=4), 3, 8, 8),
    layer_case("conv2d-dilation", lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=1), 3, 7, 7),
    layer_case("conv2d-groups", lambda: nn.Conv2d(4, 6, 3, groups=2), 4, 6, 6),
    layer_case("conv2d-depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), 4, 5, 5),
    layer_case("conv2d-depthwise-times-2", lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), 4, 7, 7),
    layer_case("conv1d-same", lambda: nn.Conv1d(3, 4, 3, padding="same"), 3, 8),
    layer_case("conv1d-same-even-kernel", lambda: nn.Conv1d(3, 4, 4, padding="same"), 3, 8),
    layer_case("conv2d-same-dilated", lambda: nn.Conv2d(3, 4, (3, 2), padding="same", dilation=2), 3, 6, 6),
    layer_case("conv2d-valid", lambda: nn.Conv2d(3, 4, 3, padding="valid"), 3, 6, 6),
    layer_case("conv1d-circular", lambda: nn.Conv1d(3, 4, 3, padding=2, padding_mode="circular"), 3, 8),
    layer_case("conv2d-circular", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), 3, 6, 6),
    layer_case(
        "conv2d-circular-same", lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), 3, 6, 6
    ),
    layer_case("conv2d-reflect", lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), 3, 6, 6),
    layer_case("conv2d-replicate", lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="replicate"), 3, 6, 6),
    layer_case(
        "conv3d-replicate", lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), 2, 3, 3, 3
    ),
    layer_case(
        "conv3d-groups-stride", lambda: nn.Conv3d(4, 4, 2, groups=2, stride=2, bias=False), 4, 4, 4, 4
    ),
    layer_case(
        "conv1d-causal", lambda: nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(3, 4, 3)), 3, 6
    ),
)

TRANSPOSED: Final = (
    layer_case("conv-transpose1d", lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), 3, 5),
    layer_case("conv-transpose2d", lambda: nn.ConvTranspose2d(3, 4, 3), 3, 4, 4),
    layer_case("conv-transpose3d", lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), 2, 2, 3, 2),
    layer_case(
        "conv-transpose2d-output-padding",
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
        3,
        4,
        4,
    ),
    layer_case("conv-transpose2d-groups", lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), 4, 3, 3),
    layer_case(
        "conv-transpose2d-dilation", lambda: nn.ConvTranspose2d(3, 2, 2, dilation=2, bias=False), 3, 4, 4
    ),
    layer_case("conv-transpose1d-depthwise", lambda: nn.ConvTranspose1d(4, 4, 3, groups=4, padding=1), 4, 6),
)

CASES: Final[tuple[Case, ...]] = (*CONV, *TRANSPOSED)
