"""What a trained model or a mechanism gives away, measured: planted secrets, and lower bounds on epsilon.

A measurement bounds nothing from above: that an attack fails is no proof that all do. The guarantee is the
ledger's epsilon. A lower bound above it proves a mistake; planted secrets show what a run without it risks.

Room: audit (between train and recipes). May import torch and the floors below; knows no model. Its statistics
(`_intervals`, `_one_run`, `_recording`) never reach torch; names load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._exposure import Exposure, chance_of_exposure, exposure, extract
    from ._informed import (
        Release,
        candidate_scores,
        per_example_gradients,
        releases,
        residual_at_optimum,
        residuals,
    )
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
    from ._pictures import PicturePrior, first_layer_input, likely_input, match_gradient, nearer_than_pool
    from ._recording import LowerBound, Recording, one_run_bound, step_level_bound
    from ._secret import Secret, plant

_WHERE: Final = {
    "_exposure": ("Exposure", "chance_of_exposure", "exposure", "extract"),
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
    "_secret": ("Secret", "plant"),
    "_recording": ("LowerBound", "Recording", "one_run_bound", "step_level_bound"),
}

__all__ = [
    "Errors",
    "Exposure",
    "Guesses",
    "LowerBound",
    "PicturePrior",
    "Recording",
    "Release",
    "RocPoint",
    "Secret",
    "Shadows",
    "area_under",
    "balanced_halves",
    "candidate_scores",
    "chance_of_exposure",
    "clopper_pearson_upper",
    "epsilon_from_errors",
    "exposure",
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
    "many_run_bound",
    "match_gradient",
    "mu_from_errors",
    "nearer_than_pool",
    "one_run_bound",
    "per_example_gradients",
    "plant",
    "releases",
    "residual_at_optimum",
    "residuals",
    "roc",
    "roc_points",
    "scaled_confidence",
    "steinke_epsilon",
    "steinke_p_value",
    "step_level_bound",
    "train_shadows",
]


def __getattr__(name: str) -> object:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f".{module}", __package__), name)
    raise AttributeError(f"module 'reticent.audit' has no attribute {name!r}")
