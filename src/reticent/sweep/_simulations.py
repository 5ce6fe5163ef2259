"""Several settings of a large private run, each imitated at small batches, and the best of them.

Room: sweep. May import rich and the rooms below.

The folder holds `simulation.json` (what was asked, then also what came out), `trials/NNNN/` (a small run
each) and `trials/NNNN.json` (its outcome). Asked for again with the same folder, whole trials are kept and
half ones go on.

Sources:
    [1] Sander, Stock, Sablayrolles 2022, arXiv:2210.03403 (settings found at small batches, TAN).
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from reticent.errors import ConfigError, DataError
from reticent.recipes import Request, Simulation, TrainingRecipe, request, simulation

from ._pool import run_all
from ._run import open_folder
from ._spec import Grid, asked_for, combinations, distinct, json_settings, json_value, read_grid
from ._table import as_printed, average_over_seeds, score_of
from ._trial import Trial

_FORMAT = 1
_SHARED: Final = ("epsilon", "delta", "noise_multiplier", "noise_seed", "validation", "data")
# What decides which rows are trained on and scored, what is told of them, and whom a row belongs to.
_OF_ROWS: Final = (
    "file", "format", "label_column", "labels", "max_examples", "max_test", "mixed", "only_class",
    "pair_column", "rows_per_user", "source_column", "target_column", "test_data", "test_fraction",
    "test_split", "text_column", "unreadable", "user_column",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulations:
    """Large runs that differ in what is tried, each with what imitates it.

    Args:
        recipe: the recipe's name.
        batch_size: expected batch size of each small run.
        grid: a setting's name -> what is tried.
        shared: what else was set.
        each: one for each combination of the grid's values.
    """

    recipe: str
    batch_size: float
    grid: Grid
    shared: Mapping[str, Any]
    each: tuple[Simulation, ...]

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, as JSON values."""
        return {
            "recipe": self.recipe,
            "batch_size": self.batch_size,
            "shared": json_settings(self.shared),
            "grid": {name: [json_value(v) for v in values] for name, values in self.grid.items()},
        }

    def describe(self) -> dict[str, Any]:
        """Every small run and its large one's command, as JSON values; reads no data and spends nothing."""
        kept = ("expected_batch_size", "noise_multiplier", "num_steps", "epsilon", "delta")
        trials = [
            {
                "settings": self.tried(found.large.chosen),
                "simulation": {name: getattr(found.small.config, name) for name in kept},
                "command": found.command,
            }
            for found in self.each
        ]
        return {"recipe": self.recipe, "private": False, "note": Simulation.note, "trials": trials}

    def tried(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Of a run's settings those of the grid, as JSON values; the seed is no choice."""
        return {name: json_value(settings[name]) for name in self.grid if name != "seed"}


def read_simulations(
    target: str, assignments: Sequence[str], grid: Sequence[str], *, batch_size: float
) -> Simulations:
    """Read what a person asked for, and check every combination before any is trained.

    Args:
        target: a recipe's name, or a TOML file, as for `reticent.recipes.request`.
        assignments: `key=value` texts, for every run.
        grid: `key=value,value,...` texts, of which every combination is tried.
        batch_size: expected batch size of each simulation.

    Raises:
        ConfigError[simulation-choice]: scores would be of the test rows, or what is tried changes what a
            run may spend or is scored on.
        ConfigError[sweep]: a text of the grid is malformed.
        ConfigError[simulation], ConfigError[config]: a combination cannot be simulated, or is no run.
    """
    values = read_grid(grid, option="--try")
    if fixed := [name for name in (*_SHARED, *_OF_ROWS) if name in values]:
        raise ConfigError(
            f"Settings are compared at one budget and on the same rows: give {', '.join(fixed)} by --set, to "
            "all.",
            code="simulation-choice",
        )
    first = request(target, [*assignments, *(text.partition(",")[0] for text in grid)])
    name = first.recipe.name
    asked = [asked_for(name, one) for one in distinct({**first.chosen, **c} for c in combinations(values))]
    for one in asked:
        _refuse_test_rows(one)
    _refuse_other_rows(asked)
    return Simulations(
        recipe=name,
        batch_size=batch_size,
        grid=values,
        shared={key: value for key, value in first.chosen.items() if key not in values},
        each=tuple(simulation(one, batch_size=batch_size) for one in asked),
    )


def _refuse_other_rows(asked: Sequence[Request]) -> None:
    """Refuse settings under which other numbers of rows, or other units, would be compared."""
    drawn = set()
    for one in asked:
        if isinstance(one.recipe, TrainingRecipe):
            drawn.add((one.recipe.unit(one.config), one.recipe.num_examples(one.config)))
    if len(drawn) > 1:
        raise ConfigError(
            "What is tried changes who is protected or how many rows there are, so scores would be of other "
            "rows. Give it by --set, to all.",
            code="simulation-choice",
        )


def simulate_each(
    asked: Simulations,
    *,
    out: Path,
    score: str = "accuracy",
    jobs: int = 1,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run every simulation, or go on with them, and say which large run to train.

    Args:
        asked: what to try.
        out: the folder; new, empty, or that of the same settings.
        score: which of a run's `test_` scores, here of held-out rows, ranks them.
        jobs: trials at once, which share the threads.
        console: where to tell of each trial as it ends.

    Returns:
        As `Simulation.describe` for the best, with its `result`, and `trials`, the best first; also in
        `simulation.json`. Settings that differ in their seed alone are one, by the mean. Where no trial has
        the score there are only the trials.

    Raises:
        ConfigError[simulation]: the folder is of other settings.
        DataError[data-sources]: the data cannot be reached.
    """
    import torch

    from reticent.train import write_json

    about = {"format": _FORMAT, "asked": asked.to_dict()}
    open_folder(out, "simulation", about)
    trials = [
        Trial(
            index=k,
            settings=found.large.chosen,
            private=False,
            folder=out / "trials" / f"{k:04d}",
            config=found.small.config.public_dict(),
        )
        for k, found in enumerate(asked.each)
    ]
    left = [trial for trial in trials if not _over(asked, trial)]
    told = len(trials) - len(left)

    def tell(trial: Trial) -> None:
        nonlocal told
        told += 1
        _check(asked, trial)
        if console is not None:
            console.print(
                f"[{told}/{len(trials)}] {_line(asked, trial, score)}", markup=False, highlight=False
            )

    threads = max(1, torch.get_num_threads() // jobs)
    run_all(asked.recipe, left, jobs=jobs, threads=threads, done=tell)
    said = {**about, **_conclude(asked, trials, score), "out": str(out)}
    write_json(out / "simulation.json", said)
    return said


def _refuse_test_rows(asked: Request) -> None:
    recipe = asked.recipe
    if not isinstance(recipe, TrainingRecipe) or recipe.holds_out(asked.config):
        return
    how = f"'{recipe.name}' has no setting that holds training rows out, so nothing can be chosen here"
    raise ConfigError(
        "Settings would be chosen by scores of the test rows, which would then tell nothing of the run: "
        f"{recipe.holding_out or how}.",
        code="simulation-choice",
    )


def _check(asked: Simulations, trial: Trial) -> None:
    record = trial.record()
    if record is not None and "result" in record:
        asked.each[trial.index].check(record["result"])


def _over(asked: Simulations, trial: Trial) -> bool:
    """Whether a trial has its outcome; that of a recipe which ran in the place of this one is deleted."""
    try:
        _check(asked, trial)
    except DataError:
        trial.record_path.unlink()
        shutil.rmtree(trial.folder, ignore_errors=True)
    return trial.record() is not None


def _line(asked: Simulations, trial: Trial, score: str) -> str:
    record = trial.record() or {"status": "failed", "error": "no record"}
    settings = " ".join(f"{name}={json_value(trial.settings[name])}" for name in asked.grid)
    if record["status"] != "done":
        return f"{settings}: {record['status']}: {record['error']}"
    return f"{settings}: held-out {score} {as_printed(score_of(record, score), score):.4g}"


def _conclude(asked: Simulations, trials: Sequence[Trial], score: str) -> dict[str, Any]:
    """The table, best first, and the best one's large run."""
    records = [record for trial in trials if (record := trial.record()) is not None]
    entries = sorted(average_over_seeds(records, score), key=lambda entry: -entry["score"])
    rows = []
    for entry in entries:
        members = [r for r in records if asked.tried(r["settings"]) == asked.tried(entry["settings"])]
        failed = [r["error"] for r in members if r["status"] != "done"]
        known = math.isfinite(entry["score"])
        rows.append(
            {
                "settings": asked.tried(entry["settings"]),
                "score": as_printed(entry["score"], score) if known else None,
                "spread": entry["spread"] if known else None,
                "status": "failed" if failed else "done",
                "error": failed[0] if failed else None,
                "runs": [str(trials[r["index"]].folder) for r in members],
                "indices": [r["index"] for r in members],
            }
        )
    said = {"recipe": asked.recipe, "private": False, "note": Simulation.note}
    if rows and rows[0]["score"] is not None:
        best = rows[0]["indices"][0]
        result = next(record["result"] for record in records if record["index"] == best)
        said = {**asked.each[best].describe(), "result": result}
    return {
        **said,
        "score": score,
        "trials": [{name: value for name, value in row.items() if name != "indices"} for row in rows],
    }
