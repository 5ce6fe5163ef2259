"""The best of a random number of runs: the theorems again from the paper, and what must hold at the edges."""
# pyright: reportArgumentType=false

import math

import numpy as np
import pytest
from scipy.stats import nbinom

from reticent.account import RandomTrials, TrialsDistribution, _select, choice_epsilon, epsilon
from reticent.errors import ConfigError
from reticent.records import Mechanism, SamplingScheme

DELTA = 1e-5


def full_batch(sigma):
    return Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=sigma)


def poisson(q, sigma):
    return Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=q, noise_multiplier=sigma)


def papers_bound(sigmas, *, mean, eta, delta):
    """Theorem 2 (eta finite) and 6 (Poisson) for Gaussian runs, rho = a / (2 sigma^2), on a fine grid."""
    orders = np.concatenate([np.linspace(1.01, 10, 600), np.linspace(10, 400, 800)])
    rho = np.max([orders / (2 * s * s) for s in sigmas], axis=0)
    if math.isinf(eta):
        out = []
        for a, r in zip(orders, rho, strict=True):
            eps_hat = math.log1p(1 / (a - 1))
            # delta of (eps_hat, delta)-DP from RDP, as in Canonne et al. 2020 (the weaker, simple form)
            log_delta = np.min(
                (orders - 1) * (rho - eps_hat) + (orders - 1) * np.log1p(-1 / orders) - np.log(orders)
            )
            out.append(r + mean * math.exp(min(log_delta, 0.0)) + math.log(mean) / (a - 1))
        total = np.array(out)
    else:
        gamma = 1 / mean  # geometric only: the one whose gamma needs no root
        assert eta == 1
        best = np.min((1 - 1 / orders) * rho + np.log(1 / gamma) / orders)
        total = rho + (1 + eta) * best + np.log(mean) / (orders - 1)
    return float(np.min(total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)))


@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("sigmas", [[4.0], [20.0, 6.0]])
@pytest.mark.parametrize(
    ("distribution", "eta"), [(TrialsDistribution.GEOMETRIC, 1.0), (TrialsDistribution.POISSON, math.inf)]
)
def test_it_is_the_papers_bound(mean, sigmas, distribution, eta):
    ours = choice_epsilon(
        [[(full_batch(s), 1)] for s in sigmas],
        trials=RandomTrials(distribution=distribution, mean=mean),
        delta=DELTA,
    ).epsilon
    theirs = papers_bound(sigmas, mean=mean, eta=eta, delta=DELTA)
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("distribution", list(TrialsDistribution))
def test_choosing_costs_more_than_one_run_and_less_than_publishing_all(distribution):
    run = [(poisson(0.02, 1.1), 400)]
    one = epsilon(run, delta=DELTA).epsilon
    chosen = choice_epsilon(
        [run], trials=RandomTrials(distribution=distribution, mean=30), delta=DELTA
    ).epsilon
    published = epsilon([(poisson(0.02, 1.1), 400 * 30)], delta=DELTA).epsilon
    assert one < chosen < published


def test_of_several_settings_the_worst_counts_whatever_their_order():
    weak, strong = [(full_batch(2.0), 1)], [(full_batch(20.0), 1)]
    trials = RandomTrials(distribution="geometric", mean=5)
    alone = choice_epsilon([weak], trials=trials, delta=DELTA).epsilon
    assert choice_epsilon([strong, weak], trials=trials, delta=DELTA).epsilon == alone
    assert choice_epsilon([weak, strong, strong], trials=trials, delta=DELTA).epsilon == alone
    assert choice_epsilon([strong], trials=trials, delta=DELTA).epsilon < alone


def test_where_neither_dominates_the_bound_is_above_both():
    sampled, whole = [(poisson(0.01, 0.6), 200)], [(full_batch(1.5), 1)]
    trials = RandomTrials(distribution="geometric", mean=5)
    each = [choice_epsilon([run], trials=trials, delta=DELTA).epsilon for run in (sampled, whole)]
    assert choice_epsilon([sampled, whole], trials=trials, delta=DELTA).epsilon >= max(each)


def test_a_candidate_without_noise_has_no_epsilon():
    trials = RandomTrials(distribution="poisson", mean=3)
    runs = [[(full_batch(5.0), 1)], [(full_batch(0.0), 1)]]
    assert choice_epsilon(runs, trials=trials, delta=DELTA).epsilon == math.inf


@pytest.mark.parametrize("distribution", list(TrialsDistribution))
def test_the_drawn_numbers_have_the_stated_mean(distribution):
    """Mean of 20,000 draws within 5 standard errors: false alarms below 1e-6. A mean off by a fifth fails."""
    trials = RandomTrials(distribution=distribution, mean=4.0)
    rng = np.random.default_rng(7)
    drawn = np.array([trials.draw(rng) for _ in range(20_000)])
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - 4.0) < 5 * error
    assert 5 * error < 0.8
    assert (drawn.min() == 0) == (distribution is TrialsDistribution.POISSON)


@pytest.mark.parametrize("distribution", ["geometric", "negative-binomial", "logarithmic"])
@pytest.mark.parametrize("mean", [1, 1 + 1e-14, 1 + 1e-9])
def test_a_mean_of_one_draws_one_run_and_at_once(distribution, mean):
    """At 1 + 1e-9, two runs or more in 300 draws: at most 3e-7 likely."""
    trials = RandomTrials(distribution=distribution, mean=mean)
    rng = np.random.default_rng(7)
    assert {trials.draw(rng) for _ in range(300)} == {1}


@pytest.mark.parametrize(("distribution", "shape"), [("geometric", 1.0), ("negative-binomial", 0.5)])
def test_few_runs_are_drawn_with_their_probabilities(distribution, shape):
    """Where 0 is most of the negative binomial; 20,000 draws, each number within 5 standard errors."""
    trials = RandomTrials(distribution=distribution, mean=1.04)
    rng, gamma = np.random.default_rng(7), _select._gamma(shape, 1.04)
    assert gamma > 0.9
    drawn = np.array([trials.draw(rng) for _ in range(20_000)])
    for k in (1, 2, 3):
        true = nbinom.pmf(k, shape, gamma) / (1 - nbinom.pmf(0, shape, gamma))
        assert abs((drawn == k).mean() - true) < 5 * math.sqrt(true * (1 - true) / len(drawn))


@pytest.mark.parametrize("mean", [0.5, math.nan, math.inf, 1e7, "ten"])
def test_a_mean_that_means_nothing_is_refused(mean):
    with pytest.raises(ConfigError, match="mean number of trials must be from 1") as refused:
        RandomTrials(distribution="poisson", mean=mean)
    assert refused.value.code == "trials"


def test_no_candidates_are_refused():
    with pytest.raises(ConfigError, match="at least one candidate"):
        choice_epsilon([], trials=RandomTrials(distribution="poisson", mean=2), delta=DELTA)


def test_replace_one_is_refused():
    with pytest.raises(ConfigError, match="replace-one"):
        choice_epsilon(
            [[(full_batch(2.0), 1)]],
            trials=RandomTrials(distribution="poisson", mean=3),
            delta=DELTA,
            relation="replace-one",
        )
