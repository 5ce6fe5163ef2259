"""Whether a model comes from an earlier run, whose cost would be in no ledger of the run to come.

Room: hf. May import torch, `reticent.{account,errors}`; a model of transformers (or peft) is handed in.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from torch import nn

from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError, LedgerError

from ._losses import base_of


@dataclass(frozen=True, slots=True)
class _Run:
    """Where a run's ledger is, and a digest of its rows, which never leaves the process."""

    folder: Path
    rows: bytes


# Trained modules of this process -> the runs that trained them. A trainer that is made anew around the
# same model, as a notebook cell run again makes it, knows of no earlier one.
_TRAINED: Final[WeakKeyDictionary[nn.Module, tuple[_Run, ...]]] = WeakKeyDictionary()


def remember(model: nn.Module, folder: Path, *, rows: bytes) -> None:
    """Keep in mind that the run in `folder` has trained a model, for as long as the model is there."""
    run = _Run(folder.resolve(), rows)
    for module in _trained_parts(model):
        before = _TRAINED.get(module, ())
        _TRAINED[module] = before if run in before else (*before, run)


def refuse_earlier_run(
    model: nn.Module, folder: Path, *, going_on: bool, rows: bytes, other_data: bool
) -> None:
    """Refuse a model that another run has trained, unless it is said that this was on other people's rows.

    Known are models that a `PrivateTrainer` of this process has trained, whole or in part, in whatever
    wrapper of peft; and those that transformers loaded from a run's folder or one inside it. Weights that
    were copied out of it are not recognised: that they are public is then the operator's word.

    Args:
        model: to be trained.
        folder: of the run to come.
        going_on: whether that goes on with the run that is there.
        rows: a digest of the rows to train on.
        other_data: what `PrivacyArguments` says.

    Raises:
        ConfigError[trainer-resume]: as said; or the rows are those of the other run after all.
    """
    here = folder.resolve()
    runs = {run for module in model.modules() for run in _TRAINED.get(module, ())}
    if going_on:
        runs = {run for run in runs if run.folder != here}
    for run in sorted(runs, key=lambda run: run.rows != rows):
        if other_data and run.rows == rows:
            raise ConfigError(
                "PrivacyArguments(other_data=True), and the rows of this train_dataset are those of the run "
                f"in '{run.folder}', which has trained the model of this trainer: what it spent would be in "
                f"no ledger of another run in '{folder}'. Begin with public weights in a new model.",
                code="trainer-resume",
            )
        if not other_data:
            raise _refused(run.folder, folder)
    loaded = _run_loaded_from(model)
    if loaded is not None and not other_data and not (going_on and loaded == here):
        raise _refused(loaded, folder)


def _refused(earlier: Path, folder: Path) -> ConfigError:
    return ConfigError(
        f"The model of this trainer was trained by the run in '{earlier}'. What that run spent would be in "
        f"no ledger of another run in '{folder}', whose epsilon would be too low: begin with public weights, "
        "loaded into a new model, and a new PrivateTrainer. If nobody whose rows are in this train_dataset "
        "had rows in that run's data, say so with PrivacyArguments(other_data=True), which run.json notes.",
        code="trainer-resume",
    )


def was_spent(folder: Path) -> bool:
    """Whether a step is in the ledger there; True if it cannot be read."""
    path = folder / "ledger.jsonl"
    try:
        return path.exists() and read_ledger(path).num_steps > 0
    except LedgerError:
        return True


def versions(model: nn.Module) -> list[int]:
    """Numbers that grow whenever a parameter is changed in place, by an optimizer or a checkpoint."""
    return [p._version for p in model.parameters()]


def _trained_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The model under peft's wrapper, into which adapters are merged, and modules whose own weights train."""
    yield base_of(model)
    for module in model.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            yield module


def _run_loaded_from(model: nn.Module) -> Path | None:
    """The folder of the run in which the weights lay that transformers loaded; None: in none."""
    name = getattr(getattr(base_of(model), "config", None), "_name_or_path", None)
    if not isinstance(name, str) or not name or not os.path.isdir(name):  # false of a name too long, too
        return None
    place = Path(name).resolve()
    return next((folder for folder in [place, *place.parents[:2]] if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    if (folder / "ledger.jsonl").is_file():
        return True
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(about, dict) and "run_id" in about
