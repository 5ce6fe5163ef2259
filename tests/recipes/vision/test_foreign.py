"""Networks of timm and transformers as private classifiers, and our views against torchvision's."""

import json
import shutil
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reticent.clip import ClipEngine
from reticent.errors import ConfigError, UnsupportedModel
from reticent.recipes import describe, go_on, load_model, recipes, request, run
from reticent.recipes._parts import build_model
from reticent.recipes.features import _backbones
from reticent.recipes.vision._augment import Views, mean_over_views, recoloured
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._start import head_of, start
from reticent.train import load_tensors
from tests.support.case import Problem
from tests.support.judge import assert_close, assert_no_row_moves_the_sum, median_norm
from tests.support.oracle import loop_clipped_sum_of_views

pytestmark = pytest.mark.vision

FOREIGN = ("test_nfnet", "test_vit", "test_convnext", "transformers")


@pytest.mark.parametrize(
    ("name", "side", "millions"),
    [
        ("nf_resnet50", 224, 25.56),
        ("dm_nfnet_f0", 192, 71.49),
        ("dm_nfnet_f1", 224, 132.63),
        ("dm_nfnet_f2", 256, 193.78),
        ("dm_nfnet_f3", 320, 254.92),
        ("vit_tiny_patch16_224", 224, 5.72),
        ("vit_base_patch16_224", 224, 86.57),
    ],
)
def test_networks_have_their_published_sizes(name, side, millions):
    with torch.device("meta"):
        model = network(f"timm:{name}", shape=(3, side, side), num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("views", [1, 4, 16])
@pytest.mark.parametrize("name", FOREIGN)
def test_per_example_gradients_are_those_of_the_loop(name, views, tiny_vit):
    p = problem_of(name, views, tiny_vit)
    max_norm = median_norm(p)
    total, norms = loop_clipped_sum_of_views(p.model, p.batch, max_norm)
    engine = ClipEngine(p.model, max_norm=max_norm)
    engine.check(p.losses, p.batch)
    assert_close(engine.clipped_sum(p.losses, p.batch), total, norms, max_norm=max_norm, tolerance=1e-12)


@pytest.mark.parametrize("views", [1, 4, 16])
@pytest.mark.parametrize("name", FOREIGN)
def test_no_image_moves_the_sum_beyond_the_bound_however_many_views(name, views, tiny_vit):
    assert_no_row_moves_the_sum(problem_of(name, views, tiny_vit))


def problem_of(name, views, tiny_vit):
    torch.manual_seed(0)
    named = f"transformers:{tiny_vit}" if name == "transformers" else f"timm:{name}"
    model = network(named, shape=(3, 32, 32), num_classes=3).double().eval()
    x = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    x, y = Views(multiplicity=views)((x, torch.tensor([0, 1, 2])), torch.Generator().manual_seed(1))
    each = mean_over_views(lambda m, rows: F.cross_entropy(m(rows[0]), rows[1], reduction="none"))
    return Problem(model=model, losses=lambda batch: each(model, batch), batch=(x.double(), y))


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory):
    """A folder as `save_pretrained` writes it."""
    transformers = import_module("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(7)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for low, name in ((0, "dark"), (128, "light")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)).save(
                    place / f"{k}.png"
                )
    return tmp_path / "images"


def asked_for(folder, model, *more) -> Any:
    few = ["expected_batch_size=12", "num_steps=2", "epsilon=8", "delta=1e-3"]
    fine = "pretrained=true" in more
    settings = [f"data={folder}", f"model={model}", *few, *more]
    return request("vision-finetune" if fine else "vision-scratch", settings)


def test_public_weights_of_transformers_are_fine_tuned_head_first(tmp_path, folder, tiny_vit):
    transformers = import_module("transformers")
    asked = asked_for(folder, f"transformers:{tiny_vit}", "pretrained=true")
    shown = describe(asked)
    assert shown["num_trained"] == 16 * 2 + 2
    theirs = transformers.ViTForImageClassification.from_pretrained(tiny_vit).state_dict()
    recipe: Any = recipes()["vision-finetune"]
    ours = build_model(recipe, asked.config).state_dict()
    shared = {name for name in theirs if not name.startswith("classifier")}
    assert all(torch.equal(ours[f"1.inner.{name}"], theirs[name]) for name in shared)
    result = run(asked, out=tmp_path / "run")
    assert result["private"] and result["epsilon"] <= 8.0


