"""First weights of the networks for private training, and how many there are.

Deviations are of so many draws that five standard errors are under 4 %: a false alarm in 1e6, while a factor
of sqrt(2), of another initialisation, is ten times as far.
"""

import pytest
import torch
from torch import nn

from reticent.recipes.vision._layers import SkipGain, WSConv2d
from reticent.recipes.vision._networks import network
from reticent.recipes.vision._nf_resnet import NFResNet
from reticent.recipes.vision._wide_resnet import WideResNet


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def assert_deviation(weight, expected):
    values = weight.detach().double().flatten()
    five = 5 / (2 * len(values)) ** 0.5
    assert five < 0.04
    assert abs(float(values.mean())) < 5 * expected / len(values) ** 0.5
    assert float(values.std()) == pytest.approx(expected, rel=five)


@pytest.mark.parametrize(("wide_in", "wide_out", "size"), [(16, 64, 3), (128, 100, 1), (3, 64, 7)])
def test_a_standardised_filter_starts_normal_with_variance_one_over_fan_in(wide_in, wide_out, size):
    conv = WSConv2d(wide_in, wide_out, size)
    assert_deviation(conv.weight, (wide_in * size**2) ** -0.5)
    assert float(conv.weight.detach().abs().max()) > 3 * (wide_in * size**2) ** -0.5  # not truncated
    assert conv.bias is not None
    assert not conv.bias.any() and bool((conv.gain == 1).all())


def test_a_constant_filter_is_zero_and_has_a_finite_gradient():
    conv = WSConv2d(3, 4, 3).double()
    with torch.no_grad():
        conv.weight[1] = 5.0
    filters = conv.standardised().detach()
    assert filters[1].abs().max() < 1e-12 and filters[0].norm() == pytest.approx(1)
    y = conv(torch.randn(2, 3, 5, 5, dtype=torch.float64))
    y.square().sum().backward()
    assert conv.weight.grad is not None and conv.gain.grad is not None
    assert bool(conv.weight.grad.isfinite().all()) and bool(conv.gain.grad.isfinite().all())


@pytest.mark.parametrize("norm", [1e-3, 0.9e-2, 1.1e-2, 1.0])
def test_the_floor_is_1e_4_of_fan_in_times_variance(norm):
    """Fan-in times variance is the squared norm of the centred filter, so 0.01 is where the floor ends."""
    conv = WSConv2d(2, 1, 3).double()
    with torch.no_grad():
        centred = conv.weight - conv.weight.mean()
        conv.weight.copy_(centred * norm / centred.norm() + 3.0)
        conv.gain.fill_(2.0)
    assert float(conv.standardised().detach().norm()) == pytest.approx(2.0 * min(1.0, norm / 1e-2), rel=1e-6)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_skip_gain_starts_where_it_is_told(start):
    x = torch.randn(3, 2)
    assert torch.equal(SkipGain(start)(x), start * x)
    assert torch.equal(SkipGain()(x), 0 * x)


def gains(model):
    return {float(m.gain.detach()) for m in model.modules() if isinstance(m, SkipGain)}


def test_a_normaliser_free_network_starts_as_published():
    model = NFResNet((1, 2), widths=(64, 256), num_classes=200, stem=16)
    assert_deviation(model.head.weight, 0.01)
    assert not model.head.bias.any()
    assert gains(model) == {1.0}
    for module in model.modules():
        if isinstance(module, WSConv2d):
            assert module.bias is not None
            assert not module.bias.any() and bool((module.gain == 1).all())


def test_a_wide_network_s_branches_start_at_nothing_with_skip_init_alone():
    model = WideResNet(10, 1, 5, skip_gain=True, norm="none")
    assert gains(model) == {0.0} and not gains(WideResNet(10, 1, 5))
    block = model.blocks[0]
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), block.skip(x))
    biases = [m.bias for m in model.modules() if isinstance(m, WSConv2d | nn.Linear)]
    assert len(biases) == 11 and not any(bool(bias.any()) for bias in biases)


def nf_resnet_parameters(blocks, num_classes=1000):
    """Filters with a bias and a gain for each channel, a gain for each block, and the head."""

    def conv(wide_in, wide_out, size):
        return wide_out * (wide_in * size**2 + 2)

    total, wide_in = conv(3, 64, 7), 64
    for wide, count in zip((256, 512, 1024, 2048), blocks, strict=True):
        total += conv(wide_in, wide, 1)  # beside a stage's first block
        for _ in range(count):
            narrow = wide // 4
            total += conv(wide_in, narrow, 1) + conv(narrow, narrow, 3) + conv(narrow, wide, 1) + 1
            wide_in = wide
    return total + (wide_in + 1) * num_classes


@pytest.mark.parametrize(
    ("depth", "blocks"), [(50, (3, 4, 6, 3)), (288, (24, 24, 24, 24)), (600, (50, 50, 50, 50))]
)
def test_deep_normaliser_free_networks_have_as_many_weights_as_their_blocks(depth, blocks):
    with torch.device("meta"):
        model = network(f"nf-resnet-{depth}", shape=(3, 224, 224), num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == nf_resnet_parameters(blocks)
    assert depth != 50 or nf_resnet_parameters(blocks) / 1e6 == pytest.approx(25.56, abs=0.005)  # published


def test_a_wide_resnet_s_head_and_plain_filters_start_truncated_with_variance_one_over_fan_in():
    made = WideResNet(10, 8, 100, standardise=False)
    layers = [made.head, *(m for m in made.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 1e5)]
    assert len(layers) > 4
    for layer in layers:
        fan_in = layer.weight[0].numel()
        assert_deviation(layer.weight, fan_in**-0.5)
        assert float(layer.weight.detach().abs().max()) <= 2 / 0.8796 * fan_in**-0.5
        assert layer.bias is not None and not layer.bias.any()
