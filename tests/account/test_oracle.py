"""The oracle itself: against closed forms, and against other people's published values."""

import pytest
from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

from reticent.account import epsilon
from reticent.records import Mechanism
from tests.account.oracle import delta_of, epsilon_of, one_step_delta, unsampled_delta

# Published or separately computed values: contour integrals at higher precision, and prv-accountant.
KNOWN = [
    (4096 / 50000, 3.0, 2000, 1e-5, 5.7742721313),
    (256 / 60000, 1.1, 14062, 1e-5, 2.3815969214),
    (16384 / 1281167, 2.5, 72000, 8e-7, 7.4649835018),
    (0.01, 0.3, 1000, 1e-5, 69.815710713),
    (0.5, 2.0, 1000, 1e-5, 67.1683742394),
    (0.999, 10.0, 100, 1e-5, 4.3722078479),
]


@pytest.mark.parametrize(
    ("sigma", "num_steps", "delta"), [(10.0, 1, 8e-7), (50.0, 100, 8e-7), (3.0, 7, 1e-5)]
)
def test_contour_integral_equals_the_closed_form_without_sampling(sigma, num_steps, delta):
    eps = epsilon_of(1.0, sigma, num_steps, delta, guess=0.6)
    assert float(unsampled_delta(sigma / num_steps**0.5, eps)) == pytest.approx(delta, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "num_steps", "delta", "truth"), KNOWN)
def test_contour_integral_finds_known_values_from_a_poor_guess(q, sigma, num_steps, delta, truth):
    assert epsilon_of(q, sigma, num_steps, delta, guess=1.3 * truth) == pytest.approx(truth, abs=1e-8)


def test_the_oracle_sees_a_hundredth_of_noise():
    """One per cent less noise moves epsilon by about one per cent: far above what tests allow."""
    truth = epsilon_of(0.08, 3.0, 2000, 1e-5, guess=5.7)
    assert epsilon_of(0.08, 3.0 / 1.01, 2000, 1e-5, guess=5.7) > truth * 1.005


def test_the_oracle_refuses_where_its_integral_does_not_settle():
    with pytest.raises(AssertionError, match="did not settle"):
        delta_of(1e-3, 1.0, 1, 0.01, max_nodes=300)


def test_one_step_closed_form_meets_the_unsampled_one_at_full_sampling():
    assert float(one_step_delta(1.0, 2.0, 1.5)) == pytest.approx(float(unsampled_delta(2.0, 1.5)), rel=1e-12)


def by_prv_accountant(q, sigma, num_steps, delta):
    """A lower and an upper bound on epsilon by an accountant that shares no code with dp-accounting."""
    step = PoissonSubsampledGaussianMechanism(noise_multiplier=sigma, sampling_probability=q)
    accountant = PRVAccountant(
        prvs=[step], max_self_compositions=[num_steps], eps_error=0.01, delta_error=1e-3 * delta
    )
    low, _, high = accountant.compute_epsilon(delta=delta, num_self_compositions=[num_steps])
    return low, high


@pytest.mark.parametrize(
    ("q", "sigma", "num_steps", "delta"),
    [
        (0.1, 1.0, 20, 1e-5),
        (1024 / 67_349, 0.8, 198, 1e-5),
        (256 / 60_000, 1.1, 14_062, 1e-5),
        (4096 / 50_000, 3.0, 2000, 1e-5),
        pytest.param(16_384 / 1_281_167, 2.5, 72_000, 8e-7, marks=pytest.mark.slow),
    ],
)
def test_a_second_accountant_agrees(q, sigma, num_steps, delta):
    """And would not with three per cent less noise."""
    low, high = by_prv_accountant(q, sigma, num_steps, delta)
    step = Mechanism(scheme="poisson", sampling_prob=q, noise_multiplier=sigma)
    assert low <= epsilon([(step, num_steps)], delta=delta).epsilon <= high
    less = Mechanism(scheme="poisson", sampling_prob=q, noise_multiplier=0.97 * sigma)
    assert epsilon([(less, num_steps)], delta=delta).epsilon > high
