"""Views of images: what they show, that they depend on their own image alone, and what they cost."""

import colorsys
import itertools
import math
import sys
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reticent.clip import ClipEngine, fix
from reticent.errors import ConfigError, UnsupportedModel
from reticent.recipes import describe, request, run
from reticent.recipes._parts import asked_of, build_model, private_optimizer_of
from reticent.recipes.vision._augment import Views, recoloured, turned
from reticent.recipes.vision._layers import (
    ACTIVATIONS,
    Pixels,
    Scaled,
    SqueezeExcite,
    StochasticDepth,
    WSConv2d,
    variance_gain,
)
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._start import start
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


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_colours_change_within_their_share_and_view_by_view(shape):
    x = torch.randint(40, 160, (4, *shape), dtype=torch.uint8)
    views = make(x, Views(multiplicity=5, pad=0, flip=False, colour=0.2))
    assert views.shape == (4, 5, *shape) and views.dtype == torch.uint8
    assert len({tuple(v.flatten().tolist()) for v in views.flatten(0, 1)}) == 20
    brighter = views.float().flatten(2).mean(2) / x.float().flatten(1).mean(1, keepdim=True)
    assert 0.78 < float(brighter.min()) < 0.95 < 1.05 < float(brighter.max()) < 1.22
    refuse_mixing((x, torch.arange(4)), Views(multiplicity=2, colour=0.5), seed=0)


def test_brightness_contrast_and_saturation_are_blends_in_this_order():
    x = torch.tensor([[[[[100, 50, 200]], [[20, 30, 40]]]]], dtype=torch.uint8)  # one view of 2 x 1 pixels
    one = torch.ones(1, 1)
    assert recoloured(x, 0.5 * one, one, one).flatten().tolist() == [50, 25, 100, 10, 15, 20]
    assert torch.equal(recoloured(x, one, one, one), x)
    grey = (x.float() * torch.tensor([0.2989, 0.587, 0.114])).sum(-1)
    assert set(recoloured(x, one, 0 * one, one).flatten().tolist()) == {round(float(grey.mean()))}
    unsaturated = recoloured(x, one, one, 0 * one).flatten(0, 3)
    assert unsaturated.tolist() == [[round(float(g))] * 3 for g in grey.flatten()]
    assert recoloured(x, 2 * one, one, one).max() == 255


def test_hues_turn_as_the_standard_librarys_do():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 6, 5, 3), dtype=torch.uint8, generator=generator)
    x[0, 0, 0, 0] = 77  # grey has no hue
    turns = torch.rand((2, 3), generator=generator) - 0.5
    made = turned(x, turns)
    for b, k, i, j in itertools.product(range(2), range(3), range(6), range(5)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[b, k, i, j].double() / 255).tolist())
        expected = colorsys.hsv_to_rgb((hue + float(turns[b, k])) % 1.0, saturation, value)
        given = (255 * torch.tensor(expected, dtype=torch.float64) - made[b, k, i, j]).abs()
        assert float(given.max()) < 0.51
    assert torch.equal(turned(x, torch.zeros(2, 3)), x)


def test_hues_change_view_by_view_and_leave_grey_images_alone():
    x = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    views = make(x, Views(multiplicity=5, pad=0, flip=False, hue=0.2))
    assert len({tuple(v.flatten().tolist()) for v in views.flatten(0, 1)}) == 20
    assert torch.equal(views.amax(-1), x.amax(-1)[:, None].expand(4, 5, 6, 5))  # the value of HSV stays
    refuse_mixing((x, torch.arange(4)), Views(multiplicity=2, hue=0.5), seed=0)
    grey = torch.randint(0, 256, (4, 6, 5), dtype=torch.uint8)
    same = make(grey, Views(multiplicity=2, pad=0, flip=False, hue=0.5))
    assert torch.equal(same, grey[:, None].expand(4, 2, 6, 5))


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


