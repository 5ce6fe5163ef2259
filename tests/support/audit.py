"""An audit of a private step: a lower bound on epsilon from canaries that the auditor knows everything about.

Canary j's gradient is the bound times the unit vector j, so each is seen in a coordinate of its own. The
auditor knows which canaries were drawn (it is a test), and asks how well one observation y of a coordinate
tells "drawn" from "not drawn". A lower bound mu on that, at 97.5 % for each of two rates, becomes a lower
bound on epsilon by composing the steps with sigma = 1 / mu.

It imports nothing of ours but the accountant, and has its own tests, on data without any signal.

Sources:
    [1] Clopper, Pearson 1934 (exact binomial limits).
    [2] Nasr et al. 2023, arXiv:2302.07956 (auditing each step).
"""

import numpy as np
from scipy import stats

from reticent.account import epsilon
from reticent.records import Mechanism, SamplingScheme


def error_limit(num_errors, num_trials, level=0.025):
    """Upper limit of an error rate at `level` [1]; 1 if there is nothing to learn from."""
    if num_trials == 0 or num_errors >= num_trials:
        return 1.0
    return float(stats.beta.ppf(1 - level, num_errors + 1, num_trials - num_errors))


def separation(absent, present):
    """A lower bound (95 %) on mu, for Gaussians a distance of mu deviations apart; 0 if none is shown.

    The threshold is chosen on half of the observations and used on the other half. A bound below zero is
    no separation: its absolute value would report a signal where there is none.
    """
    choose_a, test_a = absent[::2], absent[1::2]
    choose_p, test_p = present[::2], present[1::2]
    thresholds = np.quantile(np.concatenate([choose_a, choose_p]), np.linspace(0.04, 0.96, 24))
    best = max(thresholds, key=lambda t: _mu(choose_a, choose_p, t))
    return max(0.0, _mu(test_a, test_p, best))


def _mu(absent, present, threshold):
    false_alarms = error_limit(int((absent > threshold).sum()), len(absent))
    misses = error_limit(int((present <= threshold).sum()), len(present))
    return float(-stats.norm.ppf(false_alarms) - stats.norm.ppf(misses))


def epsilon_shown(absent, present, *, sampling_prob, num_steps, delta):
    """The epsilon that the observations refute: the run cannot be better than this (95 %)."""
    mu = separation(np.asarray(absent), np.asarray(present))
    if mu <= 0.0:
        return 0.0
    step = Mechanism(
        scheme=SamplingScheme.POISSON if sampling_prob < 1 else SamplingScheme.FULL_BATCH,
        sampling_prob=sampling_prob,
        noise_multiplier=1.0 / mu,
    )
    return epsilon([(step, num_steps)], delta=delta).epsilon
