"""Attacks over many runs: known curves, a bound that covers, and one that does not.

Coverage: at 95 %, wrong at most in one run of twenty; over 200 runs Bin(200, 0.05) is above 20 with
probability 1.4e-3. Seeds are fixed.
"""

import numpy as np
import pytest
from scipy.stats import norm

from reticent.audit import (
    Shadows,
    area_under,
    balanced_halves,
    fair_coins,
    gaussian_epsilon,
    lira_offline,
    lira_online,
    many_run_bound,
    one_run_bound,
    roc,
    roc_points,
    scaled_confidence,
    train_shadows,
)
from reticent.errors import ConfigError

DELTA, RUNS, TOO_MANY = 1e-5, 200, 20


def gaussian_trials(mu, num, seed):
    """One run each: N(mu, 1) for those that were in, N(0, 1) for the others."""
    generator = np.random.default_rng(seed)
    member = np.arange(num) % 2 == 0
    return generator.standard_normal(num) + mu * member, member


@pytest.mark.parametrize(("mu", "num"), [(0.0, 400), (1.0, 400), (3.0, 2000)])
def test_the_bound_over_many_runs_is_rarely_above_the_truth(mu, num):
    truth = gaussian_epsilon(mu, delta=DELTA)
    wrong = 0
    for seed in range(RUNS):
        wrong += many_run_bound(*gaussian_trials(mu, num, seed), delta=DELTA, confidence=0.95).epsilon > truth
    assert wrong <= TOO_MANY


def test_a_threshold_chosen_on_the_counted_trials_would_be_wrong_too_often():
    wrong = 0
    for seed in range(RUNS):
        evidence, member = gaussian_trials(0.0, 40, seed)
        best = max(
            abs(float((evidence[member] > t).mean() - (evidence[~member] > t).mean())) for t in evidence
        )
        wrong += best > norm.ppf(0.975) * np.sqrt(0.5 / 20)  # as if the threshold had been fixed
    assert wrong > TOO_MANY


def test_an_attack_of_infinite_scores_that_knows_nothing_bounds_nothing():
    """Log-odds of an attack that is always sure: equal infinities are equal, with none between them."""
    wrong = 0
    for seed in range(RUNS):
        coins = np.random.default_rng(seed).integers(0, 2, 400) == 1
        evidence = np.where(coins, np.inf, -np.inf)
        wrong += many_run_bound(evidence, np.arange(400) % 2 == 0, delta=DELTA, confidence=0.95).epsilon > 0
    assert wrong <= TOO_MANY
    assert area_under(np.full(20, np.inf), np.arange(20) < 10) == 0.5


def test_infinite_scores_that_are_right_bound_as_finite_ones_do():
    member = np.arange(400) % 2 == 0
    sure = [
        many_run_bound(np.where(member, s, -s), member, delta=DELTA, confidence=0.95) for s in (1.0, np.inf)
    ]
    assert sure[0].epsilon == sure[1].epsilon > 3


def test_the_bound_has_power():
    bound = many_run_bound(*gaussian_trials(10.0, 4000, 0), delta=DELTA, confidence=0.95)
    assert 5.0 < bound.epsilon < gaussian_epsilon(10.0, delta=DELTA)  # 1000 a side: at most 5.6
    assert "1000 with the example" in bound.method


def test_the_curve_is_that_of_the_scores():
    evidence, member = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    accused, found = roc(evidence, member)
    assert accused.tolist() == [0.0, 0.0, 0.5, 1.0] and found.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert area_under(evidence, member) == 0.875
    (point,) = roc_points(evidence, member, rates=(0.1,), confidence=0.9)
    assert point.true_positive_rate == 0.5 and point.lower < 0.5 < point.upper


def test_a_known_curve_is_found_at_low_rates():
    point, _, _ = roc_points(*gaussian_trials(3.0, 200_000, 1), confidence=0.999)
    assert point.lower < norm.cdf(3.0 - norm.isf(0.001)) < point.upper


@pytest.mark.parametrize(
    ("evidence", "member"),
    [([1.0], [True, False]), ([1.0, 2.0], [True, True]), ([1.0, float("nan")], [True, False])],
)
def test_what_is_no_set_of_trials_is_refused(evidence, member):
    with pytest.raises(ConfigError, match="some were in and some out"):
        roc(np.array(evidence), np.array(member))


