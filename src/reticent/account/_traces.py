"""What a run's files still say of steps that were taken: a ledger that holds fewer was cut.

Room: account. Standard library, `reticent.account` and `reticent.errors`; no torch.

Every file of a run that names a step was written after that step's entry in the ledger. So each of them is a
witness; to hide a cut, all have to go, or be rewritten.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reticent.account.ledger import Ledger, LedgerView, verify_contains
from reticent.errors import LedgerError

_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{6,15})(\.safetensors)?")
_WEIGHTS: Final = ("weights.safetensors", "ema.safetensors", "polyak.safetensors")
_LINES: Final = ("metrics.jsonl", "not-private.jsonl")
_MAX_HEADER: Final = 100 * 2**20
_DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)


@dataclass(frozen=True, slots=True)
class _Trace:
    """A file that was written when the ledger held `step` steps, and had `head` as its last line."""

    file: str
    step: int
    head: str | None


def verify_traces(ledger: Ledger | LedgerView, folder: Path) -> int:
    """Check that the ledger holds every step that another file of the run was written after.

    | file | says |
    |---|---|
    | `checkpoint.json` | steps and head of each checkpoint that it lists |
    | a checkpoint that it does not list | the same, and the steps in its name |
    | `weights.safetensors`, `ema.safetensors`, `polyak.safetensors` | steps and head at the end of the run |
    | `result.json` | the same |
    | `metrics.jsonl`, `not-private.jsonl` | the steps of each line |

    What is damaged says nothing here: whoever needs it will refuse it.

    Returns:
        Number of files that agree.

    Raises:
        LedgerError[ledger-mismatch]: lines were cut off the ledger, or it belongs to another run.
    """
    agreeing = set()
    for trace in _traces(folder):
        if trace.step > ledger.num_steps:
            raise LedgerError(
                f"'{trace.file}' was written after {trace.step} steps, and the ledger holds "
                f"{ledger.num_steps}: lines were cut off its end. Restore the ledger; steps that are missing "
                "from it were spent all the same.",
                code="ledger-mismatch",
            )
        if trace.head is not None:
            verify_contains(ledger, head=trace.head, num_steps=trace.step)
        agreeing.add(trace.file)
    return len(agreeing)


def _traces(folder: Path) -> Iterator[_Trace]:
    listed = set()
    for entry in _json_of(folder / "checkpoint.json").get("checkpoints") or ():
        if isinstance(entry, dict):
            listed.add(entry.get("file"))
            yield from _said("checkpoint.json", entry)
    for path in sorted(folder.glob("checkpoint-*")):
        named = _CHECKPOINT.fullmatch(path.name)
        if named is None or path.name in listed:  # a listed one that is damaged is passed over, not a cut
            continue
        whole = path.is_file() if named[2] else (path / "parts.json").is_file()
        if whole:
            yield _Trace(path.name, int(named[1]), None)
            yield from _said(path.name, _header_of(path) if named[2] else _json_of(path / "parts.json"))
    for name in _WEIGHTS:
        yield from _said(name, _header_of(folder / name))
    result = _json_of(folder / "result.json")
    yield from _said("result.json", {"step": result.get("num_steps"), **result})
    for name in _LINES:
        yield from _of_lines(folder / name)


def _said(file: str, record: Mapping[str, Any]) -> Iterator[_Trace]:
    step, head = record.get("step"), record.get("ledger_head")
    if type(step) is int and (head is None or isinstance(head, str)):
        yield _Trace(file, step, head)


def _of_lines(path: Path) -> Iterator[_Trace]:
    """The last step that a file of JSON lines names."""
    last = -1
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
    except _DAMAGE:
        return
    for line in lines:
        try:
            step = json.loads(line)["step"]
        except _DAMAGE:
            continue
        last = max(last, step) if type(step) is int else last
    if last >= 0:
        yield _Trace(path.name, last, None)


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except _DAMAGE:
        return {}
    return found if isinstance(found, dict) else {}


def _header_of(path: Path) -> dict[str, Any]:
    """What we wrote into a safetensors file's header."""
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, path.stat().st_size):
                return {}
            found = json.loads(json.loads(file.read(length))["__metadata__"]["reticent"])
    except _DAMAGE:
        return {}
    return found if isinstance(found, dict) else {}
