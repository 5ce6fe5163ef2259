"""The audit's statistics: pinned values, and coverage on mechanisms whose leak is known.

Coverage: a bound at 95 % may be wrong in one run of twenty. Over 200 runs at the worst case the number of
wrong ones is Bin(200, 0.05): above 20 with probability 1.4e-3; seeds are fixed. Each coverage test is shown
able to fail, by a bound that is wrong in the way people get it wrong.
"""

import math

import numpy as np
import pytest
from scipy.stats import norm

from reticent.account import delta_curve, epsilon, epsilon_floor
from reticent.audit import (
    Errors,
    Guesses,
    Recording,
    clopper_pearson_upper,
    epsilon_from_errors,
    f_dp_epsilon,
    f_dp_mu,
    gaussian_delta,
    gaussian_epsilon,
    jeffreys_upper,
    many_run_bound,
    mu_from_errors,
    one_run_bound,
    steinke_epsilon,
    steinke_p_value,
    step_level_bound,
)
from reticent.audit._one_run import f_dp_rejected
from reticent.audit._recording import NUM_GUESSES, log_likelihood_ratios, one_run_guesses, trade_off
from reticent.errors import ConfigError
from reticent.records import Mechanism

DELTA, RUNS, TOO_MANY = 1e-5, 200, 20


def guesses(m, r, v):
    return Guesses(num_canaries=m, num_guesses=r, num_correct=v)


@pytest.mark.parametrize(
    ("counts", "steinke", "f_dp"),
    [
        ((1000, 500, 500), 5.087549, 9.919382),
        ((1000, 300, 280), 2.246951, 3.775999),
        ((10000, 2000, 1900), 2.767896, 4.099809),
        ((100, 60, 50), 1.012992, 2.074856),
    ],
)
def test_one_run_bounds_are_those_of_an_independent_implementation(counts, steinke, f_dp):
    found = guesses(*counts)
    assert steinke_epsilon(found, delta=DELTA, confidence=0.95) == pytest.approx(steinke, abs=5e-6)
    assert f_dp_epsilon(found, delta=DELTA, confidence=0.95) == pytest.approx(f_dp, abs=2e-5)


def test_clopper_pearson_is_pinned_and_jeffreys_is_below_it():
    assert clopper_pearson_upper(3, 1000, chance=0.025) == pytest.approx(0.00874202, abs=1e-8)
    assert jeffreys_upper(3, 1000, chance=0.025) < clopper_pearson_upper(3, 1000, chance=0.025)
    assert clopper_pearson_upper(0, 0, chance=0.05) == 1.0


def test_clopper_pearson_inverts_the_binomial_tail():
    from scipy.stats import binom

    upper = clopper_pearson_upper(7, 90, chance=0.01)
    assert binom.cdf(7, 90, upper) == pytest.approx(0.01, rel=1e-9)


def test_gaussian_epsilon_is_not_above_the_exact_value():
    for mu in (0.1, 1.0, 3.0):
        found = gaussian_epsilon(mu, delta=DELTA)
        exact = epsilon(
            [(Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=1 / mu), 1)], delta=DELTA
        )
        assert found <= exact.epsilon
        assert found == pytest.approx(exact.epsilon, abs=1e-6)
        assert gaussian_delta(mu, found) == pytest.approx(DELTA, rel=1e-4)


def test_an_attack_worse_than_guessing_shows_nothing():
    worse = Errors(false_positives=900, num_out=1000, false_negatives=900, num_in=1000)
    assert mu_from_errors(worse, confidence=0.95) == 0.0


def test_no_leak_gives_no_bound_and_no_trials_give_no_bound():
    blind = Errors(false_positives=500, num_out=1000, false_negatives=500, num_in=1000)
    nothing = Errors(false_positives=0, num_out=0, false_negatives=0, num_in=0)
    for errors in (blind, nothing):
        assert mu_from_errors(errors, confidence=0.95) == 0.0
        assert epsilon_from_errors(errors, delta=DELTA, confidence=0.95) == 0.0
    assert steinke_epsilon(guesses(100, 100, 50), delta=DELTA, confidence=0.95) == 0.0
    assert f_dp_mu(guesses(100, 100, 50), confidence=0.95) == 0.0
    assert f_dp_mu(guesses(100, 0, 0), confidence=0.95) == 0.0


