"""Epsilon under each sampler, against computations that share no code with ours or with dp-accounting."""
# pyright: reportArgumentType=false

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, logsumexp

from reticent.account import epsilon, group_epsilon, noise_multiplier_for, num_steps_for
from reticent.errors import AccountingError, ConfigError
from reticent.records import RELATIONS, Budget, Mechanism, NeighbouringRelation
from reticent.sample import FixedSizeSampler, PartitionSampler, TruncatedPoissonSampler
from tests.account.oracle import unsampled_delta

DELTA = 1e-5
ZERO_OUT, REPLACE = NeighbouringRelation.ZERO_OUT, NeighbouringRelation.REPLACE_ONE
CUT = TruncatedPoissonSampler(num_examples=1000, expected_batch_size=20, max_batch_size=25)
FIXED = FixedSizeSampler(num_examples=1000, batch_size=20)
CYCLIC = PartitionSampler(num_examples=1000, num_batches=50, order="cyclic")


@pytest.mark.parametrize("order", ["cyclic", "shuffled", "balls-in-bins"])
@pytest.mark.parametrize(("num_steps", "times"), [(1, 1), (50, 1), (51, 2), (500, 10)])
def test_a_partition_costs_as_many_gaussian_steps_as_an_example_takes_part_in(order, num_steps, times):
    step = Mechanism(scheme=order, sampling_prob=1 / 50, noise_multiplier=4.0, num_batches=50)
    report = epsilon([(step, num_steps)], delta=DELTA, relation=ZERO_OUT)
    assert report.num_steps == num_steps
    assert float(unsampled_delta(4.0 / math.sqrt(times), report.epsilon)) == pytest.approx(DELTA, rel=1e-6)
    replaced = epsilon([(step, num_steps)], delta=DELTA, relation=REPLACE).epsilon
    assert float(unsampled_delta(2.0 / math.sqrt(times), replaced)) == pytest.approx(DELTA, rel=1e-6)


def test_two_runs_of_half_an_epoch_are_not_one_epoch():
    step = CYCLIC.mechanism(4.0)
    two = epsilon([(step, 25), (step, 25)], delta=DELTA, relation=ZERO_OUT).epsilon
    assert float(unsampled_delta(4.0 / math.sqrt(2), two)) == pytest.approx(DELTA, rel=1e-6)


def wang_epsilon(q, sigma, num_steps):
    """Theorem 9 of arXiv:1808.00087 at integer orders, sensitivity 2: looser than its theorem 27."""
    best = math.inf
    for alpha in range(2, 128):
        j = np.arange(3, alpha + 1)
        choose = gammaln(alpha + 1) - gammaln(j + 1) - gammaln(alpha - j + 1)
        higher = choose + j * math.log(q) + (j - 1) * j * 2 / sigma**2 + math.log(2)
        e2 = 4 / sigma**2
        second = math.log(alpha * (alpha - 1) / 2) + 2 * math.log(q)
        second += math.log(min(4 * math.expm1(e2), 2 * math.exp(e2)))
        rdp = num_steps * float(logsumexp(np.concatenate([[0.0, second], higher]))) / (alpha - 1)
        best = min(best, rdp + math.log1p(-1 / alpha) - math.log(DELTA * alpha) / (alpha - 1))
    return best


@pytest.mark.parametrize(("sigma", "num_steps"), [(2.0, 100), (4.0, 1000), (8.0, 50)])
def test_a_fixed_size_lies_between_poisson_of_one_pair_and_the_papers_looser_bound(sigma, num_steps):
    ours = epsilon([(FIXED.mechanism(sigma), num_steps)], delta=DELTA, relation=REPLACE).epsilon
    # All gradients -C, one of them replaced by +C: a Poisson step whose sum moves by 2C.
    poisson = Mechanism(scheme="poisson", sampling_prob=0.02, noise_multiplier=sigma / 2)
    below = epsilon([(poisson, num_steps)], delta=DELTA).epsilon
    everybody = Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=sigma)
    above = epsilon([(everybody, num_steps)], delta=DELTA, relation=REPLACE).epsilon
    assert below * 0.999 < ours <= min(above, wang_epsilon(0.02, sigma, num_steps) * (1 + 1e-9))


