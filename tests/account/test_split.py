"""Gradient and count as one mechanism: against two-dimensional integrals that share no code with us."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reticent.account import epsilon, split_noise
from reticent.errors import ConfigError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from tests.account.oracle import one_step_delta


@given(noise=st.floats(1e-3, 1e3), ratio=st.one_of(st.none(), st.floats(1.001, 1e6)))
def test_the_pair_is_never_noisier_on_paper_than_in_fact(noise, ratio):
    gradient, count = split_noise(noise, None if ratio is None else ratio * noise)
    whole = sum(1 / Fraction(part) ** 2 for part in (gradient, count))
    assert whole <= 1 / Fraction(noise) ** 2
    assert float(whole * Fraction(noise) ** 2) == pytest.approx(1.0, abs=1e-12)


def test_left_out_the_count_costs_the_gradient_half_a_percent():
    gradient, count = split_noise(1.3, None)
    assert count == pytest.approx(13.0)
    assert 1.005 < gradient / 1.3 < 1.0051


@pytest.mark.parametrize("count", [0.5, 1.3, 1.3000000001])
def test_a_count_that_leaves_nothing_for_the_gradient_is_refused_with_the_way_out(count):
    with pytest.raises(ConfigError, match=r"above the plan's noise multiplier 1\.3.*Leave it out") as caught:
        split_noise(1.3, count)
    assert caught.value.code == "count-noise"


def test_without_noise_nothing_is_split():
    assert split_noise(0.0, None) == split_noise(0.0, 2.0) == (0.0, 0.0)


def grid_delta(q, gradient, count, eps, *, one_sample):
    """Hockey-stick divergence of one step that releases both, by a sum over the plane; both directions.

    Outcomes are divided by their noise, so one unit shifts the plane by (1/gradient, 1/count). One
    sample: the unit is in both releases or in neither. Two: each release draws for itself.
    """
    axis = np.linspace(-14.0, 16.0, 2401)
    cell = (axis[1] - axis[0]) ** 2

    def log_normal(x, shift):
        return -0.5 * (x - shift) ** 2 - 0.5 * math.log(2 * math.pi)

    x, y = np.meshgrid(axis, axis, indexing="ij")
    without = log_normal(x, 0) + log_normal(y, 0)
    if one_sample:
        with_unit = (1 - q) * np.exp(without) + q * np.exp(
            log_normal(x, 1 / gradient) + log_normal(y, 1 / count)
        )
    else:
        with_unit = np.exp(log_normal(x, 0)) * (1 - q) + q * np.exp(log_normal(x, 1 / gradient))
        with_unit = with_unit * (np.exp(log_normal(y, 0)) * (1 - q) + q * np.exp(log_normal(y, 1 / count)))
    without = np.exp(without)
    remove = np.clip(with_unit - math.exp(eps) * without, 0, None).sum() * cell
    add = np.clip(without - math.exp(eps) * with_unit, 0, None).sum() * cell
    return max(float(remove), float(add))


CASES = [(0.1, 1.0, 2.0), (0.3, 0.7, 1.0), (1.0, 1.5, 4.0)]


@pytest.mark.parametrize(("q", "noise", "count"), CASES)
@pytest.mark.parametrize("eps", [0.3, 1.0, 2.0])
def test_both_releases_on_one_sample_are_the_one_mechanism_that_is_accounted(q, noise, count, eps):
    gradient, count = split_noise(noise, count)
    truth = grid_delta(q, gradient, count, eps, one_sample=True)
    assert truth == pytest.approx(one_step_delta(q, noise, eps), rel=1e-4)
    # Noise that did not leave room for the count would be seen.
    assert grid_delta(q, noise, count, eps, one_sample=True) > 1.02 * truth


@pytest.mark.parametrize(("q", "noise", "count"), [(0.1, 1.0, 1.5), (0.3, 0.7, 1.0)])
def test_two_sampled_events_would_claim_too_little(q, noise, count):
    gradient, count = split_noise(noise, count)
    truth = grid_delta(q, gradient, count, 1.0, one_sample=True)
    assert grid_delta(q, gradient, count, 1.0, one_sample=False) < 0.9 * truth

    def of(*multipliers):
        steps = [
            (Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=m), 50)
            for m in multipliers
        ]
        return epsilon(steps, delta=1e-5, relation=NeighbouringRelation.ADD_OR_REMOVE).epsilon

    assert of(gradient, count) < 0.97 * of(noise)
