"""Backbones of timm and torchvision: what their libraries give on the same pixels. Random weights: no hub."""

import numpy as np
import pytest
import torch

from reticent.errors import ConfigError
from reticent.recipes.features._backbones import load_backbone

pytestmark = pytest.mark.vision


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The libraries' own code, with random weights in the place of those of a hub."""
    timm = pytest.importorskip("timm")
    models = pytest.importorskip("torchvision.models")
    make, get = timm.create_model, models.get_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: make(name, **more))
    monkeypatch.setattr(models, "get_model", lambda name, weights: get(name, weights=None))


def load(name, size=64):
    torch.manual_seed(0)
    return load_backbone(name, kind="images", size=size, max_length=None, report=print, progress=False)


def pixels(n=3):
    return np.random.default_rng(1).integers(0, 256, size=(n, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("timm:resnet18", 512), ("timm:vit_tiny_patch16_224", 192), ("torchvision:resnet18", 512)],
)
def test_features_are_those_of_the_library_on_scaled_pixels(name, dim):
    backbone = load(name, size=224 if "vit" in name else 64)
    images = pixels()
    with torch.no_grad():
        found = backbone.encode(images)
        assert found.shape == (3, dim) and torch.isfinite(found).all()
        mean, std = (torch.tensor(backbone.preprocess[k], dtype=torch.float32) for k in ("mean", "std"))
        x = torch.tensor(images, dtype=torch.float32).sub(mean).div(std).permute(0, 3, 1, 2)
        side = backbone.preprocess["size"]
        if side != 64:
            x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        assert torch.allclose(found, backbone.model(x), atol=1e-4)
        alone = torch.cat([backbone.encode(images[i : i + 1]) for i in range(3)])
    assert torch.allclose(found, alone, atol=1e-4)  # BatchNorm is frozen: a row's features are its own
    assert not any(p.requires_grad for p in backbone.model.parameters()) and not backbone.model.training


def test_pixels_are_scaled_as_each_library_says():
    import timm

    wanted = timm.data.resolve_model_data_config(timm.create_model("resnet18", pretrained=False))
    assert load("timm:resnet18").preprocess["mean"] == pytest.approx([255 * m for m in wanted["mean"]])
    assert load("torchvision:resnet18").preprocess["std"] == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize("name", ["timm:no_such_model", "torchvision:no_such_model"])
def test_a_name_that_the_library_does_not_know_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert caught.value.code == "backbone-unknown"