@pytest.mark.parametrize("keep", [True, False])
def test_public_weights_of_as_many_classes_keep_their_head_only_if_asked_to(tmp_path, folder, keep):
    transformers = import_module("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path / "vit")
    more = ["reset_head=false"] if keep else []
    asked = asked_for(folder, f"transformers:{tmp_path / 'vit'}", "pretrained=true", *more)
    recipe: Any = recipes()["vision-finetune"]
    ours: Any = build_model(recipe, asked.config)
    assert torch.equal(ours[1].inner.vit.layernorm.weight, theirs.vit.layernorm.weight)
    assert torch.equal(ours[1].inner.classifier.weight, theirs.classifier.weight) is keep


@pytest.mark.parametrize(
    ("name", "side", "head"),
    [
        ("deit_tiny_distilled_patch16_224", 224, {"1.head", "1.head_dist"}),
        ("resnetv2_50x1_bit", 224, {"1.head.fc"}),  # a convolution
        ("vit_tiny_patch16_224", 224, {"1.head"}),
        ("test_nfnet", 32, {"1.head.fc"}),
        ("test_convnext", 32, {"1.head.fc"}),
    ],
)
def test_the_head_is_what_timm_calls_the_classifier(name, side, head):
    with torch.device("meta"):
        model = network(f"timm:{name}", shape=(3, side, side), num_classes=7)
    assert set(head_of(model)) == head
    model = start(model, weights=None, reset_head=True, train_only="head")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[0] for n in trained} == head


def test_a_network_of_timm_trains_all_its_layers_in_views(tmp_path, folder):
    asked = asked_for(folder, "timm:test_nfnet", "train_only=*", "augmult=2", "physical_batch_size=8")
    shown = describe(asked)
    assert shown["num_trained"] == shown["num_parameters"] and shown["operations"] > 0
    result = run(asked, out=tmp_path / "run")
    assert result["epsilon"] <= 8.0 and [*result["pixels"]] == ["mean", "std"]
    found = load_model(tmp_path / "run").predict(folder / "test")
    assert found.accuracy == result["test_accuracy"]


@pytest.fixture
def saved(tmp_path):
    """A function that writes the weights of one of timm's networks as its library does, with statistics."""

    def write(name):
        from safetensors.torch import save_file

        torch.manual_seed(3)
        model = import_module("timm").create_model(name, num_classes=9)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
                    module.momentum = 1.0
            model.train()(torch.rand((16, 3, 32, 32)))
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        return model.eval(), str(tmp_path / f"{name}.safetensors")

    return write


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("choice", ["group-norm", "freeze"])
def test_a_network_whose_batch_normalisation_was_replaced_predicts_as_it_was_scored(
    tmp_path, folder, saved, choice, name
):
    weights = [f"start_from={saved(name)[1]}"] if choice == "freeze" else []
    result = run(asked_for(folder, f"timm:{name}", f"batch_norm={choice}", *weights), out=tmp_path / "run")
    found = load_model(tmp_path / "run").predict(folder / "test")
    assert found.accuracy == result["test_accuracy"]


