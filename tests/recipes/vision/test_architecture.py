"""Networks against the same written out as functions of their weights: no layer of ours is in the reference.

Sources:
    [1] De et al. 2022, arXiv:2204.13650, section 3 (Wide ResNets: activation, normalisation, convolution).
    [2] Zagoruyko, Komodakis 2016, arXiv:1605.07146 (depth and width).
    [3] Brock, De, Smith 2021, arXiv:2101.08692 (NF-ResNets).
    [4] Brock et al. 2021, arXiv:2102.06171 (NFNets).
"""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reticent.recipes.vision._networks import network
from reticent.recipes.vision._nf_resnet import NFResNet, nf_resnet
from reticent.recipes.vision._wide_resnet import WideResNet


def shaken(model: nn.Module) -> nn.Module:
    """In float64, no weight left at zero or one."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def convolved(x, weights, name, *, stride=1):
    """Filters of mean 0 and squared norm gain^2 [3]."""
    w = weights[f"{name}.weight"]
    mean = w.mean((1, 2, 3), keepdim=True)
    norm = ((w - mean) ** 2).sum((1, 2, 3), keepdim=True).sqrt()
    w = weights[f"{name}.gain"].view(-1, 1, 1, 1) * (w - mean) / norm
    return F.conv2d(x, w, weights[f"{name}.bias"], stride=stride, padding=w.shape[-1] // 2)


def normalised(x, weights, name, *, groups=16):
    """Each image within groups of neighbouring channels, then a factor and a term for each channel."""
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    factor, term = (weights[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return parts.reshape(x.shape) * factor + term


def wide_resnet(x, weights, *, depth):
    """[1]: a branch is twice activation, normalisation, 3 x 3; a stage's first skip is so with 1 x 1."""

    def step(x, norm, conv, stride=1):
        return convolved(normalised(x.clamp(min=0), weights, norm), weights, conv, stride=stride)

    x = convolved(x, weights, "stem")
    per_stage = (depth - 4) // 6
    for k in range(3 * per_stage):
        at, opens = f"blocks.{k}", k % per_stage == 0
        stride = 2 if opens and k > 0 else 1
        branch = step(x, f"{at}.branch.0.1", f"{at}.branch.1", stride)
        branch = step(branch, f"{at}.branch.2.1", f"{at}.branch.3")
        x = branch + (step(x, f"{at}.skip.0.1", f"{at}.skip.1", stride) if opens else x)
    pooled = normalised(x.clamp(min=0), weights, "end.1").mean((2, 3))
    return pooled @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 2), (22, 1)])
def test_a_wide_resnet_is_what_the_paper_s_order_of_layers_gives(depth, widen):
    torch.manual_seed(depth)
    model = shaken(WideResNet(depth, widen, 5))
    x = torch.randn(3, 3, 16, 12).double()
    weights = dict(model.state_dict())
    torch.testing.assert_close(model(x), wide_resnet(x, weights, depth=depth), rtol=1e-9, atol=1e-9)


def nf_resnet_of(x, weights, blocks, *, alpha=0.2):
    """[3]: h + alpha f(h / beta), beta^2 the variance known in advance, which a stage's first resets to 1."""
    scale = math.sqrt(2 / (1 - 1 / math.pi))  # relu of a standard normal number has variance 1 / scale^2
    x = F.max_pool2d(convolved(x, weights, "stem", stride=2), 3, 2, padding=1)
    variance, k = 1.0, 0
    for stage, count in enumerate(blocks):
        for place in range(count):
            at, stride = f"blocks.{k}", 2 if stage and place == 0 else 1
            h = scale * x.clamp(min=0) / math.sqrt(variance)
            beside = convolved(h, weights, f"{at}.skip", stride=stride) if place == 0 else x
            h = convolved(h, weights, f"{at}.first")
            h = convolved(scale * h.clamp(min=0), weights, f"{at}.second", stride=stride)
            h = convolved(scale * h.clamp(min=0), weights, f"{at}.third")
            x = beside + alpha * weights[f"{at}.gain.gain"] * h
            variance = (1.0 if place == 0 else variance) + alpha**2
            k += 1
    pooled = scale * x.clamp(min=0).mean((2, 3))
    return pooled @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("blocks", [(1,), (3, 2), (1, 2, 1)])
