"""Two steps of every published recipe and of every one on scattering features, on made-up data.

Data sets are in their authors' layout but smaller, and recipes are told so: that number is no setting.
Networks, sizes of images, noise, clipping and averages are as published, but for ImageNet's 224 pixels, which
are 32, and CIFAR-100's WRN-28-10, which is as wide and 10 layers deep. Batches are of 6 images in two views
where the recipe has more of either.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from reticent.data import ArrayPair
from reticent.recipes import load_model, recipes, request, run
from reticent.recipes._parts import asked_of, build_model
from reticent.recipes._table import _WHERE
from reticent.recipes.vision import published
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._recipe import VisionRecipe
from reticent.train import load_tensors
from tests.support.made_up import made_up

SIZE, TEST = 40, 6
PUBLISHED = sorted(recipe.name for recipe in vars(published).values() if isinstance(recipe, VisionRecipe))
SCATTERING = ["mnist-scattering", "fashion-mnist-scattering", "cifar10-scattering"]
SLOW = ("cifar10-wrn-", "cifar10-scattering", "cifar100-", "imagenet-")  # on a processor


@pytest.fixture
def small(monkeypatch):
    """A function that makes a recipe's training set one of `SIZE` examples."""

    def shrink(name):
        module, attribute = _WHERE[name]
        kept: Any = recipes()[name]
        classes = {"num_classes": 2, "spare": 0} if name.startswith("imagenet") else {}
        monkeypatch.setattr(
            import_module(f"reticent.recipes.{module}"), attribute, replace(kept, size=SIZE, **classes)
        )

    return shrink


def images(count, shape, rng):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def in_memory(name, shape, rng):
    """What `reticent.data.load` gives."""
    pairs = [ArrayPair(images(n, shape, rng), rng.integers(0, 10, n)) for n in (SIZE, TEST)]
    return made_up(name, *pairs)


def write_cifar100(folder, rng):
    for name, count in (("train", SIZE), ("test", TEST)):
        labels = np.stack([rng.integers(0, high, count, dtype=np.uint8) for high in (20, 100)], 1)
        rows = np.concatenate([labels, images(count, (3072,), rng)], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def write_svhn(folder, rng):
    for name, count in (("train", SIZE), ("test", TEST)):
        y = rng.integers(1, 11, (count, 1), dtype=np.uint8)
        savemat(
            folder / f"{name}_32x32.mat", {"X": np.moveaxis(images(count, (32, 32, 3), rng), 0, -1), "y": y}
        )


def write_classes(folder, rng):
    for split, count in (("train", SIZE // 2), ("test", TEST // 2)):
        for wnid in ("n01440764", "n01443537"):
            (folder / split / wnid).mkdir(parents=True)
            for k in range(count):
                Image.fromarray(images(1, (40, 50, 3), rng)[0]).save(folder / split / wnid / f"{k}.png")


def material(name, folder, rng):
    """Data as the recipe takes them: in memory, or settings that name files."""
    folder.mkdir()
    if name == "svhn":
        write_svhn(folder, rng)
    elif name.startswith("cifar100"):
        write_cifar100(folder, rng)
    elif name.startswith("imagenet"):
        write_classes(folder, rng)
    else:
        recipe: Any = recipes()[name]
        channels, *shape = recipe.shape
        return in_memory(recipe.dataset, (*shape, channels) if channels > 1 else tuple(shape), rng), []
    return None, [f"data={folder}"]


def first_weights(path):
    """Of another data set with ten classes, which may be public."""
    model = network("wrn-10-10", shape=(3, 32, 32), num_classes=10)
    save_file(model.state_dict(), path)
    return ["model=wrn-10-10", f"start_from={path}"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith(SLOW)) for n in PUBLISHED + SCATTERING],
)
def test_a_recipe_trains(tmp_path, monkeypatch, small, name, seeded):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    small(name)
    data, given = material(name, tmp_path / "data", np.random.default_rng(0))
    given += ["num_steps=2", "expected_batch_size=6", "eval_every=1"]
    given += ["augmult=2"] if request(name).config.augmult else []
    given += ["image_size=32"] if name.startswith("imagenet") else []
    given += ["lr=0.1"] if name.endswith("-tan") else []  # at 32 six images diverge
    given += first_weights(tmp_path / "first.safetensors") if name.startswith("cifar100") else []
    asked = request(name, given)
    config: Any = asked.config
    result = run(asked, out=tmp_path / "run", data=data)
    assert result["private"] is True and result["num_steps"] == 2
    assert 0 < result["epsilon"] <= config.epsilon
    assert result["weights"] == "ema" and 0 <= result["test_accuracy"] <= 1 and result["test_loss"] > 0
    before = build_model(*asked_of(asked))
    for file in ("weights", "ema"):
        after = load_tensors(tmp_path / "run" / f"{file}.safetensors")[0]
        assert after.keys() == before.state_dict().keys()
        assert all(bool(t.isfinite().all()) for t in after.values())
        assert not [n for n, p in before.named_parameters() if torch.equal(after[n], p)]  # noise moves all
    assert load_model(tmp_path / "run").recipe == name