def test_a_bound_needs_trials_to_choose_the_threshold_on():
    with pytest.raises(ConfigError, match="half of them choose"):
        many_run_bound(np.arange(4.0), np.arange(4) == 0, delta=DELTA, confidence=0.9)


# --- LiRA, on a mechanism whose best attack is known ------------------------------------------------------


def noisy_sum(sigma, num, offset, seed):
    """A "trainer": each example is a unit vector; the model is their sum and Gaussian noise. mu = 1 / sigma.

    Each coordinate has an offset of its own, which a single threshold for all examples does not know.
    """
    generator = np.random.default_rng(seed)
    offsets = offset * generator.standard_normal(num)

    def train(dataset):
        (rows,) = dataset
        return offsets + np.eye(num)[rows].sum(0) + sigma * generator.standard_normal(num)

    return train


@pytest.fixture(scope="module")
def attacked():
    num, mu = 200, 2.0
    train, rows = noisy_sum(1 / mu, num, 3.0, 0), (np.arange(num),)
    shadows = train_shadows(train, np.asarray, rows, balanced_halves(32, num, seed=1))
    targets = train_shadows(train, np.asarray, rows, fair_coins(50, num, seed=2))
    return mu, shadows, targets


@pytest.mark.parametrize("attack", [lira_online, lira_offline])
def test_the_attack_nearly_reaches_the_best_there_is(attacked, attack):
    mu, shadows, targets = attacked
    evidence = attack(shadows, targets.scores)
    best = norm.cdf(mu / np.sqrt(2))
    assert best - 0.03 < area_under(evidence, targets.member) < best + 0.01
    assert area_under(targets.scores, targets.member) < best - 0.2  # one threshold for all


def test_its_one_run_bound_is_below_the_truth_and_above_zero(attacked):
    mu, shadows, targets = attacked
    evidence = lira_online(shadows, targets.scores).ravel()
    bound = one_run_bound(evidence, targets.member.ravel(), delta=DELTA, confidence=0.99)
    assert 1.0 < bound.epsilon <= gaussian_epsilon(mu, delta=DELTA)


def test_own_spreads_find_what_a_common_one_does_not():
    generator = np.random.default_rng(0)
    spreads = np.geomspace(0.1, 10.0, 100)
    member = balanced_halves(200, 100, seed=0)
    coins = fair_coins(200, 100, seed=1)

    def scores(side):
        return spreads * (generator.standard_normal(side.shape) + 2.0 * side)

    shadows, seen = Shadows(scores=scores(member), member=member), scores(coins)
    own = area_under(lira_online(shadows, seen, own_spread=True), coins)
    assert own > 0.9 > area_under(lira_online(shadows, seen), coins)


def test_halves_are_balanced_and_need_pairs():
    assert (balanced_halves(8, 30, seed=0).sum(0) == 4).all()
    with pytest.raises(ConfigError, match="come in pairs"):
        balanced_halves(5, 30, seed=0)


def test_scaled_confidence_is_exact_where_the_probability_rounds_to_one():
    logits = np.array([[800.0, 0.0, 0.0], [1.0, 2.0, 0.5]])
    p = np.exp(2.0) / np.exp([1.0, 2.0, 0.5]).sum()
    assert scaled_confidence(logits, np.array([0, 1])) == pytest.approx(
        [800 - np.log(2), np.log(p / (1 - p))]
    )


def test_shadows_that_say_nothing_about_an_example_are_refused():
    member = np.ones((4, 2), dtype=bool)
    shadows = Shadows(scores=np.random.default_rng(0).random((4, 2)), member=member)
    with pytest.raises(ConfigError, match="too many or too few"):
        lira_offline(shadows, np.zeros(2))
    with pytest.raises(ConfigError, match="one finite score"):
        Shadows(scores=np.full((4, 2), np.nan), member=member)
    with pytest.raises(ConfigError, match="one number for each of the 2"):
        train_shadows(len, lambda model: [1.0], (np.arange(2),), member)
    with pytest.raises(ConfigError, match="coins for 2 examples"):
        train_shadows(len, lambda model: [1.0], (np.arange(3),), member)
