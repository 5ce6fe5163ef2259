"""Choosing the best of a random number of private runs, so that the choice has an epsilon of its own.

Room: sweep. May import `reticent.{account,recipes,errors}` and NumPy.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reticent.account import RandomTrials, Segments
from reticent.errors import ConfigError
from reticent.recipes import Request

from ._spec import Sweep, asked_for

_NOT_PRIVATE = ("twin", "show_loss", "show_norms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a sweep chooses.

    Args:
        trials: the distribution of the number of runs.
    """

    trials: RandomTrials

    def draw(self, num_candidates: int) -> list[int]:
        """Which candidate each run takes: K of them, uniformly, keyed by the operating system."""
        rng = np.random.default_rng(secrets.randbits(256))
        return [int(k) for k in rng.integers(num_candidates, size=self.trials.draw(rng))]


def refuse_private_scores(request: Request) -> None:
    """Refuse to choose by scores that the recipe knows to be of private rows: no epsilon covers those.

    Raises:
        ConfigError[sweep-choice]: as said.
    """
    if request.recipe.holds_out(request.config):
        raise ConfigError(
            f"The rows that '{request.recipe.name}' would be scored on are held out of the private ones, and "
            "not public: a choice by them has an epsilon that does not cover them. Divide the images "
            "yourself, with public ones in test (tables and texts: in test_data), and leave validation out.",
            code="sweep-choice",
        )


def what_each_spends(asked: Sweep, candidates: Sequence[dict[str, Any]]) -> list[Segments]:
    """What a run of each candidate spends, from its plan.

    Raises:
        ConfigError[sweep-choice]: a candidate varies epsilon or is no run; it is scored on private rows; a
            tracker would be told of each run; some but not all are reproducible; or the recipe cannot say
            what it will spend.
    """
    if any("epsilon" in grid and len(grid["epsilon"]) > 1 for grid in asked.grids):
        raise ConfigError(
            "A choice among runs is made at one epsilon, and the grid varies it. Set epsilon with --set, and "
            "sweep once for each value.",
            code="sweep-choice",
        )
    if not candidates:
        raise ConfigError("A choice needs private runs, and the grid has none.", code="sweep-choice")
    spent, seeded = [], set()
    for settings in candidates:
        request = asked_for(asked.recipe, settings)  # a bad combination must not make the choice smaller
        refuse_private_scores(request)
        shown = [name for name in _NOT_PRIVATE if getattr(request.config, name, False)]
        if shown:
            raise ConfigError(
                f"What a choice leaves is meant to be published; leave out {', '.join(shown)}: not private.",
                code="sweep-choice",
            )
        if (log := getattr(request.config, "log", "none")) != "none":
            raise ConfigError(
                "A tracker would keep the scores of the runs that were beaten, and their number. Leave out "
                f"log={log}: a choice publishes its best run alone.",
                code="sweep-choice",
            )
        seeded.add(request.config.noise_seed is not None)
        segments = request.recipe.spends(request)
        if segments is None:
            raise ConfigError(
                f"Recipe '{asked.recipe}' cannot say before it runs what it spends; leave "
                "--trials-distribution out.",
                code="sweep-choice",
            )
        spent.append(segments)
    if len(seeded) > 1:
        raise ConfigError(
            "Some of the candidates take their noise from a seed: who knows it can tell what the others were "
            "compared with, so a choice among them has no epsilon. Leave noise_seed out, or set it for all.",
            code="sweep-choice",
        )
    return spent
