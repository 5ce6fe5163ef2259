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
    from ._intervals import (
        Errors,
        clopper_pearson_upper,
        epsilon_from_errors,
        gaussian_delta,
        gaussian_epsilon,
        jeffreys_upper,
        mu_from_errors,
    )
    from ._one_run import Guesses, f_dp_epsilon, f_dp_mu, steinke_epsilon, steinke_p_value
    from ._recording import LowerBound, Recording, one_run_bound, step_level_bound
    from ._secret import Secret, plant

_WHERE: Final = {
    "_exposure": ("Exposure", "chance_of_exposure", "exposure", "extract"),
    "_intervals": (
        "Errors",
        "clopper_pearson_upper",
        "epsilon_from_errors",
        "gaussian_delta",
        "gaussian_epsilon",
        "jeffreys_upper",
        "mu_from_errors",
    ),
    "_one_run": ("Guesses", "f_dp_epsilon", "f_dp_mu", "steinke_epsilon", "steinke_p_value"),
    "_secret": ("Secret", "plant"),
    "_recording": ("LowerBound", "Recording", "one_run_bound", "step_level_bound"),
}

__all__ = [
    "Errors",
    "Exposure",
    "Guesses",
    "LowerBound",
    "Recording",
    "Secret",
    "chance_of_exposure",
    "clopper_pearson_upper",
    "epsilon_from_errors",
    "exposure",
    "extract",
    "f_dp_epsilon",
    "f_dp_mu",
    "gaussian_delta",
    "gaussian_epsilon",
    "jeffreys_upper",
    "mu_from_errors",
    "one_run_bound",
    "plant",
    "steinke_epsilon",
    "steinke_p_value",
    "step_level_bound",
]


def __getattr__(name: str) -> object:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f".{module}", __package__), name)
    raise AttributeError(f"module 'reticent.audit' has no attribute {name!r}")
