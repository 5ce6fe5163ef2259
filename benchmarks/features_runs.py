"""Runs of `last-layer` in one process, on features that are read once: for tables of many settings."""

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reticent.recipes import Request, make_config, recipes
from reticent.recipes.features._sources import Features, load_features

EPSILONS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


def read(features: str) -> Features:
    """Features by name or folder."""
    return load_features(features, report=print, progress=False)


def one_run(features: str, data: Features, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A whole run with its ledger, in a folder that is deleted; returns its result."""
    recipe = recipes()["last-layer"]
    chosen = {"features": features, "checkpoint_every": 1000, **settings}
    config = make_config(recipe.config, chosen)
    with tempfile.TemporaryDirectory() as folder:
        asked = Request(recipe=recipe, config=config, chosen=chosen)
        return recipe.run(asked, out=Path(folder) / "run", console=None, data=data)


def repeated(features: str, data: Features, settings: Mapping[str, Any], *, times: int) -> dict[str, Any]:
    """Mean and spread of each test score over `times` runs with fresh noise, and the largest epsilon."""
    results = [one_run(features, data, settings) for _ in range(times)]
    scores = [name for name in results[0] if name.startswith("test_")]
    spent = [r["epsilon"] for r in results]
    return {
        "settings": {k: v for k, v in settings.items() if v != float("inf")},
        "epsilon": None if None in spent else max(spent),
        "times": times,
        **{name: statistics.fmean(r[name] for r in results) for name in scores},
        **{f"{name}_spread": statistics.pstdev([r[name] for r in results]) for name in scores},
        "seconds": round(statistics.fmean(r["seconds"] for r in results), 3),
    }
