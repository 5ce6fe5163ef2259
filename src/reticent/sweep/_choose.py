"""A sweep that keeps nothing but the best of a random number of runs.

Room: sweep. May import rich and the rooms below.

While it runs, `not-for-publication/` holds the number of runs and their outcomes; a run that was beaten
is deleted at once, and the folder at the end. What is left is `best/` and `sweep.json`. Folders of runs have
random names: the best run's files may hold the name that it ran under.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from reticent.account import Segments, choice_epsilon
from reticent.account.ledger import read_run_ledger
from reticent.errors import ConfigError
from reticent.records import SIZES, NeighbouringRelation

from ._choice import Choice, what_each_spends
from ._pool import run_all
from ._spec import Sweep, asked_for
from ._table import as_printed, score_of
from ._together import check_together
from ._trial import Trial

_FORMAT = 1
_NOTE = (
    "Only the best of a random number of runs is kept. Publish this folder as it is: not how many runs there "
    "were, nor anything of the others. The epsilon above pays for the choice; that of the run alone does not."
)


def choose(
    asked: Sweep,
    choice: Choice,
    *,
    out: Path,
    score: str,
    jobs: int,
    threads: int,
    console: Console | None,
) -> dict[str, Any]:
    """Run a choice to its end, or go on with one; see `sweep`."""
    candidates = asked.private_settings()
    spends = what_each_spends(asked, candidates)
    if sizes := sorted({str(m.scheme) for segments in spends for m, _ in segments if SIZES[m.scheme]}):
        raise ConfigError(
            f"What the best of several runs costs is not known for {', '.join(sizes)} batches: use "
            "sampler = poisson, or full-batch.",
            code="sweep",
        )
    check_together(asked)
    hidden = out / "not-for-publication"
    wanted = {
        "format": _FORMAT,
        "sweep": asked.to_dict(),
        "choice": {"distribution": str(choice.trials.distribution), "mean": choice.trials.mean},
        "score": score,
    }
    if _finished(out, wanted):
        return json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    drawn = _drawn(hidden, wanted, choice, len(candidates))
    trials = [
        Trial(index=k, settings=candidates[c], private=True, folder=hidden / name)
        for k, (c, name) in enumerate(drawn)
    ]

    def compare(trial: Trial) -> None:
        if console is not None:
            console.print("one more run has ended", highlight=False)
        _keep_the_best(trials, score)

    run_all(
        asked.recipe,
        [trial for trial in trials if trial.record() is None],
        jobs=jobs,
        threads=threads,
        done=compare,
    )
    delta = asked_for(asked.recipe, candidates[0]).config.delta
    return _conclude(trials, spends, choice, wanted, out, score, delta)


def _drawn(
    hidden: Path, wanted: dict[str, Any], choice: Choice, num_candidates: int
) -> list[tuple[int, str]]:
    """Each run's candidate and the random name of its folder, drawn once and for all before the first."""
    from reticent.train import write_json

    path = hidden / "drawn.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["wanted"] != json.loads(json.dumps(wanted)):
            raise ConfigError(
                f"'{hidden.parent}' holds another sweep. Choose another folder, or ask for the same sweep.",
                code="sweep",
            )
        candidates = found["candidates"]  # one that an older version began numbered its folders
        return list(
            zip(candidates, found.get("names", [f"{k:06d}" for k in range(len(candidates))]), strict=True)
        )
    if hidden.parent.exists() and any(p.name != hidden.name for p in hidden.parent.iterdir()):
        raise ConfigError(
            f"'{hidden.parent}' exists and is not empty. Choose another folder.", code="out-exists"
        )
    hidden.mkdir(parents=True, exist_ok=True)
    candidates = choice.draw(num_candidates)
    names = [secrets.token_hex(16) for _ in candidates]
    write_json(path, {"wanted": wanted, "candidates": candidates, "names": names})
    return list(zip(candidates, names, strict=True))


def _best(trials: Sequence[Trial], score: str) -> Trial | None:
    """The run with the best score so far; of equal ones the first; None if none has a score."""
    found = [(score_of(record, score), -t.index, t) for t in trials if (record := t.record()) is not None]
    best = max(found, key=lambda entry: entry[:2], default=None)
    return best[2] if best is not None and best[0] > float("-inf") else None


def _keep_the_best(trials: Sequence[Trial], score: str) -> None:
    best = _best(trials, score)
    for trial in trials:
        if trial is not best and trial.record() is not None and trial.folder.exists():
            shutil.rmtree(trial.folder)


def _finished(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds this very choice, made; what a crash left beside it is deleted."""
    path = out / "sweep.json"
    if not path.exists():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    if {name: found.get(name) for name in wanted} != json.loads(json.dumps(wanted)):
        raise ConfigError(f"'{out}' holds another sweep. Choose another folder.", code="sweep")
    shutil.rmtree(out / "not-for-publication", ignore_errors=True)
    return True


def _conclude(
    trials: Sequence[Trial],
    spends: Sequence[Segments],
    choice: Choice,
    wanted: dict[str, Any],
    out: Path,
    score: str,
    delta: float,
) -> dict[str, Any]:
    """State what the choice costs, keep the best run, and delete the rest."""
    from reticent.train import write_json

    best = _best(trials, score)
    record = None if best is None else best.record()
    folder = None if best is None else (best.folder if best.folder.exists() else out / "best")
    ledger = None if folder is None else read_run_ledger(folder)
    entered = [] if ledger is None else [ledger.segments()]
    reproducible = ledger is not None and ledger.reproducible
    relation = NeighbouringRelation.ADD_OR_REMOVE if ledger is None else ledger.relation
    report = choice_epsilon([*spends, *entered], trials=choice.trials, delta=delta, relation=relation)
    privacy = {
        "epsilon": None if reproducible else report.epsilon,
        "delta": report.delta,
        "neighbouring_relation": str(report.neighbouring_relation),
        "accountant": report.accountant,
    }
    selection = {**wanted["choice"], **privacy, "candidates": [_plain(s) for s in [*spends, *entered]]}
    if folder is not None:
        write_json(folder / "selection.json", selection)
        _restate(folder, privacy, run=out / "best")
        if folder != out / "best":
            os.replace(folder, out / "best")
    result = {
        **wanted,
        "recipe": wanted["sweep"]["recipe"],
        "best": None
        if record is None
        else {
            "settings": record["settings"],
            "score": as_printed(score_of(record, score), score),
            "run": str(out / "best"),
        },
        "privacy": privacy,
        "notes": [_NOTE],
        "out": str(out),
    }
    write_json(out / "sweep.json", result)
    shutil.rmtree(out / "not-for-publication", ignore_errors=True)
    return result


def _restate(folder: Path, privacy: dict[str, Any], *, run: Path) -> None:
    """Let the kept run's result state what the choice costs: its own epsilon is no longer the whole truth.

    It names the folder that is left, and no time but the day of the choice: not where the run took place,
    when, nor how long it took. All its files are of one age.
    """
    from reticent.train import write_json

    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result.pop("seconds", None)
    write_json(path, {**result, **privacy, "run": str(run), "chosen": True})
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    write_json(folder / "run.json", {**about, "created": day.isoformat(timespec="seconds")})
    for file in folder.rglob("*"):
        os.utime(file)


def _plain(segments: Segments) -> list[list[Any]]:
    return [[str(m.scheme), m.sampling_prob, m.noise_multiplier, count] for m, count in segments]