def test_scaled_activations_have_variance_one_on_standard_normal_numbers():
    assert variance_gain(torch.nn.ReLU()) == pytest.approx((2 / (1 - 1 / math.pi)) ** 0.5, rel=1e-6)
    assert variance_gain(torch.nn.Identity()) == pytest.approx(1, rel=1e-6)
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for make in ACTIVATIONS.values():
        assert float(Scaled(make())(z).std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("wrn-15-4", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-nonsense", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-nonorm-layernorm", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-gelu-tanh", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-glu", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-logsoftmax-scaled", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-dropout1.0", (3, 32, 32), "unknown-model"),
        ("wrn-16-4-dropout0.1-dropout0.2", (3, 32, 32), "unknown-model"),
        ("nf-resnet-50-dropout2", (3, 64, 64), "unknown-model"),
        ("nf-resnet-50-gelu", (3, 64, 64), "unknown-model"),
        ("wrn-16-4-plain-plain", (3, 32, 32), "unknown-model"),
        ("resnet", (3, 32, 32), "unknown-model"),
        ("tanh-cnn", (3, 16, 16), "model-input"),
        ("nf-resnet-50", (1, 64, 64), "model-input"),
        ("deep-tanh-cnn", (3, 28, 28), "model-input"),
    ],
)
def test_a_network_that_does_not_exist_or_fit_is_refused(name, shape, code):
    with pytest.raises(ConfigError, match=r"depth|No network|reads|Add -layernorm|Leave -scaled") as e:
        network(name, shape=shape, num_classes=10)
    assert e.value.code == code


def test_a_crop_of_more_than_the_image_is_refused():
    few = ["image_size=8", "augmult=1", "epsilon=8"]
    with pytest.raises(ConfigError, match="mirrors more than an image of 8 pixels") as caught:
        request("vision-scratch", [*few, "crop_pad=8"])
    assert caught.value.code == "config"
    assert request("vision-scratch", [*few, "crop_pad=7"]).config.crop_pad == 7


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ConfigError, match="augmult is 0"):
        request("cifar10", ["flip=false"])
    with pytest.raises(ConfigError, match="set either"):
        request("cifar10-scattering", ["augmult=4"])
    with pytest.raises(ConfigError, match="no start_from"):
        request("cifar10", ["reset_head=false"])
    with pytest.raises(ConfigError, match="pretrained is a setting of timm"):
        request("cifar10", ["pretrained=true"])
    with pytest.raises(ConfigError, match="set either, not both"):
        request("cifar10", ["model=timm:x", "pretrained=true", "start_from=a.safetensors"])


def test_a_wide_resnet_s_parts_are_left_out_by_name():
    def kinds(name):
        made = network(name, shape=(3, 8, 8), num_classes=2)
        return {type(m).__name__ for m in made.modules()}

    assert {"WSConv2d", "GroupNorm"} <= kinds("wrn-10-1") and "SkipGain" not in kinds("wrn-10-1")
    other = kinds("wrn-10-1-layernorm-gelu-scaled-noskip")
    assert {"GroupNorm", "GELU", "Scaled"} <= other and "ReLU" not in other
    whole, branches = (network(f"wrn-10-1{more}", shape=(3, 8, 8), num_classes=2) for more in ("", "-noskip"))
    assert {
        n for n in whole.state_dict() if ".skip." in n
    } == whole.state_dict().keys() - branches.state_dict().keys()
    assert all(
        m.num_groups == 1
        for m in network("wrn-10-1-layernorm", shape=(3, 8, 8), num_classes=2).modules()
        if isinstance(m, torch.nn.GroupNorm)
    )
    bare = kinds("wrn-10-1-nonorm-plain-skipinit")
    assert not bare & {"WSConv2d", "GroupNorm"} and "SkipGain" in bare


def test_layers_that_draw_at_random_are_asked_for_by_name():
    plain = network("wrn-10-1", shape=(3, 8, 8), num_classes=2)
    dropped = network("wrn-10-1-dropout0.3", shape=(3, 8, 8), num_classes=2)
    assert [m.p for m in dropped.modules() if isinstance(m, torch.nn.Dropout)] == [0.3] * 3
    assert dropped.state_dict().keys() != plain.state_dict().keys()  # their places moved by one
    assert sum(p.numel() for p in dropped.parameters()) == sum(p.numel() for p in plain.parameters())
    deep = network("nf-resnet-50-se-stochdepth0.16-dropout0.25", shape=(3, 32, 32), num_classes=2)
    rates = [m.rate for m in deep.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.01 * place for place in range(16)])
    assert [m.p for m in deep.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]
    assert sum(isinstance(m, SqueezeExcite) for m in deep.modules()) == 16


@pytest.mark.parametrize("side", [33, 40, 100])
def test_an_nf_resnet_reads_images_of_any_size_from_32(side):
    made = network("nf-resnet-50", shape=(3, side, side), num_classes=2)
    assert made(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape == (1, 2)


def updated(max_norm, **settings):
    """Weights after one update of a gradient of norm `max_norm` times a unit one."""
    given = [f"{name}={value}" for name, value in settings.items()]
    recipe, config = asked_of(request("mnist", [f"max_norm={max_norm}", "momentum=0.5", "lr=0.3", *given]))
    model = build_model(recipe, config)
    optimizer = private_optimizer_of(model, config)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.01 * max_norm)
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_rescaled_updates_do_not_depend_on_the_clipping_norm():
    settings = {"rescale": "true", "weight_decay": 0.5, "agc": 0.02}
    one, other = updated(1.0, **settings), updated(0.01, **settings)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(one, updated(0.01, **settings | {"rescale": "false"}), atol=1e-5)