def one_step_delta(sampler, sigma, eps, *, others):
    """Exact delta of one truncated step for one pair: others of gradient `others` each, on one axis; one
    example of gradient 1 or 0. Every size of batch and whether the one is in it, as a mixture of Gaussians.
    """
    n, m, q = sampler.num_examples, sampler.max_batch_size, sampler.sampling_prob
    p = q * stats.binom.pmf(np.arange(n), n - 1, q)  # drawn, with so many others
    kept = np.minimum(1.0, m / (np.arange(n) + 1.0))
    out = (1 - q) * stats.binom.pmf(np.arange(n), n - 1, q)
    weights, means, zeroed = [], [], []
    for count in range(n):
        size = min(count + 1, m)
        weights += [p[count] * kept[count], p[count] * (1 - kept[count]), out[count]]
        means += [(size - 1) * others + 1.0, size * others, min(count, m) * others]
        zeroed += [(size - 1) * others, size * others, min(count, m) * others]
    x = np.linspace(min(zeroed + means) - 9 * sigma, max(zeroed + means) + 9 * sigma, 6000)
    one, other = (
        stats.norm.pdf((x[:, None] - np.array(centre)) / sigma) @ np.array(weights) / sigma
        for centre in (means, zeroed)
    )
    width = x[1] - x[0]
    return max(np.maximum(a - math.exp(eps) * b, 0).sum() * width for a, b in ((one, other), (other, one)))


@pytest.mark.parametrize("others", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("max_batch_size", [3, 40])
def test_no_pair_of_data_sets_shows_more_of_a_truncated_step_than_its_epsilon(others, max_batch_size):
    sampler = TruncatedPoissonSampler(num_examples=40, expected_batch_size=4, max_batch_size=max_batch_size)
    eps = epsilon([(sampler.mechanism(1.0), 1)], delta=1e-3, relation=ZERO_OUT).epsilon
    shown = one_step_delta(sampler, 1.0, eps, others=others)
    assert shown <= 1e-3 * (1 + 1e-3)
    if others == 0.0 and max_batch_size == 40:
        assert shown > 0.9e-3  # and there the bound is what an attack shows


@pytest.mark.parametrize("sampler", [CUT, FIXED, CYCLIC])
def test_a_sampler_is_refused_under_relations_that_it_has_no_bound_for(sampler):
    for relation in set(NeighbouringRelation) - set(RELATIONS[sampler.scheme]):
        with pytest.raises(ConfigError, match="have no epsilon under"):
            epsilon([(sampler.mechanism(1.0), 1)], delta=DELTA, relation=relation)


@pytest.mark.parametrize("sampler", [CUT, FIXED])
def test_steps_of_these_do_not_compose_with_others(sampler):
    full = Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=5.0)
    with pytest.raises(AccountingError, match="together with other steps"):
        epsilon([(sampler.mechanism(1.0), 1), (full, 1)], delta=DELTA, relation=sampler.relation)
    with pytest.raises(AccountingError, match="No trustworthy bound"):
        group_epsilon([(sampler.mechanism(1.0), 1)], group_size=2, delta=DELTA, relation=sampler.relation)


@pytest.mark.parametrize("sampler", [FIXED, CYCLIC])
def test_calibration_stays_within_the_budget_and_close_to_it(sampler):
    budget = Budget(epsilon=2.0, delta=DELTA)
    for relation in sampler.relations:
        sigma = noise_multiplier_for(sampler.mechanism, budget=budget, num_steps=120, relation=relation)
        spent = epsilon([(sampler.mechanism(sigma), 120)], delta=DELTA, relation=relation).epsilon
        assert 0.999 * 2.0 <= spent <= 2.0
        steps = num_steps_for(sampler.mechanism(sigma), budget=budget, relation=relation)
        more = epsilon([(sampler.mechanism(sigma), steps + 1)], delta=DELTA, relation=relation).epsilon
        assert steps >= 120 and more > 2.0
