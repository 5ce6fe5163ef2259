"""Adaptive gradient clipping, against its formula written out a row at a time."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from reticent.errors import ConfigError
from reticent.optim import clip_units
from reticent.recipes import request


def by_hand(w, g, ratio):
    """One row after the other, in Python's numbers."""
    rows = [(w, g)] if w.ndim < 2 else list(zip(w, g, strict=True))
    out = []
    for w_i, g_i in rows:
        of_w = math.sqrt(sum(v * v for v in w_i.flatten().tolist()))
        of_g = math.sqrt(sum(v * v for v in g_i.flatten().tolist()))
        largest = ratio * max(of_w, 1e-3)
        out.append(g_i if of_g <= largest else g_i * (largest / of_g))
    return out[0] if w.ndim < 2 else torch.stack(out)


@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (5, 3), (5,), ()])
@pytest.mark.parametrize("ratio", [0.01, 0.5])
def test_rows_are_shrunk_to_a_share_of_their_weights(shape, ratio):
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    g = torch.randn(shape, dtype=torch.float64, generator=generator) * 0.7
    if w.ndim:
        w.data[0], g[-1] = 0.0, 1e-6  # a row at zero, and one whose gradient is small
    before = w.detach().clone()
    optimizer = clip_units(SGD([w], lr=1.0), ratio)
    w.grad = g.clone()
    optimizer.step()
    torch.testing.assert_close(before - w.detach(), by_hand(before, g, ratio), rtol=1e-12, atol=1e-14)


def test_gradients_that_are_zero_or_missing_stay_so():
    zero, missing = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    zero.grad = torch.zeros(2, 2)
    clip_units(SGD([zero, missing], lr=1.0), 0.01).step()
    assert zero.tolist() == [[1.0, 1.0], [1.0, 1.0]] and missing.grad is None


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ConfigError, match="ratio") as caught:
        clip_units(SGD([nn.Parameter(torch.ones(1))], lr=1.0), ratio)
    assert caught.value.code == "optimizer-settings"


def test_a_recipe_s_updates_are_shrunk():
    from reticent.recipes._parts import asked_of, build_model, optimizer_of

    asked = request("mnist", ["agc=0.01", "optimizer=sgd", "momentum=0"])
    recipe, config = asked_of(asked)
    model = build_model(recipe, config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer_of(model, config, lr=1.0).step()
    for name, p in model.named_parameters():
        moved = by_hand(before[name], torch.ones_like(p), 0.01)
        torch.testing.assert_close(before[name] - p.detach(), moved, rtol=1e-3, atol=1e-6)


def test_weights_in_parts_are_refused():
    with pytest.raises(ConfigError, match="agc needs whole weights"):
        request("mnist", ["agc=0.01", "parallel=fsdp2"])