def test_rescaling_updates_of_adam_is_refused():
    with pytest.raises(ConfigError, match="rescale is a setting of sgd"):
        request("cifar10-wrn-16-4-eps1", ["optimizer=adam"])


def test_a_fine_tuning_run_needs_weights(tmp_path):
    with pytest.raises(ConfigError, match="fine-tunes public weights") as caught:
        run(request("cifar100-wrn-28-10-eps1", [f"data={tmp_path}"]), out=tmp_path / "run")
    assert caught.value.code == "start-from"


def test_stochastic_depth_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.randn(4000, 2, 1, 3).double()
    y = layer(x)
    kept = (y != 0).all((1, 2, 3))
    assert bool(((y == 0).all((1, 2, 3)) | kept).all())
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=0.03)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("name", ["wrn-10-1-dropout0.3", "nf-resnet-50-se-stochdepth0.5-dropout0.25"])
def test_layers_that_draw_at_random_keep_images_apart(name):
    torch.manual_seed(0)
    model = network(name, shape=(3, 32, 32), num_classes=3).train()
    rows = (torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 0]))

    def losses(batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    engine = ClipEngine(model, max_norm=1e-3)
    engine.check(losses, rows)
    answer = engine.clipped_sum(losses, rows)
    size = sum(float(g.double().square().sum()) for g in answer.total.values()) ** 0.5
    assert 0 < size <= 4e-3 * (1 + 1e-5)


def test_a_network_of_a_library_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm") as e:
        network("timm:vit_tiny_patch16_224", shape=(3, 32, 32), num_classes=2)
    assert e.value.code == "unknown-model"


def test_batch_normalisation_is_refused_unless_something_is_said_of_it():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    settings: Any = {"weights": None, "reset_head": True, "train_only": "*"}
    with pytest.raises(UnsupportedModel, match="batch_norm = freeze") as e:
        start(model, **settings)
    assert e.value.code == "batch-norm"
    kinds = [type(m).__name__ for m in start(model, **settings, batch_norm="freeze").children()]
    assert kinds == ["Linear", "FrozenBatchNorm", "Linear"]
    replaced = start(model, **settings, batch_norm="group-norm").get_submodule("1")
    assert type(replaced).__name__ == "GroupNorm"


@pytest.mark.parametrize("choice", ["group-norm", "freeze"])
def test_a_word_on_batch_normalisation_is_refused_where_there_is_none(tmp_path, choice):
    asked = request("cifar10", [f"batch_norm={choice}", "start_from=w", "model=small-cnn"])
    for act in (describe, partial(run, out=tmp_path / "run")):  # before data are read
        with pytest.raises(ConfigError, match=f"batch_norm = {choice} would be ignored") as e:
            act(asked)
        assert e.value.code == "config"
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))  # of an older version's run
    assert start(model, weights=None, reset_head=True, train_only="*", batch_norm=choice) is model


def test_statistics_that_came_with_no_weights_are_not_frozen():
    with pytest.raises(
        ConfigError, match=r"mean 0 and variance 1.*group-norm.*pretrained or start_from"
    ) as e:
        request("cifar10", ["model=timm:x", "batch_norm=freeze"])
    assert e.value.code == "config"
    for more in ("pretrained=true", "start_from=w", "batch_norm=group-norm"):
        assert request("cifar10", ["model=timm:x", "batch_norm=freeze", more]) is not None


@pytest.mark.parametrize("setting", ["mirror=true", "standardise=pink-noise"])
def test_settings_of_scattering_are_refused_where_pixels_are_read(setting):
    with pytest.raises(ConfigError, match=f"{setting.split('=')[0]}.* is a setting of features") as e:
        request("cifar10", [setting])
    assert e.value.code == "config"
    assert request("cifar10", [setting, "features=scattering", "model=linear"]) is not None


def test_weights_fit_before_batch_normalisation_is_replaced_and_after(tmp_path):
    def fresh():
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    first = fresh()
    first.get_buffer("1.running_mean").fill_(0.5)
    for name, saved in (("before", first), ("after", fix(first, batch_norm="freeze"))):
        path = tmp_path / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in saved.state_dict().items()}, path)
        made = start(fresh(), weights=str(path), reset_head=False, train_only="*", batch_norm="freeze").eval()
        x = torch.randn(5, 3)
        torch.testing.assert_close(made(x), first.eval()(x))