def test_batch_normalisation_is_refused_converted_or_frozen(folder, saved):
    recipe: Any = recipes()["vision-scratch"]
    with pytest.raises(UnsupportedModel, match="batch_norm = group-norm") as e:
        build_model(recipe, asked_for(folder, "timm:test_resnet").config)
    assert e.value.code == "batch-norm"
    for choice in ("group-norm", "freeze"):
        weights = f"start_from={saved('test_resnet')[1]}"
        asked = asked_for(folder, "timm:test_resnet", f"batch_norm={choice}", weights, "train_only=*")
        model = build_model(recipe, asked.config)
        assert not [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        rows, losses = recipe.random_rows(asked.config, 3), recipe.loss_per_example(asked.config)
        engine = ClipEngine(model, max_norm=1.0)
        engine.check(partial(losses, model), rows)  # no image reaches another


# timm's layers of batch normalisation run an activation, but for ResNets'.
@pytest.mark.parametrize(
    "name", ["test_resnet", "efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002", "densenet121"]
)
def test_a_library_s_own_file_of_weights_is_taken_by_its_names(saved, name):
    theirs, weights = saved(name)
    model = network(f"timm:{name}", shape=(3, 32, 32), num_classes=2).double()
    made: Any = start(model, weights=weights, reset_head=True, train_only="head", batch_norm="freeze").eval()
    scaled = made[0](torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)).double()
    torch.testing.assert_close(
        made[1].forward_features(scaled), theirs.double().forward_features(scaled), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("choice", ["group-norm", "freeze"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3_small_050"])
def test_activations_of_timm_s_normalising_layers_are_kept(saved, name, choice):
    theirs, weights = saved(name)
    kinds = {n: m for n, m in theirs.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    acts = {n: type(m.act) for n, m in kinds.items()}  # all of them have one, if only the identity
    assert len({*acts.values()}) > 1
    model = network(f"timm:{name}", shape=(3, 32, 32), num_classes=2)
    settings: Any = {"weights": weights, "reset_head": True, "train_only": "*"}
    made: Any = start(model, **settings, batch_norm=choice).eval()
    assert {n: type(made[1].get_submodule(f"{n}.act")) for n in acts} == acts
    x, y = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8), torch.tensor([0, 1])

    def losses(rows):
        return F.cross_entropy(made(rows[0]), rows[1], reduction="none")

    ClipEngine(made, max_norm=1.0).check(losses, (x, y))  # activations in place, too


@pytest.mark.parametrize(
    ("setting", "told"), [("image_size", "position_embeddings"), ("intermediate_size", "layer")]
)
def test_weights_that_leave_more_than_the_head_to_chance_are_refused(tmp_path, tiny_vit, setting, told):
    place = tmp_path / "edited"
    shutil.copytree(tiny_vit, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, setting: 2 * config[setting]}))
    side = 64 if setting == "image_size" else 32
    made: Any = {
        "name": f"transformers:{place}",
        "shape": (3, side, side),
        "num_classes": 2,
    }
    assert network(**made) is not None  # all of it random, as asked for
    with pytest.raises(ConfigError, match=f"lack .* beside the head.*{told}") as e:
        network(**made, pretrained=True)
    assert e.value.code == "start-from"


def test_a_size_that_does_not_fit_and_a_name_that_is_none_are_refused(tiny_vit):
    with pytest.raises(ConfigError, match="cannot read images of 48 x 48") as e:
        network(f"transformers:{tiny_vit}", shape=(3, 48, 48), num_classes=2)
    assert e.value.code == "model-input"
    with pytest.raises(ConfigError, match="timm gives no network for 'timm:nothing'") as e:
        network("timm:nothing", shape=(3, 32, 32), num_classes=2)
    assert e.value.code == "unknown-model"


def test_code_in_a_folder_of_transformers_is_not_run(tmp_path, monkeypatch):
    """The library would ask at the terminal, in the middle of `reticent predict`, and run it on a yes."""
    auto = {"AutoConfig": "configuration_mine.MineConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    code = f"open({str(tmp_path / 'was-run')!r}, 'w')\nclass MineConfig: ...\n"
    (tmp_path / "configuration_mine.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="contains custom code"):
        network(f"transformers:{tmp_path}", shape=(3, 32, 32), num_classes=2)
    assert not (tmp_path / "was-run").exists()


def test_views_are_what_torchvision_makes_of_the_same_draws():
    tv = import_module("torchvision.transforms.v2.functional")

    x = torch.randint(0, 256, (2, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views, _ = Views(multiplicity=3, pad=4)((x, torch.zeros(2)), torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    down, right = (torch.randint(-4, 5, (2, 3), generator=draws) for _ in range(2))
    flipped = torch.rand((2, 3), generator=draws) < 0.5
    for b in range(2):
        wide = tv.pad(x[b].permute(2, 0, 1), [4, 4, 4, 4], padding_mode="reflect")
        for k in range(3):
            view = tv.crop(wide, 4 + int(down[b, k]), 4 + int(right[b, k]), 12, 10)
            view = tv.horizontal_flip(view) if flipped[b, k] else view
            assert torch.equal(views[b, k].permute(2, 0, 1), view)


def test_colours_change_as_torchvision_changes_them():
    tv = import_module("torchvision.transforms.v2.functional")

    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8, generator=generator)
    factors = 0.5 + torch.rand((3, 2, 3), generator=generator)
    made = recoloured(x, *factors)
    for b in range(2):
        for k in range(3):
            image = x[b, k].permute(2, 0, 1).float() / 255
            image = tv.adjust_brightness(image, float(factors[0, b, k]))
            image = tv.adjust_contrast(image, float(factors[1, b, k]))
            image = 255 * tv.adjust_saturation(image, float(factors[2, b, k]))
            assert (made[b, k].permute(2, 0, 1).float() - image).abs().max() < 0.51


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:resnet18"])
def test_backbones_of_both_libraries_give_features(name, monkeypatch):
    """Their weights are on hubs, so random ones stand in."""
    timm, torchvision = import_module("timm"), import_module("torchvision")
    make, get = timm.create_model, torchvision.models.get_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **more: make(name, **{**more, "pretrained": False})
    )
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: get(name))
    backbone = _backbones.load_backbone(
        name, kind="images", size=None, max_length=None, report=print, progress=False
    )
    with torch.no_grad():
        made = backbone.encode(np.zeros((2, 32, 32, 3), dtype=np.uint8))
    assert made.shape[0] == 2 and made.ndim == 2 and torch.equal(made[0], made[1])
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_run_from_public_weights_goes_on_without_them(tmp_path, folder, tiny_vit, dtype):
    """Of a folder in half precision too: what a checkpoint holds is float32."""
    transformers = import_module("transformers")
    place, out = tmp_path / "vit", tmp_path / "run"
    transformers.ViTForImageClassification.from_pretrained(tiny_vit, dtype=dtype).save_pretrained(place)
    asked = asked_for(folder, f"transformers:{place}", "pretrained=true", "train_only=*")
    result = run(asked, out=out)
    left = load_tensors(out / "ema.safetensors")[0]
    assert all(t.dtype == torch.float32 for t in left.values())
    (out / "result.json").unlink()
    (place / "model.safetensors").unlink()
    again = go_on(out)
    later = {"seconds": 0, "ledger_head": "", "weights_sha256": {}}  # files say their place in the ledger
    assert {**again, **later} == {**result, **later}
    now = load_tensors(out / "ema.safetensors")[0]
    assert all(torch.equal(now[name], t) and now[name].dtype == t.dtype for name, t in left.items())
