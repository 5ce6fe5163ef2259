"""Accounting: from what ran to an epsilon, and from a budget to the setting that keeps to it.

Room: account (floor 1). May import `reticent.records`, `reticent.errors`, dp-accounting, NumPy and
SciPy; never torch. The ledger of a run is `reticent.account.ledger`.
"""

from reticent.account._calibrate import (
    calibrate_noise_multiplier,
    calibrate_noise_scale,
    calibrate_num_steps,
    calibrate_sampling_prob,
    noise_multiplier_for,
    num_steps_for,
)
from reticent.account._check import Check
from reticent.account._crosscheck import checked_epsilon, cross_check
from reticent.account._epsilon import epsilon
from reticent.account._events import Segments, first_steps
from reticent.account._floor import delta_curve, epsilon_floor
from reticent.account._groups import group_epsilon
from reticent.account._other_samplers import (
    participation_epsilon,
    truncated_poisson_epsilon,
    without_replacement_epsilon,
)
from reticent.account._risk import Risk, risk
from reticent.account._runs import compose_runs
from reticent.account._select import RandomTrials, TrialsDistribution, choice_epsilon, recorded_choice_epsilon
from reticent.account._split import split_noise
from reticent.account._traces import verify_traces

__all__ = [
    "Check",
    "RandomTrials",
    "Risk",
    "Segments",
    "TrialsDistribution",
    "calibrate_noise_multiplier",
    "calibrate_noise_scale",
    "calibrate_num_steps",
    "calibrate_sampling_prob",
    "checked_epsilon",
    "choice_epsilon",
    "compose_runs",
    "cross_check",
    "delta_curve",
    "epsilon",
    "epsilon_floor",
    "first_steps",
    "group_epsilon",
    "noise_multiplier_for",
    "num_steps_for",
    "participation_epsilon",
    "recorded_choice_epsilon",
    "risk",
    "split_noise",
    "truncated_poisson_epsilon",
    "verify_traces",
    "without_replacement_epsilon",
]
