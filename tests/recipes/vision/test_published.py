"""The published runs: what they spend, how large their networks are, and that they plan without data."""

import math
from pathlib import Path

import pytest
import torch

from reticent.recipes import describe, request
from reticent.recipes.vision._networks import network

# Recipe, settings; epsilon by RDP and by PLD as recomputed elsewhere; ours, rounded up.
ROWS = [
    ("cifar10-wrn-16-4-eps1", [], (0.9877, 0.9028), ("0.9878", "0.9033")),
    ("cifar100-wrn-28-10-eps1", [], (0.9976, 0.9121), ("0.9976", "0.9125")),
    ("imagenet-nf-resnet-50-eps8", [], (7.9998, 7.5088), ("8.0001", "7.5091")),
    ("cifar10-wrn-16-4-eps8", [], (7.0456, 6.5293), ("7.0458", "6.5298")),
    ("cifar10-wrn-16-4-eps8", ["validation=5000"], (7.9780, 7.4002), ("7.9780", "7.4006")),
    ("cifar10-wrn-40-4-eps8", [], (7.99788, 7.4244), ("7.9979", "7.4249")),  # integer orders in mpmath; PRV
    ("imagenet-nf-resnet-50-tan", [], (7.9791, 7.4856), ("7.9799", "7.4861")),
]
DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("name", "settings", "elsewhere", "ours"), ROWS)
def test_published_settings_spend_what_is_published(name, settings, elsewhere, ours):
    shown = describe(request(name, settings))
    found = shown["epsilon_rdp"], shown["epsilon_pld"]
    assert found == pytest.approx(elsewhere, rel=6e-4)
    assert found[0] == pytest.approx(elsewhere[0], rel=1.1e-4)
    assert tuple(f"{math.ceil(1e4 * epsilon) / 1e4:.4f}" for epsilon in found) == ours
    for page in ("images.md", "paper-images.md"):
        rows = [line for line in (DOCS / page).read_text().splitlines() if f"`{name}" in line]
        assert any(line.endswith(f"| {ours[0]} | {ours[1]} |") for line in rows), page
    assert shown["epsilon"] == min(shown["epsilon_rdp"], shown["epsilon_pld"])
    assert shown["epsilon"] <= shown["config"]["epsilon"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar10-wrn-16-4-eps8", 2.75),
        ("cifar10-wrn-40-4-eps8", 8.96),
        ("cifar100-wrn-28-10-eps1", 36.56),
        ("imagenet-nf-resnet-50-eps8", 25.56),
    ],
)
def test_networks_have_their_published_sizes(name, millions):
    shown = describe(request(name))
    assert shown["num_parameters"] / 1e6 == pytest.approx(millions, abs=0.005)
    assert shown["num_trained"] == shown["num_parameters"]


@pytest.mark.parametrize(
    ("name", "shape", "number"),
    [
        ("nf-resnet-101", (3, 224, 224), 44.55e6),
        ("nf-resnet-152", (3, 224, 224), 60.19e6),
        ("nf-resnet-200", (3, 224, 224), 64.67e6),
        ("tanh-cnn", (1, 28, 28), 26_010),
        ("deep-tanh-cnn", (3, 32, 32), 550_570),
    ],
)
def test_networks_without_a_run_of_their_own_have_their_published_sizes_too(name, shape, number):
    with torch.device("meta"):
        model = network(name, shape=shape, num_classes=1000 if shape[1] == 224 else 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(number, rel=1e-3)


@pytest.mark.parametrize("name", ["mnist-mlp-eps1", "mnist-audit-eps8", "mnist", "cifar10", "svhn"])
def test_small_runs_plan_without_data(name):
    shown = describe(request(name))
    assert 0 < shown["epsilon"] <= shown["config"]["epsilon"]
    assert shown["operations"] > 0
    assert shown["device_hours"] == pytest.approx(shown["operations"] / 1e13 / 3600)
