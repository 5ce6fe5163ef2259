"""The scattering transform against its definition, without Fourier tricks."""

import math

import numpy as np
import pytest
import torch

from reticent.recipes.vision._features import scattered
from reticent.recipes.vision._scattering import Scattering, num_coefficients


def wavelet(octave, k, angles, side):
    """The Morlet wavelet on a periodic grid, as its formula says."""
    width, angle = 0.8 * 2**octave, (angles - angles // 2 - 1 - k) * math.pi / angles
    waves = []
    for frequency in (0.75 * math.pi / 2**octave, 0.0):
        total = torch.zeros(side, side, dtype=torch.complex128)
        for a in range(-2, 3):
            for b in range(-2, 3):
                y, x = torch.meshgrid(
                    torch.arange(side).double() + a * side,
                    torch.arange(side).double() + b * side,
                    indexing="ij",
                )
                u, v = y * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y * math.sin(angle)
                total += torch.polar(
                    torch.exp(-(u**2 + (4 / angles * v) ** 2) / (2 * width**2)), frequency * u
                )
        waves.append(total * (4 / angles) / (2 * math.pi * width**2))
    return waves[0] - waves[1] * waves[0].sum() / waves[1].sum()


def convolve(x, w):
    """Circular convolution, term by term."""
    total = torch.zeros_like(x, dtype=torch.complex128)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            total += w[i, j] * torch.roll(x, (i, j), (0, 1))
    return total


def test_first_and_second_order_are_what_the_formula_says():
    side, angles, padded = 8, 4, 16
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0)).double()
    made = Scattering(side, side, angles=angles).double()(x)[0, 0]
    wide = torch.nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")[0, 0]
    low = torch.zeros(padded, padded, dtype=torch.float64)
    for a in range(-2, 3):
        for b in range(-2, 3):
            y = (torch.arange(padded) + a * padded).double()[:, None]
            z = (torch.arange(padded) + b * padded).double()[None, :]
            low += torch.exp(-(y**2 + z**2) / (2 * 1.6**2))
    low /= 2 * math.pi * 1.6**2

    def window(u):
        return convolve(u, low.to(torch.complex128)).real[::4, ::4][1:3, 1:3]

    u1 = convolve(wide, wavelet(0, 1, angles, padded)).abs()
    u2 = convolve(u1, wavelet(1, 2, angles, padded)).abs()
    tolerance = dict(rtol=0, atol=2e-6)  # wavelets are kept in single precision
    torch.testing.assert_close(made[0], window(wide), **tolerance)
    torch.testing.assert_close(made[1 + 1], window(u1), **tolerance)
    # In the fast transform u2 is sampled every second pixel before it is averaged: hardly any difference.
    second = made[1 + 2 * angles + angles * 1 + 2]
    assert float((second - window(u2)).abs().max()) < 0.05 * float(window(u2).abs().max())


def test_numbers_are_those_of_the_usual_implementation():
    """Kymatio 0.3.0 says these, up to what it cuts off when it resamples filters."""
    torch.manual_seed(0)
    made = Scattering(8, 8, angles=4)(torch.rand(1, 1, 8, 8, dtype=torch.float64).float()).flatten()[:8]
    usual = torch.tensor([0.4891, 0.5033, 0.4389, 0.5439, 0.0627, 0.0631, 0.0747, 0.0872])
    torch.testing.assert_close(made, usual, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 32)])
def test_images_are_transformed_alone_into_81_coefficients_a_channel(shape):
    x = torch.rand(3, *shape)
    transform = Scattering(*shape[1:])
    made = transform(x)
    assert num_coefficients(scales=2, angles=8) == 81
    assert made.shape == (3, shape[0], 81, shape[1] // 4, shape[2] // 4)
    torch.testing.assert_close(transform(x[1:2])[0], made[1], rtol=1e-4, atol=1e-6)


def test_a_constant_image_has_no_waves():
    made = Scattering(16, 16)(torch.full((1, 1, 16, 16), 3.0))[0, 0]
    torch.testing.assert_close(made[0], torch.full((4, 4), 3.0), rtol=1e-3, atol=0)
    assert made[1:].abs().max() < 1e-5


def test_mirrored_features_are_alike_for_an_image_and_its_mirror_image():
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(x[:, :, ::-1])
    plain, mirrored = scattered(x, mirrored=False), scattered(x, mirrored=True)
    np.testing.assert_allclose(scattered(turned, mirrored=True), mirrored, atol=1e-3)
    assert abs(scattered(turned, mirrored=False) - plain).max() > 0.05
    np.testing.assert_allclose((plain + scattered(turned, mirrored=False)) / 2, mirrored, atol=2e-3)