def test_an_nf_resnet_is_bottlenecks_at_variances_known_in_advance(blocks):
    torch.manual_seed(0)
    widths = (16, 32, 64)[: len(blocks)]
    model = shaken(NFResNet(blocks, num_classes=5, widths=widths, stem=8))
    x = torch.randn(2, 3, 32, 40).double()
    expected = nf_resnet_of(x, dict(model.state_dict()), blocks)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.vision
def test_nf_resnet_50_is_timm_s_but_for_how_a_stage_s_first_skip_is_made_smaller():
    """timm averages 2 x 2 pixels there; every second is taken in its place, as a stride of 2 does.

    timm has the activation's factor in the filters behind it and in the stem's, none before its head, and as
    an estimate from samples, 1.7139...; and a constant in the variance of filters, of which large raw filters
    leave nothing.
    """
    torch.manual_seed(0)
    theirs: Any = import_module("timm").create_model("nf_resnet50", num_classes=7).double().eval()
    for stage in theirs.stages[1:]:
        stage[0].downsample.pool = EverySecond()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.add_(0.2 * torch.randn_like(p))
            if name.endswith(".weight") and p.ndim == 4:
                p.mul_(1e6)
    ours = nf_resnet(50, 7).double().eval()
    ours.load_state_dict(weights_of_timm(theirs, {n: p.shape for n, p in ours.named_parameters()}))
    x = torch.randn(2, 3, 64, 64).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-7, atol=1e-7)


def weights_of_timm(theirs, shapes):
    """By our names, with the activation's factor where we have it."""
    factor, estimate = math.sqrt(2 / (1 - 1 / math.pi)), 1.7139588594436646
    blocks = [f"stages.{s}.{b}." for s, n in enumerate((3, 4, 6, 3)) for b in range(n)]
    places = {at: f"blocks.{k}." for k, at in enumerate(blocks)}
    places |= {"conv1.": "first.", "conv2.": "second.", "conv3.": "third.", "downsample.conv.": "skip."}
    copied = {name: torch.ones(()) for name in shapes if name.endswith(".gain.gain")}
    for name, value in theirs.state_dict().items():
        here = name.replace("stem.conv.", "stem.").replace("head.fc.", "head.")
        for there, ours in places.items():
            here = here.replace(there, ours)
        if here.endswith(".gain"):
            value = value * estimate / (1.0 if here == "stem.gain" else factor)
        copied[here] = (value / factor if here == "head.weight" else value).reshape(shapes[here])
    return copied


class EverySecond(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::2]


def size_of_a_wide_resnet(depth: int, widen: int, num_classes: int) -> int:
    """From [1] and [2]: standardised filters with a gain and a bias each, a norm before all but the first.

    A stage of n blocks from a to c channels: n - 1 times two 3 x 3 of c, and once 3 x 3 and 1 x 1 from a.
    """
    n, total, a = (depth - 4) // 6, 27 * 16 + 2 * 16, 16
    for c in (16 * widen, 32 * widen, 64 * widen):
        filters = (9 + 1) * a * c + 9 * c * c + (n - 1) * 2 * 9 * c * c
        gains_and_biases = (2 * n + 1) * 2 * c
        norms = 2 * 2 * a + 2 * c + (n - 1) * 2 * 2 * c
        total += filters + gains_and_biases + norms
        a = c
    return total + 2 * a + a * num_classes + num_classes


@pytest.mark.parametrize(
    ("depth", "widen", "num_classes"), [(10, 1, 3), (16, 4, 10), (40, 4, 10), (28, 10, 100), (28, 10, 10)]
)
def test_a_wide_resnet_has_as_many_weights_as_its_description_counts(depth, widen, num_classes):
    with torch.device("meta"):
        model = network(f"wrn-{depth}-{widen}", shape=(3, 32, 32), num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == size_of_a_wide_resnet(depth, widen, num_classes)
