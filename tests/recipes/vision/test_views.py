"""Views of images: what they show, that they depend on their own image alone, and what they cost."""

import pytest
import torch

from reticent.errors import ConfigError
from reticent.recipes import request
from reticent.recipes.vision._augment import Views
from reticent.recipes.vision._layers import Pixels, WSConv2d
from reticent.recipes.vision._networks import network
from reticent.train._rows import refuse_mixing


def make(x, views, *, seed=0):
    return views((x, torch.arange(len(x))), torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_every_view_is_a_crop_of_the_mirrored_image_perhaps_flipped(shape):
    x = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    views = make(x, Views(multiplicity=7, pad=2))
    assert views.shape == (5, 7, *shape)
    assert views.dtype == torch.uint8
    for b in range(5):
        planes = x[b].reshape(6, 9, -1).movedim(-1, 0)[None].float()
        wide = torch.nn.functional.pad(planes, (2, 2, 2, 2), mode="reflect")[0].movedim(0, -1)
        crops = [wide[i : i + 6, j : j + 9].reshape(shape) for i in range(5) for j in range(5)]
        allowed = {tuple(c.flatten().tolist()) for crop in crops for c in (crop, crop.flip(1))}
        assert all(tuple(views[b, k].flatten().tolist()) in allowed for k in range(7))


def test_views_are_distinct_seeded_and_each_from_its_own_image():
    x = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    views = Views(multiplicity=16)
    a = make(x, views)
    assert torch.equal(a, make(x, views))
    assert not torch.equal(a, make(x, views, seed=1))
    assert len({tuple(v.flatten().tolist()) for v in a[0]}) > 8
    refuse_mixing((x, torch.arange(4)), views, seed=0)


def test_flips_are_half_of_the_views_and_crops_reach_every_offset():
    x = torch.arange(64, dtype=torch.uint8).view(1, 8, 8).expand(1000, 8, 8)
    flipped = make(x, Views(multiplicity=1, pad=0))[:, 0, 0, 0] == 7
    assert 430 < int(flipped.sum()) < 570  # 4.4 standard deviations: a false alarm in 1e5
    corners = make(x, Views(multiplicity=1, pad=2, flip=False))[:, 0, 4, 4]
    assert set(corners.tolist()) == {8 * i + j for i in range(2, 7) for j in range(2, 7)}


def test_no_crop_and_no_flip_is_the_image_itself():
    x = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    views = make(x, Views(multiplicity=2, pad=0, flip=False))
    assert torch.equal(views, x[:, None].expand(3, 2, 8, 8))


def test_pixels_are_scaled_by_constants():
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1)
    assert Pixels()(x).flatten().tolist() == [-2.0, 2.0]


def test_standardised_filters_have_no_mean_and_unit_norm_whatever_the_weight():
    conv = WSConv2d(3, 5, 3).double()
    with torch.no_grad():
        conv.weight.mul_(7.0).add_(2.0)
        conv.gain.copy_(torch.arange(1.0, 6.0))
    filters = conv.standardised().flatten(1)
    assert filters.mean(1).abs().max() < 1e-14
    torch.testing.assert_close(filters.norm(dim=1), conv.gain.detach())


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("wrn-15-4", (3, 32, 32), "unknown-model"),
        ("resnet", (3, 32, 32), "unknown-model"),
        ("tanh-cnn", (3, 16, 16), "model-input"),
        ("nf-resnet-50", (1, 64, 64), "model-input"),
        ("deep-tanh-cnn", (3, 28, 28), "model-input"),
    ],
)
def test_a_network_that_does_not_exist_or_fit_is_refused(name, shape, code):
    with pytest.raises(ConfigError, match=r"depth|No network|reads") as e:
        network(name, shape=shape, num_classes=10, features=False)
    assert e.value.code == code


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ConfigError, match="augmult is 0"):
        request("cifar10", ["flip=false"])
    with pytest.raises(ConfigError, match="set either"):
        request("cifar10-scattering", ["augmult=4"])
    with pytest.raises(ConfigError, match="no start_from"):
        request("cifar10", ["reset_head=false"])
