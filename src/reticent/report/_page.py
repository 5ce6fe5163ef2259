"""The page itself: what is shown where. The words and the look are in `templates/`.

Room: report.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from markupsafe import Markup
from pydantic import JsonValue

from reticent.errors import ConfigError
from reticent.records import SamplingScheme
from reticent.report._attack import attack
from reticent.report._audit import drawn, pictures
from reticent.report._card import write_cards
from reticent.report._classes import by_class
from reticent.report._figures import round_up
from reticent.report._plots import Series, accuracy_plot, epsilon_plot
from reticent.report._run import Run, Twin, curve, read_run
from reticent.report._statement import (
    Statement,
    batch_in_words,
    clipping_in_words,
    guess_accuracy,
    num_available,
    privacy_unit,
    public_num_examples,
    state,
    unit_of,
)
from reticent.report._templates import page
from reticent.report._verify import Verification, verify_read

Rows = tuple[tuple[str, str], ...]

# Batches whose size is drawn: it is as secret as who was drawn, and how long the steps took tells it.
_OF_RANDOM_SIZE: Final = frozenset(
    {SamplingScheme.POISSON, SamplingScheme.TRUNCATED_POISSON, SamplingScheme.BALLS_IN_BINS}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A written page, the statement it makes, what `verify_run` found, and the cards of models beside it."""

    path: Path
    cards: tuple[Path, ...]
    run: Run
    statement: Statement
    verification: Verification


def write_report(folder: str | Path) -> Report:
    """Read a run folder and write `report.html` into it, and a model card beside a Hugging Face model.

    Args:
        folder: the folder that `reticent train --out` wrote.

    Returns:
        Where the page is, and what it states.

    Guarantee:
        The page holds the run's configuration, ledger and public metrics, and nothing else: no file
        outside the folder is read. No batch that was drawn, no loss on training rows, and no time where it
        would tell how many examples were drawn. It loads nothing from anywhere when opened.

    Raises:
        ConfigError[not-a-run]: there is no such folder, or it holds no run.
        ConfigError[run-folder]: a file in it is unreadable or not in our format.
        ConfigError[run-without-ledger]: the run says it is private, but has no ledger.
        ConfigError[report-not-writable]: the page cannot be written into the folder.
        LedgerError: the ledger is damaged.
    """
    run = read_run(folder)
    statement, verification = state(run), verify_read(run)
    path = run.folder / "report.html"
    beside = run.folder / ".report.html.part"
    try:
        beside.write_text(render(run, statement, verification), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise ConfigError(
            f"The page cannot be written to '{path}': {error.strerror}. "
            "Make it writable, or copy the folder.",
            code="report-not-writable",
        ) from error
    cards = write_cards(run, statement, verification)
    return Report(path=path, cards=cards, run=run, statement=statement, verification=verification)


def render(run: Run, statement: Statement, verification: Verification) -> str:
    """The whole page, as text."""
    accuracies = accuracies_of(run)
    report = statement.report
    return page(
        "report.html.j2",
        about=run.about,
        created=_minute(run.about.created),
        ledger=run.ledger,
        statement=statement,
        verification=verification,
        report=report,
        attack=attack(run, statement),
        scored=run.about.data.get("scored"),
        segments=tuple(run.ledger.segments()) if run.ledger else (),
        relation_in_words=unit_of(report.neighbouring_relation, privacy_unit(run)) if report else "",
        unit=privacy_unit(run),
        guess=guess_accuracy(report) if report else 1.0,
        epsilon=round_up(report.epsilon) if report and statement.private else "∞",
        epsilon_plot=_epsilon_plot(run, statement),
        accuracy_plot=_accuracy_plot(accuracies),
        audit=run.audit,
        audit_plots=drawn(run.audit) if run.audit else {},
        audit_pictures=pictures(run.audit, run.folder) if run.audit else (),
        classes=by_class(run),
        accuracies=accuracies,
        last_accuracy={line.name: line.points[-1][1] for line in accuracies},
        layers=run.about.layers,
        layers_seconds=sum(layer.seconds for layer in run.about.layers) or 1.0,
        num_ledger_lines=run.num_ledger_lines,
        num_examples=public_num_examples(run),
        num_available=num_available(run),
        clipping=clipping_in_words(run),
        batch=batch_in_words(run),
        **_time(run),
        config=rows(run.about.config or run.about.settings),
        plan=rows(run.about.plan or {}),
        environment=rows(run.about.environment),
        model=rows(run.about.model),
        data=rows(run.about.data),
    )


def _epsilon_plot(run: Run, statement: Statement) -> Markup | None:
    if not statement.curve or run.ledger is None:
        return None
    last = round_up(statement.curve[-1][1])
    return Markup(epsilon_plot(statement.curve, delta=run.ledger.delta, last=last))


def _accuracy_plot(accuracies: tuple[Series, ...]) -> Markup | None:
    """None where every curve is one point: the numbers at the top say as much."""
    if all(len(line.points) < 2 for line in accuracies):
        return None
    return Markup(accuracy_plot(accuracies))


def accuracies_of(run: Run) -> tuple[Series, ...]:
    """Test accuracy against steps: of the last weights, of their average, of the twin; those there are."""
    lines = [
        Series(name="last weights", points=curve(run.metrics, "last")),
        Series(name="averaged weights", points=curve(run.metrics, "ema")),
        Series(name="plain mean of weights", points=curve(run.metrics, "polyak")),
    ]
    if run.twin:
        lines.append(Series(name="non-private twin", points=_twin_curve(run.twin)))
    elif run.result and isinstance(score := run.result.twin.get("test_accuracy"), float) and lines[0].points:
        lines.append(Series(name="non-private twin", points=((lines[0].points[-1][0], score),)))
    return tuple(line for line in lines if line.points)


def _twin_curve(twin: Twin) -> tuple[tuple[int, float], ...]:
    """The curve of the weights that the twin reports, averaged or last."""
    weights = twin.result.weights if twin.result else "last"
    return curve(twin.metrics, weights) or curve(twin.metrics, "last")


def _minute(stamp: str) -> str:
    """An ISO time to the minute, with its zone; anything else as it is."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def _time(run: Run) -> dict[str, JsonValue]:
    """Time in steps, and times the twin's; not where it says how many examples were drawn."""
    drawn = run.ledger is not None and any(m.scheme in _OF_RANDOM_SIZE for m, _ in run.ledger.segments())
    if run.result is None or drawn:
        return {"seconds": None, "time_ratio": None}
    return {
        "seconds": run.result.seconds,
        "time_ratio": run.result.twin.get("time_ratio"),
        "time_of_update": run.twin is not None,  # a twin without a folder of its own took no such steps
    }


def rows(tree: Mapping[str, JsonValue], prefix: str = "") -> Rows:
    """A settings tree as (dotted name, value) rows, in its own order."""
    found: list[tuple[str, str]] = []
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            found.extend(rows(value, f"{dotted}."))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for k, item in enumerate(value, 1):
                assert isinstance(item, dict)
                own = {key: held for key, held in item.items() if key != "name"}
                found.extend(rows(own, f"{dotted}.{item.get('name', k)}."))
        else:
            found.append((dotted, _shown(value)))
    return tuple(found)


def _shown(value: JsonValue) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.8g}"
        case list():
            return ", ".join(_shown(part) for part in value) or "none"
        case _:
            return str(value)
