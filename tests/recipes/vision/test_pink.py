"""Features made alike by noise with a photograph's spectrum."""

import pytest
import torch

from reticent.recipes.vision._pink import PinkWhiten, pink_images, whitening
from reticent.recipes.vision._scattering import Scattering


def test_pink_noise_falls_as_one_over_frequency_and_is_the_same_every_time():
    images = pink_images(200, channels=3, side=32)
    assert torch.equal(images, pink_images(200, channels=3, side=32))
    brightness = images.mean(1).double()
    window = torch.hann_window(32, dtype=torch.float64)
    spectrum = (
        torch.fft.fft2((brightness - brightness.mean()) * window * window[:, None]).abs().square().mean(0)
    )
    falls = [float((spectrum[2 * k, 0] / spectrum[k, 0]).sqrt()) for k in (2, 3, 4)]
    assert falls == pytest.approx([0.5] * 3, abs=0.1)  # amplitude at twice the frequency
    assert float(brightness.std()) > 1.2 * float((images[:, 0] - images[:, 2]).std())


@pytest.mark.parametrize("mirrored", [False, True])
def test_coefficients_of_pink_noise_come_out_alike(mirrored):
    images = pink_images(64, channels=3, side=16)
    transform = Scattering(16, 16)
    found = transform(images)
    if mirrored:
        found = (found + transform(images.flip(-1))) / 2
    rows = found.flatten(1, 2).movedim(1, -1).flatten(0, 2)
    assert float(rows.std(0).max() / rows.std(0).min()) > 5  # they are not alike to begin with
    mean, matrix = whitening(3, 16, mirrored=mirrored)
    covariance = torch.cov(((rows - mean) @ matrix.mT).mT.double())
    values, before = (
        torch.linalg.eigvalsh(covariance),
        torch.linalg.eigvalsh(torch.corrcoef(rows.mT.double())),
    )
    assert float(before[-1] / before[len(before) // 2]) > 50
    assert float(values[-1]) < 1.6  # k / (k + 1) for each eigenvalue k of their correlations
    made = PinkWhiten(3, 16, mirrored=mirrored)(found.flatten(1, 2).half())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.flatten(1).mean(1), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.flatten(1).var(1, unbiased=False), torch.ones(64), atol=1e-2, rtol=0)
    alone = PinkWhiten(3, 16, mirrored=mirrored)(found[:1].flatten(1, 2).half())
    torch.testing.assert_close(alone, made[:1], atol=1e-4, rtol=1e-4)  # each image by itself


def test_constants_are_kept_with_the_weights():
    layer = PinkWhiten(1, 16, mirrored=False)
    assert set(layer.state_dict()) == {"mean", "matrix"} and not list(layer.parameters())
