"""Running a sweep: its folder, its trials, and what comes out.

Room: sweep. May import rich and the rooms below.

A sweep's folder holds `sweep.json` (what was asked, then also what came out), `trials/NNNN/` (a run folder
each), `trials/NNNN.json` (its outcome), `table.md`, and the plot. A sweep that was stopped goes on
when it is asked for again with the same folder: whole trials are kept, half ones go on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from reticent.errors import ConfigError
from reticent.recipes import recipes

from ._choice import Choice, refuse_private_scores
from ._choose import choose
from ._cost import cost_of_everything, ledgers_under
from ._pool import default_jobs, run_all
from ._spec import Sweep, asked_for, json_settings
from ._table import as_printed, average_over_seeds, curves, lines, score_of, varied
from ._together import check_together
from ._trial import Trial

FORMAT = 1
_TUNING = (
    "Choosing settings by these scores is tuning on the private data: every run read it. Publishing the "
    "table, or the best run, costs epsilon_all, not epsilon_one."
)
_UNDECLARED = (
    "No best run is named: scores of the recipe's held-out data choose it only if that data is public. Say "
    "so with --validation public."
)
_PLAIN = "Runs without privacy protect nobody; they are there to compare with."
_FALLBACK = "ATTENTION: the data could not be reached; these are scores of a replacement on embedded data."
_OPTIMISTIC = (
    "Each point is the best of its grid by the score it shows: optimistic, more so the larger the grid."
)


def sweep(
    asked: Sweep,
    *,
    out: Path,
    plain: bool = True,
    validation_public: bool = False,
    choice: Choice | None = None,
    score: str = "accuracy",
    jobs: int | None = None,
    threads: int = 1,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a sweep to its end, or go on with one.

    Args:
        asked: recipe and grids.
        out: the sweep's folder; new, empty, or that of the same sweep.
        plain: also run without privacy, for comparison; not with `choice`.
        validation_public: that the data which scores are measured on is public; needed to name a best run.
            Refused where the recipe holds private rows out and scores those.
        choice: keep only the best of a random number of runs, and say what that costs.
        score: which of a run's `test_` scores compares runs.
        jobs: trials at once; by default one for each core.
        threads: threads of each trial.
        console: where to tell of each trial as it ends.

    Returns:
        What came out, as JSON values; also in `sweep.json`.

    Guarantee:
        `epsilon_all` composes every step of every ledger under the folder. With `choice`, `epsilon` is
        that of releasing only what the folder holds at the end: the best run, its settings and its score.

    Raises:
        ConfigError[sweep]: no combination of the grid can run, the private runs have no epsilon together,
            the folder is another sweep's, or `jobs` is below 1.
        ConfigError[sweep-choice]: a choice needs one epsilon, public scores and no runs beside it; or the
            scores are of private rows, and said to be public.
    """
    jobs = default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}.", code="sweep")
    if choice is not None:
        if not validation_public:
            raise ConfigError(
                "The epsilon of a choice counts the training data only: the data that scores are measured on "
                "must be public. Say so with --validation public.",
                code="sweep-choice",
            )
        return choose(asked, choice, out=out, score=score, jobs=jobs, threads=threads, console=console)
    check_together(asked)
    if validation_public:
        _check_public(asked)
    trials = _trials(asked, out, plain=plain)
    open_folder(out, "sweep", {"format": FORMAT, "sweep": asked.to_dict(), "plain": plain})
    left = [trial for trial in trials if trial.record() is None and not _refused(asked, trial)]
    told = len(trials) - len(left)

    def tell(trial: Trial) -> None:
        nonlocal told
        told += 1
        if console is not None:
            console.print(f"[{told}/{len(trials)}] {_line(trial, score)}", markup=False, highlight=False)

    run_all(asked.recipe, left, jobs=jobs, threads=threads, done=tell)
    return _conclude(asked, trials, out, plain=plain, score=score, validation_public=validation_public)


def _trials(asked: Sweep, out: Path, *, plain: bool) -> list[Trial]:
    private = [(settings, True) for settings in asked.private_settings()]
    beside = [(settings, False) for settings in asked.plain_settings()] if plain else []
    return [
        Trial(index=k, settings=settings, private=is_private, folder=out / "trials" / f"{k:04d}")
        for k, (settings, is_private) in enumerate([*private, *beside])
    ]


def open_folder(out: Path, kind: Literal["sweep", "simulation"], wanted: Mapping[str, Any]) -> None:
    """Make the folder, or find in it what was asked for.

    Args:
        out: the folder; what was asked for is in its `KIND.json`.
        kind: of several runs.
        wanted: what is asked for, as JSON values.

    Raises:
        ConfigError[sweep], ConfigError[simulation]: it holds another one, or is damaged.
        ConfigError[out-exists]: it holds something else.
    """
    from reticent.train import write_json

    path = out / f"{kind}.json"
    if path.exists():
        found = _read(path, kind)
        if {name: found.get(name) for name in wanted} != wanted:
            raise ConfigError(
                f"'{out}' holds another {kind}. Choose another folder, or ask for the same {kind} to go on.",
                code=kind,
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"'{out}' exists and is not empty. Choose another folder.", code="out-exists")
    (out / "trials").mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"'{path}' is damaged. Restore it, or begin the {kind} in another folder.", code=kind
        ) from e


def _check_public(asked: Sweep) -> None:
    for settings in asked.private_settings():
        try:
            request = asked_for(asked.recipe, settings)
        except ConfigError:  # no run: its trial says so
            continue
        refuse_private_scores(request)


