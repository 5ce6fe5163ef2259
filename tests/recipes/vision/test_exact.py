"""Every network's clipped sum against the loop in float64, with one and with several views of an image.

The loop takes one view at a time: nothing of ours but the model's forward is in it."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from reticent.clip import ClipEngine
from reticent.recipes.vision._augment import Views, mean_over_views
from reticent.recipes.vision._layers import GroupStandardise
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._nf_resnet import NFResNet
from reticent.recipes.vision._pink import PinkWhiten
from reticent.recipes.vision._small import (
    SmallCNN,
    cnn_on_features,
    deep_tanh_cnn,
    linear_on_features,
    mlp,
    tanh_cnn,
)
from reticent.recipes.vision._wide_resnet import WideResNet
from tests.support.case import Problem
from tests.support.judge import assert_close, assert_no_row_moves_the_sum, median_norm
from tests.support.oracle import loop_clipped_sum_of_views


class TinyViT(nn.Module):
    """A vision transformer of transformers, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.ViTConfig(
            image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.inner = transformers.ViTForImageClassification(config)

    def forward(self, x):
        return self.inner(x).logits


NETWORKS = {
    "vit": (TinyViT, 3, 8),
    "wrn-10-1": (lambda: WideResNet(10, 1, 3), 3, 8),
    "wrn-10-1, skip-init, no norm": (lambda: WideResNet(10, 1, 3, norm="none", skip_gain=True), 3, 8),
    "wrn-10-1, plain filters": (lambda: WideResNet(10, 1, 3, standardise=False), 3, 8),
    "wrn-10-1, layer norm, scaled SiLU": (
        lambda: WideResNet(10, 1, 3, norm="layer", activation="silu", scaled=True),
        3,
        8,
    ),
    "wrn-10-1, GLU": (lambda: WideResNet(10, 1, 3, norm="layer", activation="glu"), 3, 8),
    "nf-resnet, gated": (
        lambda: NFResNet((1,), widths=(16,), num_classes=3, stem=8, squeeze_excite=True),
        3,
        16,
    ),
    "nf-resnet": (lambda: NFResNet((1, 1), widths=(16, 32), num_classes=3, stem=8), 3, 32),
    "tanh-cnn": (lambda: tanh_cnn(1, 28, 3), 1, 28),
    "tanh-cnn-gn": (lambda: tanh_cnn(1, 28, 3, groups=4), 1, 28),
    "deep-tanh-cnn": (lambda: deep_tanh_cnn(3, 3), 3, 32),
    "small-cnn": (lambda: SmallCNN(3, 3, width=8), 3, 8),
    "mlp": (lambda: mlp(64, 5, 3), 1, 8),
    "linear": (lambda: linear_on_features(GroupStandardise(4), 8 * 64, 3), 8, 8),
    "linear on whitened features": (
        lambda: linear_on_features(PinkWhiten(1, 16, mirrored=True), 81 * 16, 3),
        81,
        4,
    ),
    "cnn on features": (lambda: cnn_on_features(GroupStandardise(3), 9, 8, 3), 9, 8),
}


# As recipes have them, by name; the larger ones on small images.
SHIPPED = {
    "wrn-16-4": (3, 16),
    "wrn-40-4": (3, 8),
    "wrn-28-10": (3, 8),
    "nf-resnet-50": (3, 32),
    "small-cnn": (3, 16),
    "tanh-cnn": (1, 28),
    "tanh-cnn-gn": (1, 28),
    "deep-tanh-cnn": (3, 32),
    "mlp-16": (1, 28),
}


def problem(name: str, views: int) -> Problem:
    make, channels, side = NETWORKS[name]
    torch.manual_seed(1)
    return problem_of(make(), channels, side, views)


def problem_of(model: nn.Module, channels: int, side: int, views: int) -> Problem:
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # so that no zero and no one hides a mistake
    x = torch.randint(0, 256, (4, side, side, channels))
    y = torch.tensor([0, 1, 2, 0])
    x, y = Views(multiplicity=views, pad=2)((x, y), torch.Generator().manual_seed(2))
    x = x.movedim(-1, 2).double() / 64.0 - 2.0
    each = mean_over_views(lambda m, rows: F.cross_entropy(m(rows[0]), rows[1], reduction="none"))
    return Problem(model=model, losses=lambda batch: each(model, batch), batch=(x, y))


FAST = ("mlp", "linear", "small-cnn", "vit", "nf-resnet")  # with sixteen views too


def _cases():
    """Sixteen views of the larger networks take seconds."""
    for name in NETWORKS:
        yield name, 1
        for views in (4, 16):
            fast = (views == 4 and name != "deep-tanh-cnn") or name in FAST
            yield pytest.param(name, views, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("name", "views"), list(_cases()))
def test_the_mean_over_views_is_clipped_once(name, views):
    p = problem(name, views)
    max_norm = median_norm(p)
    total, norms = loop_clipped_sum_of_views(p.model, p.batch, max_norm)
    engine = ClipEngine(p.model, max_norm=max_norm)
    engine.check(p.losses, p.batch)
    answer = engine.clipped_sum(p.losses, p.batch)
    assert_close(answer, total, norms, max_norm=max_norm, tolerance=1e-12)


def test_the_reference_takes_views_one_at_a_time_and_averages_before_it_clips():
    """On a model whose gradients are known: the loss of logits (w . x, 0) at w = 0 is (1/2 - [y = 0]) x."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ZeroPad1d((0, 1))).double()
    nn.init.zeros_(model[0].weight)
    x = torch.tensor([[[6.0, 0.0], [0.0, 8.0]], [[2.0, 2.0], [-2.0, 2.0]]]).double()
    total, norms = loop_clipped_sum_of_views(model, (x, torch.tensor([0, 1])), 2.0)
    torch.testing.assert_close(norms, torch.tensor([2.5, 1.0]).double())  # of (-1.5, -2) and (0, 1)
    torch.testing.assert_close(total["0.weight"], torch.tensor([[-1.2, -1.6 + 1.0]]).double())


def shipped(name: str, views: int) -> Problem:
    channels, side = SHIPPED[name]
    torch.manual_seed(1)
    body = network(name, shape=(channels, side, side), num_classes=3)[1]
    return problem_of(body, channels, side, views)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 4, 16])
@pytest.mark.parametrize("name", SHIPPED)
def test_networks_of_full_size_are_exact_too(name, views):
    p = shipped(name, views)
    max_norm = median_norm(p)
    total, norms = loop_clipped_sum_of_views(p.model, p.batch, max_norm)
    answer = ClipEngine(p.model, max_norm=max_norm).clipped_sum(p.losses, p.batch)
    assert_close(answer, total, norms, max_norm=max_norm, tolerance=1e-12)


@pytest.mark.parametrize(("name", "views"), list(_cases()))
def test_no_image_moves_the_sum_beyond_the_bound_however_many_views(name, views):
    assert_no_row_moves_the_sum(problem(name, views))


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 4, 16])
@pytest.mark.parametrize("name", SHIPPED)
def test_no_image_moves_the_sum_of_a_network_of_full_size_either(name, views):
    assert_no_row_moves_the_sum(shipped(name, views))
