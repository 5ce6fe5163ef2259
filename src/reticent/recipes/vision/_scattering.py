"""The scattering transform: features of an image that no data chose.

Room: recipes. May import torch; holds functions and one frozen layer.

Moduli of Morlet wavelets at `scales` octaves and `angles` directions, cascaded twice and averaged over
windows of 2^scales pixels [1]: stable under small shifts and deformations, and fixed by formula. So they cost
no privacy and need no public data, and in private training a linear layer on them beats many deep networks
from scratch [2].

Shape letters: B image, C channel, H row, W column, S scattering coefficient; h = H / 2^scales, w alike.

Sources:
    [1] Bruna, Mallat 2013, arXiv:1203.1513 (sections 2.1, 2.2).
    [2] Tramèr, Boneh 2021, arXiv:2011.11660 (in private training; J = 2, L = 8).
    [3] Andreux et al. 2020, arXiv:1812.11214 (the discretisation: padding, constants of the wavelets).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTH = 0.8  # standard deviation of the finest wavelet's envelope, in pixels [3]
_FREQUENCY = 0.75 * math.pi  # of the finest wavelet, in radians per pixel [3]


def num_coefficients(*, scales: int, angles: int) -> int:
    """Coefficients of one channel at one place: of order 0, 1 and 2."""
    return 1 + scales * angles + angles**2 * scales * (scales - 1) // 2


class Scattering(nn.Module):
    """(B, C, H, W) -> (B, C, S, h, w); no parameters.

    Args:
        height: H, a multiple of 2^scales.
        width: W, a multiple of 2^scales.
        scales: octaves, J.
        angles: directions in half a turn, L.
    """

    waves: Tensor  # spectra, (scales, angles, H', W') on the padded grid

    def __init__(self, height: int, width: int, *, scales: int = 2, angles: int = 8) -> None:
        super().__init__()
        assert height % 2**scales == width % 2**scales == 0, "sides are multiples of 2^scales"
        self.scales, self.angles = scales, angles
        grid = _padded(height, scales), _padded(width, scales)
        rows, columns = grid[0] - height, grid[1] - width
        self._pad = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        self._keep = slice(1, 1 + height // 2**scales), slice(1, 1 + width // 2**scales)
        waves = [[_morlet(grid, j, angles, k).real for k in range(angles)] for j in range(scales)]
        self.register_buffer(
            "waves", torch.stack([torch.stack(row) for row in waves]).float(), persistent=False
        )
        for at in range(scales):
            for name, side, keep in zip(("rows", "columns"), grid, self._keep, strict=True):
                self.register_buffer(
                    f"{name}_{at}", _averaging(side, scales, at)[keep].float(), persistent=False
                )

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Each image by itself."""
        batch, channels = x_BCHW.shape[:2]
        x = F.pad(x_BCHW.flatten(0, 1)[:, None], self._pad, mode="reflect").squeeze(1)
        spectrum = torch.fft.fft2(x)  # (B C, H', W')
        found = [self._average(x, 0)]
        deeper = []
        for j in range(self.scales):
            first = self._modulus(spectrum, 0, j)  # (B C, angles, H' / 2^j, W' / 2^j)
            found += self._average(first, j).unbind(1)
            if j + 1 == self.scales:
                continue
            again = torch.fft.fft2(first)
            for i in range(j + 1, self.scales):
                for k in range(self.angles):
                    deeper += self._average(self._modulus(again[:, k], j, i), i).unbind(1)
        return torch.stack([*found, *deeper], 1).unflatten(0, (batch, channels))

    def _modulus(self, spectrum: Tensor, at: int, scale: int) -> Tensor:
        """|x * psi| for every angle, from octave `at` to octave `scale`: (..., angles, rows, columns)."""
        waves = _fold(self.waves[scale], at)
        return torch.fft.ifft2(_fold(spectrum.unsqueeze(-3) * waves, scale - at, mean=True)).abs()

    def _average(self, x: Tensor, at: int) -> Tensor:
        """x * phi at the coarsest octave, without what padding added; a Gaussian goes axis by axis."""
        return getattr(self, f"rows_{at}") @ x @ getattr(self, f"columns_{at}").mT


def _padded(side: int, scales: int) -> int:
    step = 2**scales
    return ((side + step) // step + 1) * step


def _fold(spectrum: Tensor, octaves: int, *, mean: bool = False) -> Tensor:
    """The spectrum on a grid 2^octaves times coarser: of the samples (mean), or of the filter (sum)."""
    for _ in range(octaves):
        rows, columns = spectrum.shape[-2] // 2, spectrum.shape[-1] // 2
        spectrum = spectrum[..., :rows, :] + spectrum[..., rows:, :]
        spectrum = spectrum[..., :columns] + spectrum[..., columns:]
    return spectrum / 4**octaves if mean and octaves else spectrum


def _averaging(side: int, scales: int, at: int) -> Tensor:
    """(side / 2^scales, side / 2^at), float64: a line at octave `at` times phi, at the coarsest octave."""
    position = torch.arange(side, dtype=torch.float64)[:, None] - side * torch.arange(-2, 3)
    width = _WIDTH * 2 ** (scales - 1)
    low = torch.exp(-(position**2) / (2 * width**2)).sum(1) / (math.sqrt(2 * math.pi) * width)
    spectrum = torch.fft.fft(low).real
    for _ in range(at):
        spectrum = spectrum.unflatten(0, (2, -1)).sum(0)
    product = torch.fft.fft(torch.eye(side >> at, dtype=torch.float64)) * spectrum  # of each unit line
    for _ in range(scales - at):
        product = product.unflatten(1, (2, -1)).mean(1)
    return torch.fft.ifft(product).real.mT


def _gabor(grid: tuple[int, int], width: float, angle: float, frequency: float, slant: float) -> Tensor:
    """A plane wave under a Gaussian envelope, made periodic on the grid; complex128."""
    cos, sin = math.cos(angle), math.sin(angle)
    total = torch.zeros(grid, dtype=torch.complex128)
    for down in range(-2, 3):
        for right in range(-2, 3):
            y = (torch.arange(grid[0], dtype=torch.float64) + down * grid[0])[:, None]
            x = (torch.arange(grid[1], dtype=torch.float64) + right * grid[1])[None, :]
            along, across = y * cos + x * sin, x * cos - y * sin
            envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2))
            total += torch.polar(envelope, frequency * along)
    return total * slant / (2 * math.pi * width**2)


def _morlet(grid: tuple[int, int], octave: int, angles: int, k: int) -> Tensor:
    """The spectrum of a Gabor wave less as much of its envelope as makes its mean zero."""
    width, angle = _WIDTH * 2**octave, (angles - angles // 2 - 1 - k) * math.pi / angles
    wave = _gabor(grid, width, angle, _FREQUENCY / 2**octave, 4.0 / angles)
    envelope = _gabor(grid, width, angle, 0.0, 4.0 / angles)
    return torch.fft.fft2(wave - envelope * (wave.sum() / envelope.sum()))
