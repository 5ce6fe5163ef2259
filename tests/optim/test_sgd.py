"""Decoupled weight decay of SGD, against its formula written out."""

import math

import pytest
import torch
from torch import nn

from reticent.errors import ConfigError
from reticent.optim import decayed_sgd
from reticent.recipes import request


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_weights_shrink_beside_the_step_and_not_through_the_momentum(momentum, nesterov, weight_decay):
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = decayed_sgd([w], lr=0.5, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    expected, m = w.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for rate in (0.5, 0.5, 0.1, 0.1):  # as a schedule sets it
        optimizer.param_groups[0]["lr"] = rate
        g = torch.randn(2, dtype=torch.float64, generator=generator)
        m = momentum * m + g
        expected = expected - rate * weight_decay * expected - rate * (g + momentum * m if nesterov else m)
        w.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=0)


def test_a_frozen_weight_stays():
    w = nn.Parameter(torch.ones(2))
    decayed_sgd([w], lr=0.5, weight_decay=0.3).step()
    assert w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ConfigError, match="weight_decay") as e:
        decayed_sgd([nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=decay)
    assert e.value.code == "optimizer-settings"


def test_a_decay_that_adam_would_ignore_is_refused():
    with pytest.raises(ConfigError, match="ignored by adam"):
        request("mnist", ["optimizer=adam", "weight_decay=0.1"])
