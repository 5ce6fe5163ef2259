"""What a network's head is, and that it is made anew, kept or trained alone as asked for."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from reticent.errors import ConfigError, UnsupportedModel
from reticent.recipes import go_on, recipes, request, run
from reticent.recipes._parts import build_model
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._start import head_of, start

PUBLIC = 0.125  # every weight of a fake library's


class Fake(nn.Module):
    """A network as timm makes them: it says itself what its classifier is."""

    def __init__(self, num_classes: int, kind: str) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.kind = kind
        self.head = nn.Conv2d(4, num_classes, 1) if kind == "convolution" else nn.Linear(4, num_classes)
        if kind in ("tuple", "list"):
            self.head_dist = nn.Linear(4, num_classes)
        self.gate = nn.Linear(4, 4)  # the last linear layer, and no head

    def get_classifier(self) -> Any:
        if self.kind in ("tuple", "list"):
            return (tuple if self.kind == "tuple" else list)((self.head, self.head_dist))
        return self.head

    def forward(self, x):
        h = self.gate(torch.relu(self.stem(x.mean((2, 3)))))
        if self.kind == "convolution":
            return self.head(h[:, :, None, None]).flatten(1)
        return self.head(h) + (self.head_dist(h) if self.kind in ("tuple", "list") else 0.0)


@pytest.fixture
def timm(monkeypatch):
    """A module in timm's place, whose networks are fakes with heads of ten public classes."""
    made = []

    def create_model(name, *, pretrained, num_classes, in_chans):
        body = Fake(num_classes, name)
        body.pretrained_cfg = {"num_classes": 10}
        if pretrained:
            with torch.no_grad():
                for name, p in body.named_parameters():
                    if num_classes == 10 or not name.startswith("head"):
                        p.fill_(PUBLIC)
        made.append(pretrained)
        return body

    data = SimpleNamespace(resolve_model_data_config=lambda _: {"mean": [0.5] * 3, "std": [0.5] * 3})
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data))
    return made


HEADS = {
    "linear": {"head"},
    "convolution": {"head"},
    "tuple": {"head", "head_dist"},
    "list": {"head", "head_dist"},
}


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_timm_is_all_that_it_calls_its_classifier(kind):
    model = nn.Sequential(nn.Identity(), Fake(2, kind))
    assert set(head_of(model)) == {f"1.{name}" for name in HEADS[kind]}
    model = start(model, weights=None, reset_head=True, train_only="head")
    assert trained(model) == {f"1.{name}.{of}" for name in HEADS[kind] for of in ("weight", "bias")}


class Wrapped(nn.Module):
    """As classifiers of transformers are: a base that others share, and what is beside it."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.1)
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(()))


def test_the_head_of_transformers_is_all_beside_the_base():
    assert set(head_of(nn.Sequential(Wrapped()))) == {"0.norm", "0.one", "0.two", "0.scale"}
    model = start(nn.Sequential(Wrapped()), weights=None, reset_head=True, train_only="head, 0.body.bias")
    assert set(dict(model.named_parameters())) - trained(model) == {"0.body.weight"}
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    assert head_of(transformers.ViTForImageClassification(config)) == ("classifier",)


def test_the_head_of_another_network_is_its_last_linear_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.ReLU())
    assert head_of(model) == ("1",)
    with pytest.raises(UnsupportedModel, match="no linear layer") as e:
        head_of(nn.Conv2d(3, 4, 1))
    assert e.value.code == "no-head"


def test_a_network_without_a_head_is_trained_whole():
    model = start(nn.Sequential(nn.Conv2d(3, 4, 1)), weights=None, reset_head=False, train_only="*")
    assert trained(model) == {"0.weight", "0.bias"}
    with pytest.raises(UnsupportedModel, match="no linear layer"):
        start(nn.Sequential(nn.Conv2d(3, 4, 1)), weights=None, reset_head=False, train_only="head")


@pytest.mark.parametrize("kind", ["tuple", "convolution"])
def test_weights_from_a_file_leave_every_part_of_the_head_as_it_is_made(tmp_path, kind):
    save_file(
        {name: torch.full_like(t, 7.0) for name, t in Fake(5, kind).state_dict().items()}, tmp_path / "w"
    )
    model = start(Fake(2, kind), weights=str(tmp_path / "w"), reset_head=True, train_only="*")
    kept = {name for name, t in model.state_dict().items() if bool((t == 7.0).all())}
    assert kept == {f"{name}.{of}" for name in ("stem", "gate") for of in ("weight", "bias")}
    with pytest.raises(ConfigError, match="of another shape"):
        start(Fake(2, kind), weights=str(tmp_path / "w"), reset_head=False, train_only="*")


def built(*settings):
    recipe: Any = recipes()["cifar10"]
    return build_model(recipe, request("cifar10", ["pretrained=true", *settings]).config)


@pytest.mark.parametrize("kind", HEADS)
def test_public_weights_of_as_many_classes_get_a_new_head_unless_the_old_one_is_asked_for(timm, kind):
    def public(model):
        return {name for name, p in model[1].named_parameters() if bool((p == PUBLIC).all())}

    everything = set(dict(Fake(10, kind).named_parameters()))
    head = {name for name in everything if name.split(".")[0] in HEADS[kind]}
    assert public(built(f"model=timm:{kind}")) == everything - head
    assert public(built(f"model=timm:{kind}", "reset_head=false")) == everything
    assert timm == [True, False, True]


def test_a_new_head_is_drawn_by_the_run_s_seed(timm):
    one, same, other = (built("model=timm:linear", f"seed={seed}")[1].head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_head_that_cannot_be_kept_is_refused(timm, tmp_path):
    with pytest.raises(ConfigError, match="has 10 classes, and the images have 3") as e:
        network("timm:linear", shape=(3, 8, 8), num_classes=3, pretrained=True, keep_head=True)
    assert e.value.code == "start-from"
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path)
    asked: Any = {"name": f"transformers:{tmp_path}", "shape": (3, 8, 8), "pretrained": True}
    kept: Any = network(**asked, num_classes=3, keep_head=True)
    assert torch.equal(kept[1].inner.classifier.weight, theirs.classifier.weight)
    with pytest.raises(ConfigError, match="does not fit 4 classes") as e:
        network(**asked, num_classes=4, keep_head=True)
    assert e.value.code == "start-from"
    assert network(**asked, num_classes=4) is not None


def test_reset_head_is_of_weights_that_a_run_begins_with():
    with pytest.raises(ConfigError, match="no start_from is given, and pretrained is false"):
        request("cifar10", ["reset_head=false"])
    assert not request("cifar10", ["model=timm:x", "pretrained=true", "reset_head=false"]).config.reset_head


def test_a_run_from_a_hub_s_weights_goes_on_without_the_hub(timm, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(20):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{k}.png")
    few = ["image_size=8", "expected_batch_size=12", "num_steps=2", "epsilon=8", "delta=1e-3"]
    settings = [f"data={tmp_path / 'images'}", "model=timm:linear", "pretrained=true", *few]
    result = run(request("vision-finetune", settings), out=tmp_path / "run")
    assert True in timm
    timm.clear()
    (tmp_path / "run" / "result.json").unlink()
    again = go_on(tmp_path / "run")
    assert {name: again[name] for name in ("scores", "pixels")} == {
        name: result[name] for name in ("scores", "pixels")
    }
    assert timm and True not in timm
