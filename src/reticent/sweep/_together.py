"""Whether the private runs of a sweep have an epsilon together, asked before the first of them.

Room: sweep. May import `reticent.{account,recipes,records,errors}`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from reticent.account import epsilon
from reticent.errors import AccountingError, ConfigError, ReticentError
from reticent.recipes import Request
from reticent.records import NeighbouringRelation, SamplingScheme

from ._spec import Sweep, asked_for

_ALONE = (SamplingScheme.TRUNCATED_POISSON, SamplingScheme.FIXED_SIZE)  # compose with their like only


def check_together(asked: Sweep) -> None:
    """Refuse private runs that no epsilon can be stated for together; settings that are no run are skipped.

    | runs | |
    |---|---|
    | of different neighbouring relations or privacy units | refused |
    | truncated or fixed-size batches beside other steps, or with different noise | refused |
    | none, or one | nothing to compose |

    Raises:
        ConfigError[sweep]: as said.
    """
    found = [pair for settings in asked.private_settings() if (pair := _described(asked, settings))]
    if len(found) < 2:
        return
    for name in ("neighbouring_relation", "unit"):
        seen = sorted({str(about[name]) for _, about in found if name in about})
        if len(seen) > 1:
            raise _apart(f"they differ in {name.replace('_', ' ')} ({', '.join(seen)})")
    if any(about.get("sampler") in _ALONE for _, about in found):
        relation = NeighbouringRelation(found[0][1]["neighbouring_relation"])
        _check_steps([request for request, _ in found], relation)


def _described(asked: Sweep, settings: dict[str, Any]) -> tuple[Request, dict[str, Any]] | None:
    """A run's request, and its description without noise: to search for the noise takes long."""
    try:
        request = asked_for(asked.recipe, settings)
        free = replace(request, config=request.config.model_copy(update={"epsilon": math.inf}))
        return request, request.recipe.describe(free)
    except ReticentError:  # it fails as a trial, and its record says why
        return None


def _check_steps(requests: Sequence[Request], relation: NeighbouringRelation) -> None:
    every = []
    for request in requests:
        try:
            every += request.recipe.spends(request) or ()
        except ReticentError:  # as above
            continue
    try:
        epsilon(every, delta=max(request.config.delta for request in requests), relation=relation)
    except AccountingError as e:
        raise _apart(str(e.args[0])) from e


def _apart(why: str) -> ConfigError:
    return ConfigError(
        f"The private runs of this sweep would have no epsilon together: {why.rstrip('.')}. Sweep over each "
        "kind by itself, into a folder of its own.",
        code="sweep",
    )