def test_perfect_guesses_over_many_trials_show_a_large_leak():
    perfect = Errors(false_positives=0, num_out=10_000, false_negatives=0, num_in=10_000)
    assert epsilon_from_errors(perfect, delta=DELTA, confidence=0.95) == pytest.approx(7.9, abs=0.05)


@pytest.mark.parametrize("evidence", [np.zeros(1000), np.random.default_rng(10).standard_normal(1000)])
def test_samples_that_are_the_same_in_and_out_give_no_bound(evidence):
    """JAX-Privacy 2.0.0 reports epsilon 6.35 on them: it takes the absolute value of a negative mu."""
    member = np.arange(1000) % 2 == 0
    seen = Recording(scores=evidence[None], included=member[None], member=np.ones(1000, bool))
    for step in (seen, Recording(scores=-5.0 + seen.scores, included=seen.included, member=seen.member)):
        found = step_level_bound(step, mechanism=MECHANISM, num_steps=100, delta=DELTA, confidence=0.95)
        assert (found.epsilon, found.mu) == (0.0, 0.0)
    assert one_run_bound(evidence, member, delta=DELTA, confidence=0.95).epsilon == 0.0
    assert many_run_bound(evidence, member, delta=DELTA, confidence=0.95).epsilon == 0.0


def test_an_odd_number_of_canaries_is_guessed_at():
    for num in (2, 3, 7, 1003):
        bound = one_run_bound(np.arange(num) * 1.0, np.arange(num) > num / 2, delta=DELTA, confidence=0.95)
        assert bound.epsilon >= 0.0


@pytest.mark.parametrize(
    "bad", [lambda: guesses(10, 11, 5), lambda: guesses(10, 5, 6), lambda: guesses(10, 5, -1)]
)
def test_impossible_guesses_are_refused(bad):
    with pytest.raises(ConfigError, match="impossible") as caught:
        bad()
    assert caught.value.code == "audit-counts"


def test_impossible_errors_and_confidences_are_refused():
    with pytest.raises(ConfigError, match="cannot be wrong 3 times in 2 trials"):
        Errors(false_positives=3, num_out=2, false_negatives=0, num_in=1)
    with pytest.raises(ConfigError, match="confidence must be strictly between 0 and 1, got 95"):
        mu_from_errors(Errors(false_positives=0, num_out=9, false_negatives=0, num_in=9), confidence=95)
    with pytest.raises(ConfigError, match="one score for each coin"):
        one_run_bound(np.zeros(3), np.zeros(4, bool), delta=DELTA, confidence=0.95)


def randomised_response(rng, true_epsilon, m):
    """m coins, each answered rightly with probability e^eps / (1 + e^eps): exactly (eps, 0)-DP."""
    p = 1 / (1 + math.exp(-true_epsilon))
    return guesses(m, m, int(rng.binomial(m, p)))


def test_the_steinke_bound_covers_randomised_response():
    rng, true = np.random.default_rng(1), 1.0
    found = [
        steinke_epsilon(randomised_response(rng, true, 400), delta=0.0, confidence=0.95) for _ in range(RUNS)
    ]
    assert sum(bound > true for bound in found) <= TOO_MANY
    assert np.median(found) > 0.7


def test_coverage_would_notice_an_estimate_sold_as_a_bound():
    rng, true, m = np.random.default_rng(1), 1.0, 400
    share = [randomised_response(rng, true, m).num_correct / m for _ in range(RUNS)]
    assert sum(math.log(s / (1 - s)) > true for s in share) > TOO_MANY


def test_the_p_value_is_uniform_or_larger_at_the_truth():
    rng = np.random.default_rng(2)
    p = [steinke_p_value(randomised_response(rng, 1.0, 400), epsilon=1.0, delta=0.0) for _ in range(RUNS)]
    assert sum(value <= 0.05 for value in p) <= TOO_MANY


def gaussian_trials(rng, mu, trials):
    """What a threshold at mu / 2 gets wrong on N(mu, 1) against N(0, 1)."""
    return Errors(
        false_positives=int(rng.binomial(trials, norm.sf(mu / 2))),
        num_out=trials,
        false_negatives=int(rng.binomial(trials, norm.cdf(-mu / 2))),
        num_in=trials,
    )


