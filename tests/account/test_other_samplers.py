"""Batches that our loops do not draw: pinned where others have values, and compared where bounds must lie."""

import pytest

from reticent.account import (
    epsilon,
    participation_epsilon,
    truncated_poisson_epsilon,
    without_replacement_epsilon,
)
from reticent.errors import AccountingError, ConfigError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from tests.account.oracle import unsampled_delta

SETTING = {"num_examples": 1000, "noise_multiplier": 2.0, "num_steps": 100, "delta": 1e-5}


def poisson(q, sigma, num_steps, **options):
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=sigma)
    return epsilon([(step, num_steps)], delta=1e-5, **options).epsilon


def test_shuffling_counts_participations_and_no_amplification():
    """One epoch of 1000 batches at sigma 0.5: 9.997 for fixed batches, where Poisson would say 3.239."""
    assert participation_epsilon(
        num_participations=1, noise_multiplier=0.5, delta=1e-5
    ).epsilon == pytest.approx(9.997, abs=1e-3)
    assert poisson(1e-3, 0.5, 1000) == pytest.approx(3.239, abs=1e-2)
    three = participation_epsilon(num_participations=3, noise_multiplier=5.0, delta=1e-5).epsilon
    assert float(unsampled_delta(5.0 / 3**0.5, three)) == pytest.approx(1e-5, rel=1e-6)


def test_a_fixed_partition_has_no_epsilon_under_add_or_remove():
    with pytest.raises(ConfigError, match="moves others"):
        participation_epsilon(
            num_participations=1,
            noise_multiplier=1.0,
            delta=1e-5,
            relation=NeighbouringRelation.ADD_OR_REMOVE,
        )


def test_cutting_batches_costs_more_than_never_cutting_and_no_more_than_replacing_at_half_the_noise():
    plain = poisson(0.02, 2.0, 100)
    rare = truncated_poisson_epsilon(sampling_prob=0.02, max_batch_size=60, **SETTING).epsilon
    often = truncated_poisson_epsilon(sampling_prob=0.02, max_batch_size=20, **SETTING).epsilon
    assert plain * (1 - 1e-3) <= rare < often
    assert often <= poisson(0.02, 1.0, 100, relation=NeighbouringRelation.REPLACE_ONE)
    whole = truncated_poisson_epsilon(sampling_prob=0.02, max_batch_size=1000, **SETTING)
    assert whole.epsilon == plain and whole.neighbouring_relation is NeighbouringRelation.ZERO_OUT


def test_without_replacement_has_half_the_noise_and_replace_one():
    """Given to the library as it is, the noise of Gaussian steps would count as twice what it is."""
    small = without_replacement_epsilon(batch_size=20, **SETTING)
    assert small.neighbouring_relation is NeighbouringRelation.REPLACE_ONE
    large = without_replacement_epsilon(batch_size=500, **SETTING).epsilon
    everybody = without_replacement_epsilon(batch_size=1000, **SETTING).epsilon
    assert small.epsilon < large <= everybody
    assert float(unsampled_delta(2.0 / 2 / 100**0.5, everybody)) == pytest.approx(1e-5, rel=1e-6)
    one = without_replacement_epsilon(**{**SETTING, "num_steps": 1}, batch_size=1000).epsilon
    assert one == pytest.approx(4.3771780957, abs=1e-6)
    assert small.epsilon > poisson(0.02, 2.0, 100)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_sizes_are_whole_positive_numbers(bad):
    with pytest.raises(ConfigError, match="each an integer from 1"):
        truncated_poisson_epsilon(sampling_prob=0.02, max_batch_size=bad, **SETTING)
    with pytest.raises(ConfigError, match="integer of at least 1"):
        without_replacement_epsilon(batch_size=bad, **SETTING)


def test_where_no_bound_can_be_trusted_none_is_given():
    with pytest.raises(AccountingError, match="No trustworthy epsilon"):
        truncated_poisson_epsilon(sampling_prob=0.02, max_batch_size=20, **{**SETTING, "delta": 1e-14})
    with pytest.raises(ConfigError, match="at most num_examples"):
        without_replacement_epsilon(batch_size=1001, **SETTING)
