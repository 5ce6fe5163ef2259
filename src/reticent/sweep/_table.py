"""From the records of trials to lines of a plot, rows of a table and the best settings.

Room: sweep. May import `reticent.report`; computes on public scores only.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reticent.report import Curve

from ._spec import Sweep, asked_for

Record = Mapping[str, Any]
_SMALLER_IS_BETTER = ("loss", "perplexity", "error")


def score_of(record: Record, name: str) -> float:
    """A record's score, larger is better; minus infinity for a trial without one."""
    value = (record.get("result") or {}).get(f"test_{name}")
    if record["status"] != "done" or not isinstance(value, int | float) or not math.isfinite(value):
        return -math.inf
    return -value if name.endswith(_SMALLER_IS_BETTER) else float(value)


def as_printed(score: float, name: str) -> float:
    """The score as the run reported it."""
    return -score if name.endswith(_SMALLER_IS_BETTER) else score


def settings_of(record: Record) -> dict[str, Any]:
    """A record's settings with infinity as a number."""
    return {k: math.inf if v == "inf" else v for k, v in record["settings"].items()}


def average_over_seeds(records: Sequence[Record], score: str) -> list[dict[str, Any]]:
    """One entry for all trials that differ in `seed` only: mean score, its spread and their number.

    A group with a failed trial has the score of a failed trial: half a result is no result.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        settings = {k: v for k, v in record["settings"].items() if k != "seed"}
        groups.setdefault((record["private"], *sorted((k, repr(v)) for k, v in settings.items())), []).append(
            record
        )
    entries = []
    for group in groups.values():
        scores = [score_of(record, score) for record in group]
        entries.append(
            {
                "settings": {k: v for k, v in group[0]["settings"].items() if k != "seed"},
                "private": group[0]["private"],
                "score": statistics.fmean(scores),
                "spread": statistics.stdev(scores) if len(scores) > 1 and math.isfinite(sum(scores)) else 0.0,
                "num_seeds": len(group),
            }
        )
    return entries


def lines(asked: Sweep, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The best entry at each place of the plot: one line for each series, private and not."""
    best: dict[tuple, dict[Any, Mapping[str, Any]]] = {}
    for entry in entries:
        if not math.isfinite(entry["score"]):
            continue
        x, series = _place(asked, entry)
        line = best.setdefault((entry["private"], series), {})
        if x not in line or entry["score"] > line[x]["score"]:
            line[x] = entry
    return [
        {"series": series, "private": private, "points": [{"x": x, **line[x]} for x in _in_order(line)]}
        for (private, series), line in best.items()
    ]


def curves(asked: Sweep, drawn: Sequence[Mapping[str, Any]], score: str) -> list[Curve]:
    """The lines as the plot draws them."""
    names = list(dict.fromkeys(line["series"] for line in drawn))
    return [
        Curve(
            name=_name(line),
            points=[(p["x"], as_printed(p["score"], score), p["spread"]) for p in line["points"]],
            private=line["private"],
            colour=names.index(line["series"]),
        )
        for line in drawn
    ]


def varied(records: Sequence[Record]) -> list[str]:
    """Names of the settings that differ between trials, in the order they were given."""
    names = list(dict.fromkeys(name for record in records for name in record["settings"]))
    return [n for n in names if len({repr(r["settings"].get(n)) for r in records}) > 1]


def _place(asked: Sweep, entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """Where an entry stands: x (None for a run without privacy if x is epsilon), and its series."""
    config = asked_for(asked.recipe, settings_of(entry)).config
    x = getattr(config, asked.x)
    given = entry["settings"]
    series = [str(getattr(config, n)) for k, n in enumerate(asked.series) if k == 0 or n in given]
    return (None if asked.x == "epsilon" and not entry["private"] else x), " ".join(series) or None


def _name(line: Mapping[str, Any]) -> str:
    what = "private" if line["private"] else "without privacy"
    return what if line["series"] is None else f"{line['series']}, {what}"


def _in_order(line: Mapping[Any, Any]) -> list[Any]:
    return sorted(line, key=lambda x: (x is not None, x if isinstance(x, int | float) else 0.0, str(x)))
