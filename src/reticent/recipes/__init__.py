"""Recipes: ready plans with model and data, run from a name.

Room: recipes (floor 4). May import torch, pydantic, rich, and the floors below.
"""

from ._at_scale import at_scale
from ._audited import audit_recipe, audit_recipe_inputs, audit_run, audit_run_inputs
from ._config import (
    RecipeConfig,
    make_config,
    parse_settings,
    read_toml,
    restore_config,
    without_what_would_be_ignored,
)
from ._parts import plan_of, step_memory, with_measured_norm, with_physical_batch
from ._predict import Predictions, TrainedModel, load_model
from ._recipe import Recipe, Request
from ._run import describe, go_on, request, run, run_or_go_on
from ._simulate import Simulation, simulate, simulation
from ._table import DEFAULT_RECIPE, recipes
from ._training import Material, TrainingRecipe
from ._training_config import TrainingConfig

__all__ = [
    "DEFAULT_RECIPE",
    "Material",
    "Predictions",
    "Recipe",
    "RecipeConfig",
    "Request",
    "Simulation",
    "TrainedModel",
    "TrainingConfig",
    "TrainingRecipe",
    "at_scale",
    "audit_recipe",
    "audit_recipe_inputs",
    "audit_run",
    "audit_run_inputs",
    "describe",
    "go_on",
    "load_model",
    "make_config",
    "parse_settings",
    "plan_of",
    "read_toml",
    "recipes",
    "request",
    "restore_config",
    "run",
    "run_or_go_on",
    "simulate",
    "simulation",
    "step_memory",
    "with_measured_norm",
    "with_physical_batch",
    "without_what_would_be_ignored",
]
