"""Recipes: ready plans with model and data, run from a name.

Room: recipes (floor 4). May import torch, pydantic, rich, and the floors below.
"""

from ._config import RecipeConfig
from ._recipe import Recipe
from ._run import (
    DEFAULT_RECIPE,
    Request,
    go_on,
    make_plan,
    recipes,
    request,
    run,
    step_memory,
    with_physical_batch,
)

__all__ = [
    "DEFAULT_RECIPE",
    "Recipe",
    "RecipeConfig",
    "Request",
    "go_on",
    "make_plan",
    "recipes",
    "request",
    "run",
    "step_memory",
    "with_physical_batch",
]
