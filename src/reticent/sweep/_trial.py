"""One run of a sweep, in a process of its own, and the record that it leaves.

Room: sweep. May import `reticent.{recipes,train,errors}`.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reticent.errors import ReticentError

from ._spec import json_settings

if TYPE_CHECKING:
    from reticent.recipes import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run.

    Args:
        index: its place in the sweep.
        settings: what is set, all else is the recipe's default.
        private: whether it is one of the private runs.
        folder: its run folder; the record lies beside it.
        config: all its settings, as `run.json` has them, where they do not follow from `settings`.
    """

    index: int
    settings: Mapping[str, Any]
    private: bool
    folder: Path
    config: Mapping[str, Any] | None = None

    @property
    def record_path(self) -> Path:
        """Where its outcome is written."""
        return self.folder.with_suffix(".json")

    def record(self) -> dict[str, Any] | None:
        """Its outcome, or None as long as there is none."""
        try:
            return json.loads(self.record_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, *, status: str, **more: Any) -> None:
        """Write its outcome down, whole or not at all."""
        from reticent.train import write_json

        about = {"index": self.index, "private": self.private, "settings": json_settings(self.settings)}
        write_json(self.record_path, {**about, "status": status, **more})


def run_trial(recipe: str, trial: Trial, threads: int) -> None:
    """Run one trial, or go on with it, and write its record, whatever happens.

    Runs in a process of its own: a run that fails, runs out of memory or is killed is one bad trial.
    """
    import torch

    torch.set_num_threads(threads)
    began = time.perf_counter()
    try:
        result = _run(recipe, trial)
    except ReticentError as e:
        trial.write(status="failed", error=str(e), code=e.code)
    except (MemoryError, OSError, RuntimeError, ValueError, ArithmeticError, TypeError, LookupError) as e:
        trial.write(status="failed", error=f"{type(e).__name__}: {e}"[:500])
        raise
    else:
        trial.write(status="done", seconds=round(time.perf_counter() - began, 3), result=result)


def _run(recipe: str, trial: Trial) -> dict[str, Any]:
    from reticent.recipes import go_on, run

    if (trial.folder / "run.json").exists():
        return go_on(trial.folder)
    if trial.folder.exists() and not (trial.folder / "ledger.jsonl").exists():
        shutil.rmtree(trial.folder)  # a start that was interrupted before anything was spent
    return run(_asked(recipe, trial), out=trial.folder)


def _asked(recipe: str, trial: Trial) -> "Request":
    from reticent.recipes import Request, recipes, restore_config

    from ._spec import asked_for

    if trial.config is None:
        return asked_for(recipe, trial.settings)
    found = recipes()[recipe]
    return Request(
        recipe=found, config=restore_config(found.config, trial.config), chosen=dict(trial.settings)
    )


def quietly(recipe: str, trial: Trial, threads: int) -> None:
    """`run_trial` as a process's target: an error is in the record, not on the screen."""
    try:
        run_trial(recipe, trial, threads)
    except Exception:  # recorded; the process's exit code says it again
        sys.exit(1)
