"""What a trained model or a mechanism gives away, measured: planted secrets, and lower bounds on epsilon.

A measurement bounds nothing from above: that an attack fails is no proof that all do. The guarantee is the
ledger's epsilon. A lower bound above it proves a mistake; planted secrets show what a run without it risks.

Room: audit (between train and recipes). May import torch and the floors below; knows no model. Its statistics
(`_intervals`, `_one_run`, `_recording`) never reach torch; names load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._audit import audit_inputs, audit_steps
    from ._exposure import Exposure, ExposureRanks, chance_of_exposure, exposure, exposure_ranks, extract
    from ._function import audit_function
    from ._informed import (
        Release,
        candidate_scores,
        per_example_gradients,
        releases,
        residual_at_optimum,
        residuals,
    )
    from ._inputs import Examples, Inputs, OneRun, mislabelled, one_run_inputs, out_of_distribution
    from ._intervals import (
        Errors,
        clopper_pearson_upper,
        epsilon_from_errors,
        gaussian_delta,
        gaussian_epsilon,
        jeffreys_upper,
        mu_from_errors,
    )
    from ._lira import (
        Shadows,
        balanced_halves,
        fair_coins,
        lira_offline,
        lira_online,
        scaled_confidence,
        train_shadows,
    )
    from ._many_runs import RocPoint, area_under, many_run_bound, roc, roc_points
    from ._one_run import Guesses, f_dp_epsilon, f_dp_mu, steinke_epsilon, steinke_p_value
    from ._own_rows import audit_rows
    from ._pictures import PicturePrior, first_layer_input, likely_input, match_gradient, nearer_than_pool
    from ._probes import Probe
    from ._problem import Problem, Subject, Watched
    from ._recording import (
        LowerBound,
        Recording,
        log_likelihood_ratios,
        one_run_bound,
        step_level_bound,
    )
    from ._released import neighbour_probe, noise_probes
    from ._result import AuditResult, Claim, Curve, summary
    from ._secret import Secret, plant
    from ._white_box import private_training, record, small_subject

_WHERE: Final = {
    "_audit": ("audit_inputs", "audit_steps"),
    "_function": ("audit_function",),
    "_inputs": ("Examples", "Inputs", "OneRun", "mislabelled", "one_run_inputs", "out_of_distribution"),
    "_exposure": (
        "Exposure",
        "ExposureRanks",
        "chance_of_exposure",
        "exposure",
        "exposure_ranks",
        "extract",
    ),
    "_own_rows": ("audit_rows",),
    "_informed": (
        "Release",
        "candidate_scores",
        "per_example_gradients",
        "releases",
        "residual_at_optimum",
        "residuals",
    ),
    "_intervals": (
        "Errors",
        "clopper_pearson_upper",
        "epsilon_from_errors",
        "gaussian_delta",
        "gaussian_epsilon",
        "jeffreys_upper",
        "mu_from_errors",
    ),
    "_lira": (
        "Shadows",
        "balanced_halves",
        "fair_coins",
        "lira_offline",
        "lira_online",
        "scaled_confidence",
        "train_shadows",
    ),
    "_many_runs": ("RocPoint", "area_under", "many_run_bound", "roc", "roc_points"),
    "_one_run": ("Guesses", "f_dp_epsilon", "f_dp_mu", "steinke_epsilon", "steinke_p_value"),
    "_pictures": (
        "PicturePrior",
        "first_layer_input",
        "likely_input",
        "match_gradient",
        "nearer_than_pool",
    ),
    "_probes": ("Probe",),
    "_problem": ("Problem", "Subject", "Watched"),
    "_recording": (
        "LowerBound",
        "Recording",
        "log_likelihood_ratios",
        "one_run_bound",
        "step_level_bound",
    ),
    "_released": ("neighbour_probe", "noise_probes"),
    "_result": ("AuditResult", "Claim", "Curve", "summary"),
    "_secret": ("Secret", "plant"),
    "_white_box": ("private_training", "record", "small_subject"),
}

__all__ = [
    "AuditResult",
    "Claim",
    "Curve",
    "Errors",
    "Examples",
    "Exposure",
    "ExposureRanks",
    "Guesses",
    "Inputs",
    "LowerBound",
    "OneRun",
    "PicturePrior",
    "Probe",
    "Problem",
    "Recording",
    "Release",
    "RocPoint",
    "Secret",
    "Shadows",
    "Subject",
    "Watched",
    "area_under",
    "audit_function",
    "audit_inputs",
    "audit_rows",
    "audit_steps",
    "balanced_halves",
    "candidate_scores",
    "chance_of_exposure",
    "clopper_pearson_upper",
    "epsilon_from_errors",
    "exposure",
    "exposure_ranks",
    "extract",
    "f_dp_epsilon",
    "f_dp_mu",
    "fair_coins",
    "first_layer_input",
    "gaussian_delta",
    "gaussian_epsilon",
    "jeffreys_upper",
    "likely_input",
    "lira_offline",
    "lira_online",
    "log_likelihood_ratios",
    "many_run_bound",
    "match_gradient",
    "mislabelled",
    "mu_from_errors",
    "nearer_than_pool",
    "neighbour_probe",
    "noise_probes",
    "one_run_bound",
    "one_run_inputs",
    "out_of_distribution",
    "per_example_gradients",
    "plant",
    "private_training",
    "record",
    "releases",
    "residual_at_optimum",
    "residuals",
    "roc",
    "roc_points",
    "scaled_confidence",
    "small_subject",
    "steinke_epsilon",
    "steinke_p_value",
    "step_level_bound",
    "summary",
    "train_shadows",
]


def __getattr__(name: str) -> object:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f".{module}", __package__), name)
    raise AttributeError(f"module 'reticent.audit' has no attribute {name!r}")
