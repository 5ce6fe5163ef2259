"""Reading a run folder: its description, ledger, metrics, result and non-private twin.

Room: report. Everything is read and checked here, once; the rest of the room sees frozen records.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from reticent.account.ledger import LedgerView, read_run_ledger
from reticent.errors import ConfigError
from reticent.report._audit import Audit

_Kind = TypeVar("_Kind", bound=BaseModel)


class _File(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")


class LayerCost(_File):
    """How one parameter's gradients are clipped, and what that costs for one unit, on made-up rows."""

    parameter: str
    form: str
    method: str
    others: list[str] = []
    seconds: float
    bytes: float


class About(_File):
    """`run.json`: what was to run, on what, with which settings."""

    format: Literal[1]
    run_id: str
    created: str
    recipe: str | None = None
    config: dict[str, JsonValue] = {}
    plan: dict[str, JsonValue] | None = None
    settings: dict[str, JsonValue] = {}
    environment: dict[str, JsonValue] = {}
    model: dict[str, JsonValue] = {}
    data: dict[str, JsonValue] = {}
    layers: list[LayerCost] = []
    private: bool


class Metric(_File):
    """One evaluation, one line of `metrics.jsonl`."""

    step: int
    split: str
    weights: str = "last"
    accuracy: float | None = None
    loss: float | None = None
    seconds: float | None = None


class Result(_File):
    """`result.json`: what the run said of itself when it ended."""

    private: bool
    epsilon: float | None = None
    delta: float | None = None
    test_accuracy: float | None = None
    test_class_accuracy: list[float | None] = []
    test_auc_by_class: list[float | None] = []
    weights: str = "last"
    seconds: float | None = None
    twin: dict[str, JsonValue] = {}


class Selection(_File):
    """`selection.json`: the run was kept as the best of a random number of runs, see `reticent sweep`.

    Each candidate is what its run would spend: (scheme, sampling probability, noise multiplier, steps).
    """

    distribution: str
    mean: float
    candidates: list[list[tuple[str, float, float, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The non-private twin of a run: the same recipe without clipping and noise."""

    metrics: tuple[Metric, ...]
    result: Result | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder, read and checked. `ledger` is None for a run that kept none (not private)."""

    folder: Path
    about: About
    ledger: LedgerView | None
    num_ledger_lines: int
    metrics: tuple[Metric, ...]
    result: Result | None
    twin: Twin | None
    selection: Selection | None = None
    audit: Audit | None = None


def read_run(folder: str | Path) -> Run:
    """Read a run folder and check that its parts can be trusted.

    Args:
        folder: the folder that `reticent train --out` wrote.

    Returns:
        The run. Files a run may lack (metrics, result, twin) are empty or None.

    Guarantee:
        The ledger's chain of hashes was verified. A run that calls itself private has a ledger.

    Raises:
        ConfigError[not-a-run]: there is no such folder, or it has no `run.json`.
        ConfigError[run-folder]: a file in it is unreadable or not in our format.
        ConfigError[run-without-ledger]: `run.json` says private, but there is no ledger.
        LedgerError: the ledger is damaged, was cut, or belongs to another run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_run(f"There is no run folder at '{folder}'. Give one that `reticent train --out` wrote.")
    if not (folder / "run.json").is_file():
        raise _no_run(f"'{folder}' is not a run folder: it has no run.json.")
    about = _read(folder / "run.json", About)
    ledger_path = folder / "ledger.jsonl"
    if about.private and not ledger_path.is_file():
        raise ConfigError(
            f"'{folder}' says that it is private, but has no ledger.jsonl: no epsilon can be stated for it. "
            "Restore the ledger from a copy; without one, treat the weights as not private.",
            code="run-without-ledger",
        )
    ledger = read_run_ledger(folder) if ledger_path.is_file() else None
    if ledger is not None and ledger.run_id != about.run_id:
        raise _bad(f"run.json and ledger.jsonl in '{folder}' are of different runs.")
    return Run(
        folder=folder,
        about=about,
        ledger=ledger,
        num_ledger_lines=_text(ledger_path).count("\n") if ledger else 0,
        metrics=_read_metrics(folder / "metrics.jsonl"),
        result=_read_if_there(folder / "result.json", Result),
        twin=_read_twin(folder / "twin"),
        selection=_read_if_there(folder / "selection.json", Selection),
        audit=_read_if_there(folder / "audit.json", Audit),
    )


def _read_twin(folder: Path) -> Twin | None:
    if not folder.is_dir():
        return None
    return Twin(
        metrics=_read_metrics(folder / "metrics.jsonl"),
        result=_read_if_there(folder / "result.json", Result),
    )


def _no_run(message: str) -> ConfigError:
    return ConfigError(message, code="not-a-run")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, code="run-folder")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"'{path}' cannot be read: {error}.") from error


def _parse(text: str, where: str, kind: type[_Kind]) -> _Kind:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a character, which no page can be written with
        return kind.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'the whole'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise _bad(f"{where} is not in the format of Reticent 0.1: {problems}.") from error
    except (ValueError, RecursionError) as error:
        raise _bad(f"{where} is not JSON: {error}.") from error


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    return _parse(_text(path), f"'{path}'", kind)


def _read_if_there(path: Path, kind: type[_Kind]) -> _Kind | None:
    return _read(path, kind) if path.is_file() else None


def _read_metrics(path: Path) -> tuple[Metric, ...]:
    if not path.is_file():
        return ()
    lines = _text(path).split("\n")
    complete = lines[:-1]  # a killed run may leave a torn last line, which has no end of line
    return tuple(
        _parse(line, f"'{path}', line {number},", Metric)
        for number, line in enumerate(complete, start=1)
        if line.strip()
    )


def curve(metrics: Sequence[Metric], weights: str) -> tuple[tuple[int, float], ...]:
    """(step, test accuracy) of one kind of weights; a step evaluated again after a resume counts once."""
    points = {
        m.step: m.accuracy
        for m in metrics
        if m.split == "test" and m.weights == weights and m.accuracy is not None
    }
    return tuple(sorted(points.items()))
