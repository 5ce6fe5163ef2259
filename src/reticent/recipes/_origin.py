"""Weights that a run begins with: not from an earlier run on the same data, whose cost is in another ledger.

Room: recipes. May import `reticent.errors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from reticent.errors import ConfigError

from ._stamp import same_rows

OWN_FOLDER: Final = "folder"
_NAMELESS = ("file", OWN_FOLDER)  # data of a person's own: told apart by where they are


def refuse_same_data(weights: Path, *, about: Mapping[str, Any], data: str | None) -> None:
    """Refuse weights that lie in the folder of a run on the data set that is to be trained on.

    Weights that were copied out of a run's folder are not recognised: that they are public is then the
    operator's word.

    Args:
        weights: a file, or a model's folder.
        about: what the new run says of its data.
        data: where data of a person's own are, as the settings name them.

    Raises:
        ConfigError[start-from]: as said.
    """
    there = _run_of(weights)
    if there is None:
        return
    theirs, config = there.get("data") or {}, there.get("config") or {}
    name = about.get("name")
    if name in _NAMELESS:
        other = config.get("data")
        same = isinstance(other, str) and data is not None and same_rows(other, data)
    else:
        same = theirs.get("name") == name
    if same:
        raise ConfigError(
            f"The weights in '{weights}' were learned by a run on the same data. What that run spent would "
            "be in no ledger of this one, whose epsilon would be too low. Begin with public weights. What "
            "several runs on one data set spend together, `reticent account RUN1 RUN2` says.",
            code="start-from",
        )


def _run_of(weights: Path) -> Mapping[str, Any] | None:
    """`run.json` of the run in whose folder the weights lie, or the folder above it (a twin's)."""
    place = weights.resolve()
    for folder in list(place.parents)[:3] if not place.is_dir() else [place, *list(place.parents)[:2]]:
        try:
            found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None
