"""Groups of units: pinned to separately computed values, and to a closed form where there is one."""

import pytest

from reticent.account import epsilon, group_epsilon
from reticent.errors import AccountingError, ConfigError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from tests.account.oracle import unsampled_delta

SAMPLED = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=1.0)
FULL = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=20.0)


# Contour integrals of the same mixture at higher precision.
@pytest.mark.parametrize(
    ("k", "truth"), [(2, 3.9790857631), pytest.param(4, 8.8991876707, marks=pytest.mark.slow)]
)
def test_a_group_is_at_least_the_truth_and_not_much_above(k, truth):
    assert truth <= group_epsilon([(SAMPLED, 1000)], group_size=k, delta=1e-5).epsilon <= truth + 1e-3


def test_a_group_of_one_is_the_unit_itself():
    assert group_epsilon([(SAMPLED, 10)], group_size=1, delta=1e-5) == epsilon([(SAMPLED, 10)], delta=1e-5)


def test_in_full_batches_k_units_are_one_with_k_times_the_bound():
    spent = group_epsilon([(FULL, 10)], group_size=3, delta=1e-5).epsilon
    assert float(unsampled_delta(20.0 / 3 / 10**0.5, spent)) == pytest.approx(1e-5, rel=1e-6)


def test_sampled_and_full_batch_steps_add_up():
    noisy = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=8.0)
    segments = [(noisy, 100), (FULL, 10)]
    both = group_epsilon(segments, group_size=2, delta=1e-5).epsilon
    alone = [group_epsilon([segment], group_size=2, delta=1e-5).epsilon for segment in segments]
    assert max(alone) < both < sum(alone)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, 257, "2"])
def test_a_group_has_a_whole_positive_size(k):
    with pytest.raises(ConfigError, match="group_size"):
        group_epsilon([(SAMPLED, 1)], group_size=k, delta=1e-5)


@pytest.mark.parametrize(("noise", "delta"), [(1.0, 1e-13), (0.1, 1e-5)])
def test_where_no_bound_can_be_trusted_none_is_given(noise, delta):
    little = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=noise)
    with pytest.raises(AccountingError, match="No trustworthy epsilon"):
        group_epsilon([(little, 1000)], group_size=8, delta=delta)


def test_a_sampled_group_has_no_epsilon_under_replace_one():
    """Units exchanged move the sum twice as far as units zeroed out, whose bound would be too low."""
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.1, noise_multiplier=2.0)
    with pytest.raises(AccountingError, match="no-bound"):
        group_epsilon([(step, 1)], group_size=2, delta=1e-5, relation=NeighbouringRelation.REPLACE_ONE)
    usual = group_epsilon([(step, 1)], group_size=2, delta=1e-5, relation=NeighbouringRelation.ZERO_OUT)
    assert usual.epsilon < 0.99837  # of the exchange, by integration
