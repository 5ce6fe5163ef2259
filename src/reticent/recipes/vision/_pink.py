"""Constants that make wavelet features alike, from images that no data chose: pink noise.

Photographs' spectra fall as one over frequency [1], and their colours vary less than their brightness [2];
noise made to do so tells how coefficients vary together in a picture, and costs no privacy.

Room: recipes. May import torch; holds one fixed layer.

Shape letters: B image, C coefficient (of all colour channels), H row, W column.

Sources:
    [1] Field 1987, J. Opt. Soc. Am. A 4(12) (amplitude spectra of natural images).
    [2] Ruderman, Cronin, Chiao 1998, J. Opt. Soc. Am. A 15(8) (colour: one strong axis, two weak ones).
"""

from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._layers import GroupStandardise
from ._scattering import Scattering, num_coefficients

_GROUPS: Final = 27  # of coefficients, where pink noise is not asked
_IMAGES: Final = 512
_BRIGHTNESS_MEAN: Final = -0.1  # in the units of `Pixels`, where black is -2 and white is 2
# Red, green and blue of the three axes: brightness, blue against yellow, green against red and blue.
_AXES: Final = ((1.0, 1.0, 1.0), (0.35, -0.15, -0.35), (0.0, 0.1, -0.2))


def pink_images(number: int, *, channels: int, side: int) -> Tensor:
    """(number, channels, side, side), the same in every call, in the units of `Pixels`."""
    generator = torch.Generator().manual_seed(0)
    wide = 2 * side  # of which the middle is cut out, so that opposite edges differ
    frequency = torch.fft.fftfreq(wide, dtype=torch.float64)
    falling = torch.hypot(frequency[:, None], frequency[None, :])
    falling[0, 0] = 1 / wide
    noise = torch.randn(number, 3, wide, wide, 2, generator=generator, dtype=torch.float64)
    cut = slice(side // 2, side // 2 + side)
    axes = torch.fft.ifft2(torch.view_as_complex(noise) / falling).real[:, :, cut, cut]
    axes = axes / axes.std((0, 2, 3), keepdim=True)
    colours = torch.einsum("baij,ac->bcij", axes, torch.tensor(_AXES, dtype=torch.float64))
    picture = colours if channels == 3 else axes[:, :1].expand(-1, channels, -1, -1)
    return (picture / picture.std() + _BRIGHTNESS_MEAN).clamp(-2, 2).float()


@cache
@torch.no_grad()
def whitening(channels: int, side: int, *, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Mean (C,) and matrix (C, C) of coefficients in pink noise: (K + 1)^(-1/2) / deviations, K correlations.

    The 1 keeps what hardly varies from being blown up.

    Args:
        channels: of the images.
        side: of the images, in pixels.
        mirrored: whether the features are the mean of an image's and its mirror image's.
    """
    transform, parts = Scattering(side, side), []
    for images in pink_images(_IMAGES, channels=channels, side=side).split(64):
        found = transform(images)
        parts.append((found + transform(images.flip(-1))) / 2 if mirrored else found)
    rows = torch.cat(parts).flatten(1, 2).movedim(1, -1).flatten(0, 2).double()  # (images and places, C)
    values, vectors = torch.linalg.eigh(torch.corrcoef(rows.mT))
    root = (vectors * (values.clamp_min(0) + 1).rsqrt()) @ vectors.mT
    return rows.mean(0).float(), (root / rows.std(0)).float()


class PinkWhiten(nn.Module):
    """Coefficients made alike by how they are in pink noise, then each image to mean 0 and variance 1.

    (B, C, H, W) of any floating dtype -> that shape, in the layer's dtype. Nothing is learnt; the constants
    are kept with the weights.

    Args:
        channels: of the images whose features come.
        side: of the images, in pixels.
        mirrored: see `whitening`.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, channels: int, side: int, *, mirrored: bool) -> None:
        super().__init__()
        width = channels * num_coefficients(scales=2, angles=8)
        mean, matrix = torch.empty(width), torch.empty(width, width)
        if mean.device.type != "meta":  # there only shapes are asked for
            with torch.device("cpu"):
                known = whitening(channels, side, mirrored=mirrored)
            mean, matrix = (made.copy_(value) for made, value in zip((mean, matrix), known, strict=True))
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        centred = x_BCHW.to(self.mean.dtype) - self.mean[:, None, None]
        return F.group_norm(F.conv2d(centred, self.matrix[:, :, None, None]), 1)


def standardiser(
    how: Literal["groups", "pink-noise"], channels: int, side: int, *, mirrored: bool
) -> nn.Module:
    """What makes the scattering features of images of this shape alike in size."""
    return GroupStandardise(_GROUPS) if how == "groups" else PinkWhiten(channels, side, mirrored=mirrored)
