"""Several runs side by side: what each promises and reached, where settings differ, what adds up.

Room: report.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from reticent.account import compose_runs
from reticent.errors import ConfigError, ReticentError
from reticent.records import EpsilonReport
from reticent.report._figures import round_up
from reticent.report._page import accuracies_of, rows
from reticent.report._plots import MOST_SERIES, Series, accuracy_plot, epsilons_plot
from reticent.report._run import Run, curve, read_run
from reticent.report._statement import (
    Statement,
    batch_in_words,
    clipping_in_words,
    number,
    privacy_unit,
    state,
)
from reticent.report._templates import page

# Names that recipes give to data of the operator's own: they name nothing without a path.
_OF_NOBODY: Final = ("file", "folder", "train_dataset of a Trainer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One run of a comparison.

    Args:
        label: its folder's name; with the folder above, where two are alike.
        run: the run.
        statement: what its ledger allows to be said.
        accuracy: of the weights that the run reports, on test data; None if it was not measured.
        twin_accuracy: of the same recipe without privacy, if that ran.
        data: the name of the data set.
        sampling: how a step drew examples, in words.
    """

    label: str
    run: Run
    statement: Statement
    accuracy: float | None
    twin_accuracy: float | None
    data: str
    sampling: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an epsilon only where one holds."""
        ledger, report = self.run.ledger, self.statement.report
        return {
            "run": str(self.run.folder),
            "label": self.label,
            "run_id": self.run.about.run_id,
            "recipe": self.run.about.recipe,
            "private": self.statement.private,
            "why_not": self.statement.why_not,
            "epsilon": report.epsilon if report and self.statement.private else None,
            "delta": ledger.delta if ledger else None,
            "neighbouring_relation": ledger.relation.value if ledger else None,
            "unit": privacy_unit(self.run),
            "num_steps": ledger.num_steps if ledger else None,
            "planned_steps": ledger.planned_steps if ledger else None,
            "test_accuracy": self.accuracy,
            "twin_test_accuracy": self.twin_accuracy,
            "data": self.data,
            "sampling": self.sampling,
            "noise_multiplier": number(self.run, "noise_multiplier"),
            "clipping": clipping_in_words(self.run),
            "warnings": list(self.statement.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Runs that name one data set, and what they spent of it together.

    Args:
        data: the data set's name.
        labels: the runs.
        report: epsilon of all of them; None if none can be stated.
        why_not: why none can; None if one can.
    """

    data: str
    labels: tuple[str, ...]
    report: EpsilonReport | None
    why_not: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        known = self.report if self.why_not is None else None
        return {
            "data": self.data,
            "runs": list(self.labels),
            "epsilon": known.epsilon if known else None,
            "delta": known.delta if known else None,
            "why_not": self.why_not,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several runs, side by side.

    Args:
        runs: in the order in which they were given.
        together: what runs on the same named data spent together.
        different: (setting, its value in each run) where not all are alike; "" where a run has none.
        alike: (setting, value) where all are.
    """

    runs: tuple[Compared, ...]
    together: tuple[Together, ...]
    different: tuple[tuple[str, tuple[str, ...]], ...]
    alike: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "runs": [one.to_dict() for one in self.runs],
            "together": [some.to_dict() for some in self.together],
            "different": {
                name: dict(zip((one.label for one in self.runs), values, strict=True))
                for name, values in self.different
            },
        }


def compare(folders: Sequence[str | Path], *, delta: float | None = None) -> Comparison:
    """Read several runs and lay them side by side.

    Args:
        folders: their folders, two or more.
        delta: of what runs on one data set spent together; their own by default, which must then be equal.

    Returns:
        The comparison. Every epsilon is computed from the runs' ledgers.

    Raises:
        ConfigError[compare-runs]: fewer than two runs, or one of them twice.
        ConfigError[not-a-run]: one of the folders holds no run.
        LedgerError: a ledger is damaged; the message names it.
    """
    if len(folders) < 2:
        raise _refused(f"{len(folders) or 'none'} was given, and a comparison needs two runs or more")
    runs = [read_run(folder) for folder in folders]
    ids = [run.about.run_id for run in runs]
    for k, run_id in enumerate(ids):
        if run_id in ids[:k]:
            raise _refused(
                f"'{folders[k]}' is the run of '{folders[ids.index(run_id)]}', or a copy of it, which spends "
                "nothing of its own"
            )
    compared = tuple(
        _compared(run, label) for run, label in zip(runs, _labels([run.folder for run in runs]), strict=True)
    )
    settings = [dict(_settings(run)) for run in runs]
    names = list(dict.fromkeys(name for found in settings for name in found))
    values = {name: tuple(found.get(name, "") for found in settings) for name in names}
    return Comparison(
        runs=compared,
        together=tuple(_together(compared, delta)),
        different=tuple((name, values[name]) for name in names if len(set(values[name])) > 1),
        alike=tuple((name, values[name][0]) for name in names if len(set(values[name])) == 1),
    )


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the comparison as one self-contained page.

    Raises:
        ConfigError[report-not-writable]: the page cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(_rendered(comparison), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise ConfigError(
            f"The page cannot be written to '{path}': {error.strerror}. Choose another place with --out.",
            code="report-not-writable",
        ) from error
    return path


def _refused(problem: str) -> ConfigError:
    return ConfigError(
        f"These runs cannot be laid side by side: {problem}. Give the folder of each run once.",
        code="compare-runs",
    )


def _compared(run: Run, label: str) -> Compared:
    weights = run.result.weights if run.result else "last"
    measured = curve(run.metrics, weights) or curve(run.metrics, "last")
    twin = next((line for line in accuracies_of(run) if line.name == "non-private twin"), None)
    size, kind = batch_in_words(run), ((run.about.plan or {}).get("sampler") or {})
    scheme = kind.get("kind") if isinstance(kind, dict) else None
    drawn = f", {size} expected" if size is not None and scheme != "full-batch" else ""
    return Compared(
        label=label,
        run=run,
        statement=state(run),
        accuracy=measured[-1][1] if measured else run.result.test_accuracy if run.result else None,
        twin_accuracy=twin.points[-1][1] if twin else None,
        data=_data(run)[0],
        sampling=f"{scheme}{drawn}" if scheme else "not stated",
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """Each folder's name; with as many folders above it as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _data(run: Run) -> tuple[str, tuple[str, ...] | None]:
    """The data set's name, and what tells whether another run's is the same; None if nothing does."""
    name = str(run.about.data.get("name", "not named"))
    path = run.about.config.get("data")
    if name in (*_OF_NOBODY, "not named"):
        return (str(path), (name, str(path))) if path else (name, None)
    return name, (name, str(run.about.data.get("sha256", "")))


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """What was chosen, what followed from it, and where it ran."""
    yield from rows({"recipe": run.about.recipe or "none"})
    yield from rows(run.about.config or run.about.settings)
    yield from rows(run.about.plan or {}, "plan.")
    yield from rows({"data": run.about.data, "model": run.about.model, "environment": run.about.environment})


def _together(runs: Sequence[Compared], delta: float | None) -> Iterator[Together]:
    groups: dict[tuple[str, ...], list[Compared]] = {}
    for one in runs:
        key = _data(one.run)[1]
        if key is not None:
            groups.setdefault(key, []).append(one)
    for same in groups.values():
        if len(same) > 1:
            yield _spent(same, delta)


def _spent(same: Sequence[Compared], delta: float | None) -> Together:
    labels = tuple(one.label for one in same)
    open_ones = [one.label for one in same if not one.statement.private]
    chosen = [one.label for one in same if one.run.selection is not None]
    report = why_not = None
    if open_ones:
        why_not = f"not private: {', '.join(open_ones)}."
    elif chosen:
        why_not = f"kept as the best of several runs, which its ledger does not hold: {', '.join(chosen)}."
    else:
        try:
            report = compose_runs([one.run.ledger for one in same if one.run.ledger], delta=delta)
        except ReticentError as error:
            why_not = str(error)
    return Together(data=same[0].data, labels=labels, report=report, why_not=why_not)


def _rendered(comparison: Comparison) -> str:
    runs = comparison.runs
    few = len(runs) <= MOST_SERIES
    measured = [
        Series(name=one.label, points=line.points)
        for one in runs
        if (line := _reported(one.run)) and len(line.points) > 1
    ]
    spent = [Series(name=one.label, points=one.statement.curve) for one in runs if one.statement.curve]
    return page(
        "compare.html.j2",
        runs=runs,
        facts=[one.to_dict() for one in runs],
        comparison=comparison,
        epsilon_plot=Markup(epsilons_plot(spent)) if spent and few else None,
        accuracy_plot=Markup(accuracy_plot(measured)) if measured and few else None,
        best=_best(runs),
        round_up=round_up,
    )


def _reported(run: Run) -> Series | None:
    lines: Mapping[str, Series] = {line.name: line for line in accuracies_of(run)}
    averaged = run.result is not None and run.result.weights == "ema"
    return lines.get("averaged weights" if averaged else "last weights") or lines.get("last weights")


def _best(runs: Sequence[Compared]) -> float | None:
    return max((one.accuracy for one in runs if one.accuracy is not None), default=None)
