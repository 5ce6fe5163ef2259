"""Calibration: inside the budget at the number as printed, and hardly anything left over."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reticent.account import calibrate_noise_multiplier, calibrate_num_steps, calibrate_sampling_prob, epsilon
from reticent.account._events import round_down, round_up
from reticent.errors import AccountingError, ConfigError
from reticent.records import Budget, Mechanism, SamplingScheme
from tests.account.oracle import delta_of

POISSON, FULL = SamplingScheme.POISSON, SamplingScheme.FULL_BATCH


def spent(q, sigma, num_steps, delta, scheme=POISSON):
    mechanism = Mechanism(scheme=scheme, sampling_prob=q, noise_multiplier=sigma)
    return epsilon([(mechanism, num_steps)], delta=delta).epsilon


def noise_for(target, delta, q, num_steps, scheme=POISSON):
    budget = Budget(epsilon=target, delta=delta)
    return calibrate_noise_multiplier(budget=budget, scheme=scheme, sampling_prob=q, num_steps=num_steps)


EPSILONS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
ONE_FULL_BATCH_STEP = [  # exact values (Balle and Wang 2018), 4 decimals
    (1e-6, (8.0576, 4.2247, 2.2305, 1.5439, 1.1935, 0.8359, 0.6529, 0.5411)),
    (8e-7, (8.1520, 4.2703, 2.2524, 1.5581, 1.2040, 0.8426, 0.6578, 0.5449)),
    (1e-5, (7.0318, 3.7306, 1.9938, 1.3906, 1.0812, 0.7636, 0.6002, 0.4999)),
]


@pytest.mark.parametrize(("delta", "sigmas"), ONE_FULL_BATCH_STEP)
def test_noise_for_one_full_batch_step_is_the_exact_one(delta, sigmas):
    for target, sigma in zip(EPSILONS, sigmas, strict=True):
        found = noise_for(target, delta, 1.0, 1, FULL)
        assert sigma - 5e-5 <= found <= sigma + 1e-3


def test_a_hundred_full_batch_steps_need_ten_times_the_noise_of_one():
    assert 6.0022 <= noise_for(8.0, 1e-5, 1.0, 100, FULL) <= 6.003


@pytest.mark.parametrize(
    ("q", "num_steps", "delta", "target", "least"),
    [
        (4096 / 50000, 2000, 1e-5, 8.0, 2.3288935),
        (4096 / 50000, 2000, 1e-5, 1.0, 13.7196984),
        (1024 / 67349, 198, 1e-5, 3.0, 0.7573336),
        (1024 / 67349, 198, 1e-5, 8.0, 0.5409422),
        (16384 / 1281167, 72000, 8e-7, 8.0, 2.3679191),
    ],
)
def test_noise_is_never_below_the_least_possible_and_within_a_thousandth(q, num_steps, delta, target, least):
    found = noise_for(target, delta, q, num_steps)
    assert least <= found <= least * 1.001
    assert 0.999 * target <= spent(q, found, num_steps, delta) <= target
    assert delta_of(q, found, num_steps, target) <= delta


@settings(max_examples=5)
@given(
    q=st.floats(0.002, 0.3),
    num_steps=st.integers(1, 1000),
    target=st.floats(0.3, 10.0),
    log_delta=st.floats(-9, -4),
)
def test_printed_noise_keeps_to_the_budget(q, num_steps, target, log_delta):
    delta = 10.0**log_delta
    found = noise_for(target, delta, q, num_steps)
    assert found == float(f"{found:.6g}")
    assert 0.999 * target <= spent(q, found, num_steps, delta) <= target


@pytest.mark.parametrize("target", [1e-3, 0.05, 50.0])
def test_very_small_and_very_large_targets_are_met_too(target):
    found = noise_for(target, 1e-5, 0.01, 1000)
    assert 0.999 * target <= spent(0.01, found, 1000, 1e-5) <= target


@pytest.mark.parametrize(
    ("q", "sigma", "delta", "target"),
    [
        (4096 / 50000, 3.0, 1e-5, 3.0),
        (4096 / 50000, 10.0, 1e-5, 1.0),
        (0.01, 0.8, 1e-5, 2.0),
        (1.0, 20.0, 1e-6, 1.5),
    ],
)
def test_one_more_step_would_break_the_budget(q, sigma, delta, target):
    num_steps = calibrate_num_steps(
        budget=Budget(epsilon=target, delta=delta), scheme=POISSON, sampling_prob=q, noise_multiplier=sigma
    )
    assert isinstance(num_steps, int)
    assert spent(q, sigma, num_steps, delta) <= target < spent(q, sigma, num_steps + 1, delta)


@pytest.mark.parametrize(
    ("sigma", "num_steps", "delta", "target"),
    [(3.0, 2000, 1e-5, 3.0), (1.1, 5000, 1e-5, 2.0), (0.6, 50, 1e-6, 4.0)],
)
def test_sampling_probability_uses_up_the_budget(sigma, num_steps, delta, target):
    q = calibrate_sampling_prob(
        budget=Budget(epsilon=target, delta=delta), noise_multiplier=sigma, num_steps=num_steps
    )
    assert q == float(f"{q:.6g}")
    assert 0.999 * target <= spent(q, sigma, num_steps, delta) <= target


def test_a_budget_that_needs_no_sampling_takes_everybody():
    budget = Budget(epsilon=8.0, delta=1e-5)
    assert calibrate_sampling_prob(budget=budget, noise_multiplier=50.0, num_steps=10) == 1.0


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(AccountingError, match="even a single step spends more") as caught:
        calibrate_num_steps(
            budget=Budget(epsilon=0.1, delta=1e-5), scheme=FULL, sampling_prob=1.0, noise_multiplier=1.0
        )
    assert caught.value.code == "budget-unreachable"


def test_a_budget_for_more_steps_than_anyone_takes_is_refused():
    with pytest.raises(AccountingError, match=r"allows more than 1e\+09 steps") as caught:
        calibrate_num_steps(
            budget=Budget(epsilon=8.0, delta=1e-5), scheme=FULL, sampling_prob=1.0, noise_multiplier=1e6
        )
    assert caught.value.code == "unbounded-steps"


def test_a_target_out_of_reach_of_any_noise_is_refused():
    with pytest.raises(AccountingError, match="even a noise multiplier of 1e\\+06 spends more"):
        noise_for(1e-9, 1e-9, 1.0, 10**6, FULL)


def test_no_noise_allows_no_sampling():
    with pytest.raises(AccountingError, match="even a sampling probability of 1e-12 spends more"):
        calibrate_sampling_prob(budget=Budget(epsilon=1.0, delta=1e-5), noise_multiplier=0.0, num_steps=1)


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, True])
def test_steps_to_calibrate_for_must_be_at_least_one(num_steps):
    with pytest.raises(ConfigError, match="num_steps must be") as caught:
        noise_for(1.0, 1e-5, 0.1, num_steps)
    assert caught.value.code == "num-steps"


def test_a_budget_must_be_a_budget():
    with pytest.raises(ConfigError, match="budget must be a Budget, got float"):
        calibrate_noise_multiplier(budget=3.0, scheme=POISSON, sampling_prob=0.1, num_steps=10)


@given(value=st.floats(1e-12, 1e12), digits=st.integers(1, 8))
def test_rounding_goes_the_way_it_says_and_not_far(value, digits):
    up, down = round_up(value, digits=digits), round_down(value, digits=digits)
    assert down <= value <= up
    assert up - down <= 10.0 ** (1 - digits) * up * (1 + 1e-9)
    assert up == float(f"{up:.{digits}g}")
    assert down == float(f"{down:.{digits}g}")