def _refused(asked: Sweep, trial: Trial) -> bool:
    """Whether its settings are no run; then that is its record."""
    try:
        asked_for(asked.recipe, trial.settings)
    except ConfigError as e:
        trial.write(status="refused", error=str(e), code=e.code)
        return True
    return False


def _line(trial: Trial, score: str) -> str:
    record = trial.record() or {"status": "failed", "error": "no record"}
    settings = " ".join(f"{k}={v}" for k, v in json_settings(trial.settings).items())
    if record["status"] != "done":
        return f"{settings}: {record['status']}: {record['error']}"
    return f"{settings}: {score} {as_printed(score_of(record, score), score):.4g}"


def _conclude(
    asked: Sweep, trials: Sequence[Trial], out: Path, *, plain: bool, score: str, validation_public: bool
) -> dict[str, Any]:
    """Table, plot, best settings and cost, from the records."""
    from reticent.report import draw_curves
    from reticent.train import finite, write_json

    records = [record for trial in trials if (record := trial.record()) is not None]
    entries = average_over_seeds(records, score)
    drawn = lines(asked, entries)
    cost = cost_of_everything(ledgers_under(out / "trials"))
    private = [p for line in drawn if line["private"] for p in line["points"]]
    best = max(private, key=lambda p: p["score"], default=None) if validation_public else None
    plots = draw_curves(
        curves(asked, drawn, score),
        out,
        stem="plot",
        x=_axis(asked.x),
        y=f"test {score}",
        title=_title(asked),
    )
    statuses = [record["status"] for record in records]
    with_plain = any(not record["private"] for record in records)
    replaced = any("fallback_from" in (record.get("result") or {}) for record in records)
    notes = [
        *([_FALLBACK] if replaced else []),
        _TUNING,
        _OPTIMISTIC,
        *([] if validation_public else [_UNDECLARED]),
        *([_PLAIN] if with_plain else []),
    ]
    result = finite(
        {
            "format": FORMAT,
            "sweep": asked.to_dict(),
            "plain": plain,
            "recipe": asked.recipe,
            "score": score,
            "validation": "public" if validation_public else None,
            "trials": {name: statuses.count(name) for name in ("done", "failed", "refused")},
            "best": None if best is None else _printed(best, score),
            "privacy": cost,
            "notes": notes,
            "out": str(out),
            "table": str(out / "table.md"),
            "plot": str(plots[0]),
        }
    )
    result["lines"] = [{**line, "points": [_printed(p, score) for p in line["points"]]} for line in drawn]
    result["rows"] = [_row(record, score) for record in records]
    (out / "table.md").write_text(table(result), encoding="utf-8")
    write_json(out / "sweep.json", result)
    return result


def table(result: dict[str, Any]) -> str:
    """The sweep as Markdown: the cost first, then every trial."""
    from reticent.report import round_up

    rows = result["rows"]
    names = varied(rows)
    cost = result["privacy"]
    lines_ = [f"# Sweep of {result['recipe']}", ""]
    if cost["num_ledgers"]:
        one, every = (
            "none (not private)" if cost[name] is None else round_up(cost[name])
            for name in ("epsilon_one", "epsilon_all")
        )
        lines_ += [
            f"Largest epsilon of one run: {one}. Epsilon of all {cost['num_ledgers']} private runs together: "
            f"{every} (delta {cost['delta']:g}, {cost['neighbouring_relation']}, from the ledgers).",
            "",
        ]
    lines_ += [f"* {note}" for note in result["notes"]]
    lines_ += ["", f"| trial | {' | '.join(names)} | {result['score']} | spent ε | status |"]
    lines_ += ["|" + "---|" * (len(names) + 4)]
    for row in rows:
        cells = [row["index"], *(row["settings"].get(n, "") for n in names), _number(row["score"])]
        spent = "none" if row["epsilon"] is None else round_up(row["epsilon"])
        status = (
            row["status"] if row["error"] is None else f"{row['status']}: {row['error']}".replace("|", "/")
        )
        lines_.append("| " + " | ".join(str(c) for c in [*cells, spent, status]) + " |")
    return "\n".join(lines_) + "\n"


def _row(record: dict[str, Any], score: str) -> dict[str, Any]:
    result = record.get("result") or {}
    return {
        "index": record["index"],
        "private": record["private"],
        "settings": record["settings"],
        "status": record["status"],
        "error": record.get("error"),
        "score": result.get(f"test_{score}"),
        "epsilon": result.get("epsilon"),
        "seconds": record.get("seconds"),
    }


def _printed(point: dict[str, Any], score: str) -> dict[str, Any]:
    x = point["x"] if not isinstance(point["x"], float) or point["x"] < float("inf") else None
    return {**point, "x": x, "score": as_printed(point["score"], score)}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _axis(name: str) -> str:
    return {"epsilon": "ε", "expected_batch_size": "expected batch size"}.get(name, name.replace("_", " "))


def _title(asked: Sweep) -> str:
    shown = {"epsilon": "ε", "delta": "δ", "features": "features"}
    fixed = ", ".join(  # of a folder its own name: the rest says where it lies here
        f"{shown[k]} = {Path(v).name if isinstance(v, str) else v}"
        for k, v in asked.shared.items()
        if k in shown
    )
    return f"{recipes()[asked.recipe].name}" + (f" ({fixed})" if fixed else "")
