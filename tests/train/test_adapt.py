"""Norms that adapt: the estimator, its sensitivity, and where it goes."""

import math

import numpy as np
import pytest
import torch

from reticent.clipping import AdaptiveClipping, FlatClipping, GroupedClipping, sensitivity
from reticent.train._adapt import bounded_count, clipping_at, count_below, first_norms, next_norms

SIZES = {"0.weight": 30, "0.bias": 5, "2.weight": 15, "2.bias": 3}


def test_the_count_is_of_units_at_or_below_the_norm_less_half_of_all():
    norms = torch.tensor([0.5, 1.0, 1.5, math.inf], dtype=torch.float64)
    assert count_below(norms, None, (1.0,)).tolist() == [0.0]
    assert count_below(norms, None, (2.0,)).tolist() == [1.0]
    assert count_below(norms[:0], None, (2.0,)).tolist() == [0.0]


def test_a_unit_that_is_not_finite_is_below_nothing():
    norms = torch.tensor([math.inf, math.nan], dtype=torch.float64)
    groups = torch.tensor([[0.1, 0.2], [0.1, math.nan]], dtype=torch.float64)
    assert count_below(norms, groups, (1e6, 1e6)).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("num_groups", [1, 2, 7])
def test_a_unit_moves_the_count_by_its_stated_sensitivity(num_groups):
    generator = torch.Generator().manual_seed(num_groups)
    groups = torch.rand(20, num_groups, generator=generator, dtype=torch.float64)
    groups[3] = math.inf
    groups[5] = 0.0
    limits = tuple(torch.rand(num_groups, generator=generator, dtype=torch.float64).tolist())
    full = count_below(groups.norm(dim=1), groups, limits)
    for unit in range(20):
        rest = torch.cat([groups[:unit], groups[unit + 1 :]])
        moved = (full - count_below(rest.norm(dim=1), rest, limits)).norm()
        assert float(moved) == pytest.approx(bounded_count(full).bound, rel=1e-12)
    assert bounded_count(full).bound == math.sqrt(num_groups) / 2


def test_the_estimate_of_the_share_is_right_on_average_whatever_is_drawn():
    """20,000 Poisson batches of 10 expected units, 30 % of them below: false alarm below 1e-8 (6 sigma)."""
    rng = np.random.default_rng(1)
    drawn = rng.random((20_000, 100)) < 0.1
    below = np.arange(100) < 30
    estimates = (drawn * (below - 0.5)).sum(1) / 10 + 0.5
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - 0.3) < 6 * error
    assert not abs(estimates.mean() - 0.33) < 6 * error


def follow(clipping, draw, *, num_steps, expected_batch_size, count_std, num_norms=1):
    rng = np.random.default_rng(7)
    norms = first_norms(clipping, SIZES)
    path = []
    for _ in range(num_steps):
        units = torch.from_numpy(draw(rng, rng.binomial(10 * expected_batch_size, 0.1)))
        count = count_below(units.norm(dim=1), units if clipping.per_layer else None, norms)
        noised = count + torch.from_numpy(rng.normal(0.0, count_std, num_norms))
        norms = next_norms(clipping, norms, noised, expected_batch_size=expected_batch_size)
        path.append(norms)
    return np.array(path[num_steps // 2 :])


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("initial", [1e-3, 50.0])
def test_the_norm_finds_the_quantile_from_far_below_and_far_above(target, initial):
    """Lognormal norms: the target's quantile is exp(z). Noise as at a noise multiplier of 1."""
    clipping = AdaptiveClipping(initial_max_norm=initial, target_quantile=target)
    path = follow(
        clipping,
        lambda rng, n: np.exp(rng.normal(0.0, 1.0, (n, 1))),
        num_steps=600,
        expected_batch_size=200,
        count_std=5.0,
    )
    z = {0.1: -1.2815515655, 0.5: 0.0, 0.9: 1.2815515655}[target]
    assert np.log(path).mean() == pytest.approx(z, abs=0.06)
    assert np.log(path).std() < 0.15


def test_each_layer_finds_a_quantile_of_its_own():
    clipping = AdaptiveClipping(initial_max_norm=1.0, per_layer=True)
    path = follow(
        clipping,
        lambda rng, n: np.exp(rng.normal([2.0, -3.0], 1.0, (n, 2))),
        num_steps=600,
        expected_batch_size=200,
        count_std=5.0 * math.sqrt(2),
        num_norms=2,
    )
    assert np.log(path).mean(0) == pytest.approx([2.0, -3.0], abs=0.06)


def test_norms_stay_inside_their_limits_whatever_the_count_says():
    clipping = AdaptiveClipping(initial_max_norm=1.0, min_norm=0.5, max_norm=2.0, learning_rate=10.0)
    for count, norm in ((1e9, 0.5), (-1e9, 2.0), (1e300, 0.5), (-1e300, 2.0)):
        noised = torch.tensor([count], dtype=torch.float64)
        assert next_norms(clipping, (1.0,), noised, expected_batch_size=1.0) == (norm,)


def test_a_step_is_clipped_flat_or_by_layers_with_the_norms_of_that_step():
    flat = AdaptiveClipping(initial_max_norm=0.8)
    assert clipping_at(flat, (0.3,), SIZES) == FlatClipping(max_norm=0.3)
    layers = AdaptiveClipping(initial_max_norm=0.8, per_layer=True)
    assert clipping_at(layers, (0.3, 0.4), SIZES) == GroupedClipping(max_norms=(("0.*", 0.3), ("2.*", 0.4)))
    assert sensitivity(clipping_at(layers, first_norms(layers, SIZES), SIZES)) == pytest.approx(0.8)