def test_bounds_over_many_runs_cover_the_gaussian():
    rng, mu = np.random.default_rng(3), 1.0
    truth = gaussian_epsilon(mu, delta=DELTA)
    errors = [gaussian_trials(rng, mu, 2000) for _ in range(RUNS)]
    mus = [mu_from_errors(e, confidence=0.95) for e in errors]
    assert sum(found > mu for found in mus) <= TOO_MANY
    assert np.median(mus) > 0.85
    assert sum(epsilon_from_errors(e, delta=DELTA, confidence=0.95) > truth for e in errors) <= TOO_MANY


def test_coverage_would_notice_the_absolute_value():
    """A leak of zero, bounded as |Phi^-1(1 - FPR) - Phi^-1(FNR)| of upper bounds: always above the truth."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(RUNS):
        e = gaussian_trials(rng, 0.0, 500)
        fpr = clopper_pearson_upper(e.false_positives, e.num_out, chance=0.025)
        fnr = clopper_pearson_upper(e.false_negatives, e.num_in, chance=0.025)
        wrong += abs(norm.isf(fpr) - norm.ppf(fnr)) > 0
        assert mu_from_errors(e, confidence=0.95) <= 0.2
    assert wrong > TOO_MANY


def one_run_gaussian(rng, mu, m):
    member = rng.random(m) < 0.5
    return member * mu + rng.standard_normal(m), member


def test_one_run_f_dp_covers_the_gaussian_and_says_more_than_steinke():
    rng, mu, m = np.random.default_rng(5), 1.0, 400
    found = []
    for _ in range(RUNS):
        evidence, member = one_run_gaussian(rng, mu, m)
        order = np.argsort(evidence)
        right = int(member[order[-60:]].sum() + (~member[order[:60]]).sum())
        found.append(guesses(m, 120, right))
    mus = [f_dp_mu(g, confidence=0.95) for g in found]
    assert sum(value > mu for value in mus) <= TOO_MANY
    more = [f_dp_epsilon(g, delta=DELTA, confidence=0.95) for g in found[:20]]
    less = [steinke_epsilon(g, delta=DELTA, confidence=0.95) for g in found[:20]]
    assert np.mean(more) > 1.5 * np.mean(less)


@pytest.mark.slow
def test_one_run_bound_covers_while_trying_several_numbers_of_guesses():
    rng, mu = np.random.default_rng(6), 1.0
    truth = gaussian_epsilon(mu, delta=DELTA)
    found = [
        one_run_bound(*one_run_gaussian(rng, mu, 200), delta=DELTA, confidence=0.95).epsilon
        for _ in range(RUNS)
    ]
    assert sum(bound > truth for bound in found) <= TOO_MANY
    assert max(found) > 0


@pytest.mark.slow
def test_the_curve_of_sampled_steps_is_rarely_refuted_and_that_of_three_times_the_noise_is():
    q, noise, steps, m = 0.1, 0.936, 100, 400
    true, claimed = (
        trade_off(Mechanism(scheme="poisson", sampling_prob=q, noise_multiplier=sigma), steps)
        for sigma in (noise, 3.0 * noise)
    )
    rng, wrong, right = np.random.default_rng(12), 0, 0
    for _ in range(RUNS):
        member = rng.random(m) < 0.5
        included = (rng.random((steps, m)) < q) & member
        scores = included + noise * rng.standard_normal((steps, m))
        seen = Recording(scores=scores, included=included, member=member)
        evidence = log_likelihood_ratios(seen, mechanism=MECHANISM)
        tries = [one_run_guesses(evidence, member, share=share) for share in NUM_GUESSES]
        wrong += any(f_dp_rejected(g, blow_up_inverse=true, chance=0.05 / len(tries)) for g in tries)
        right += any(f_dp_rejected(g, blow_up_inverse=claimed, chance=0.05 / len(tries)) for g in tries)
    assert wrong <= TOO_MANY
    assert right > RUNS / 2


@pytest.mark.slow
def test_one_run_bound_against_the_curve_of_sampled_steps():
    mechanism = Mechanism(scheme="poisson", sampling_prob=0.5, noise_multiplier=0.7)
    rng, m, steps = np.random.default_rng(7), 1000, 1
    member = rng.random(m) < 0.5
    included = (rng.random((steps, m)) < 0.5) & member
    x = included + 0.7 * rng.standard_normal((steps, m))
    evidence = np.logaddexp(math.log(0.5), math.log(0.5) + (2 * x - 1) / (2 * 0.49)).sum(0)
    bound = one_run_bound(
        evidence, member, delta=DELTA, confidence=0.95, mechanism=mechanism, num_steps=steps
    )
    claimed = epsilon([(mechanism, steps)], delta=DELTA).epsilon
    assert 0.0 < bound.epsilon <= claimed


def recording(rng, *, noise, q=0.1, steps=50, m=400, bound=1.0):
    included = rng.random((steps, m)) < q
    scores = bound * included + noise * rng.standard_normal((steps, m))
    return Recording(scores=scores, included=included, member=np.ones(m, dtype=bool))


MECHANISM = Mechanism(scheme="poisson", sampling_prob=0.1, noise_multiplier=0.936)


@pytest.mark.slow
def test_step_level_bound_covers_full_batches():
    rng, noise = np.random.default_rng(11), 0.936
    full = Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=noise)
    found = [
        step_level_bound(
            recording(rng, noise=noise, q=0.5, steps=2, m=500),
            mechanism=full,
            num_steps=1,
            delta=DELTA,
            confidence=0.95,
        )
        for _ in range(RUNS)
    ]
    truth = epsilon([(full, 1)], delta=DELTA).epsilon
    assert sum(bound.epsilon > truth for bound in found) <= TOO_MANY
    assert np.median([bound.epsilon for bound in found]) > 0.7 * truth


@pytest.mark.slow
def test_step_level_bound_covers_and_accepts_the_right_noise():
    rng = np.random.default_rng(8)
    mus = [
        step_level_bound(
            recording(rng, noise=0.936), mechanism=MECHANISM, num_steps=1, delta=DELTA, confidence=0.95
        ).mu
        for _ in range(12)
    ]
    assert sum(mu > 1 / 0.936 for mu in mus) <= 4  # Bin(12, 0.05): above with probability 2e-4
    assert np.median(mus) > 0.85 / 0.936


@pytest.mark.parametrize(("noise", "bound"), [(0.936 / math.sqrt(2), 1.0), (0.0, 1.0), (0.936, 2.0)])
def test_step_level_bound_refutes_too_little_noise_and_too_long_gradients(noise, bound):
    seen = recording(np.random.default_rng(9), noise=noise, bound=bound)
    found = step_level_bound(seen, mechanism=MECHANISM, num_steps=100, delta=DELTA, confidence=0.999)
    assert found.epsilon > epsilon([(MECHANISM, 100)], delta=DELTA).epsilon


@pytest.mark.parametrize(
    ("q", "noise", "steps"),
    [(0.1, 0.936, 100), (1.0, 1.0, 1), (1.0, 4.0, 10), (0.25, 1.2, 120), (0.1, 3.9, 100)],
)
def test_the_floor_and_the_claim_bracket_epsilon(q, noise, steps):
    scheme = "full-batch" if q == 1.0 else "poisson"
    segments = [(Mechanism(scheme=scheme, sampling_prob=q, noise_multiplier=noise), steps)]
    floor, claim = epsilon_floor(segments, delta=DELTA), epsilon(segments, delta=DELTA).epsilon
    assert 0.985 * claim < floor < claim


def test_the_floor_of_nothing_and_of_no_noise():
    silent = Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=0.0)
    assert epsilon_floor([], delta=DELTA) == 0.0
    assert epsilon_floor([(silent, 1)], delta=DELTA) == math.inf


def test_the_profile_of_one_gaussian_is_the_closed_form():
    segments = [(Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=1.0), 1)]
    for eps, delta in zip((0.0, 1.0, 3.0), delta_curve(segments, epsilons=(0.0, 1.0, 3.0)), strict=True):
        assert gaussian_delta(1.0, eps) <= delta <= gaussian_delta(1.0, eps) * 1.01 + 1e-6
