"""The ledger: an append-only file that says what was spent, durable before it is spent.

Room: account. May import `reticent.records` and `reticent.errors`; no torch.

A run's epsilon is always computed from this file. An entry is on disk before its noisy gradient can
influence anything that is kept, so a crash may count a step that was lost and never loses a step
that counted. Nothing that depends on private data enters: no realised batch sizes, no losses, no
keys.

The format of its lines is described in `_ledger_chain`; `_ledger_file` writes them.

What the chain shows, and what not
    A line that was changed, removed, inserted or moved is noticed, and named. A last line without
    its newline is an append that a crash cut short: it is dropped, except when it is whole, and
    then it counts. Lines cut off at the end are noticed by `verify_contains` when a checkpoint
    remembers them. Replacing the whole folder by an older copy cannot be noticed from the folder,
    and the chain is no signature: who rewrites the file can compute the hashes again. It guards
    against accidents and careless edits, not against the person who runs the training.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from reticent.account._ledger_chain import (
    FORMAT,
    GENESIS,
    LedgerView,
    Scan,
    hash_of,
    header_entry,
    is_unfinished_header,
    line_of,
    scan_bytes,
    segment_entry,
)
from reticent.account._ledger_file import open_locked, os_errors, read_bytes, sync, sync_folder, write_all
from reticent.errors import BudgetExhausted, ConfigError, LedgerError
from reticent.records import SIZES, Mechanism, NeighbouringRelation, check_delta

__all__ = ["FORMAT", "Ledger", "LedgerView", "read_ledger", "read_run_ledger", "verify_contains"]

_log = logging.getLogger(__name__)


def read_ledger(path: str | os.PathLike[str]) -> LedgerView:
    """Read and verify a ledger, without changing or locking it.

    Safe while another process appends: a line being written shows as `torn_bytes`.

    Args:
        path: the ledger file.

    Returns:
        What it says. Epsilon is computed from `segments()`, and is infinite if `reproducible`.

    Guarantee:
        Linear in the file's size: 100,000 steps in less than two seconds.

    Raises:
        LedgerError[ledger-missing]: there is no such file.
        LedgerError[ledger-unfinished]: creation was interrupted; nothing was spent.
        LedgerError[ledger-damaged]: a line was changed, removed, inserted or moved; names the line.
        LedgerError[ledger-version]: written by a newer version of Reticent.
        LedgerError[ledger-io]: the operating system refuses to read it.
    """
    path = Path(path)
    scan = scan_bytes(read_bytes(path), path)
    return scan.chain.view(torn_bytes=scan.torn_bytes)


def read_run_ledger(folder: str | os.PathLike[str]) -> LedgerView:
    """Read the ledger of a run folder, and check it against what its checkpoints remember.

    Args:
        folder: a run's folder.

    Raises:
        LedgerError[ledger-mismatch]: a checkpoint remembers a place in the chain that is gone: lines
            were cut off the ledger's end, or it belongs to another run.
        LedgerError: as `read_ledger`.
    """
    folder = Path(folder)
    view = read_ledger(folder / "ledger.jsonl")
    for head, num_steps in _remembered(folder / "checkpoint.json"):
        verify_contains(view, head=head, num_steps=num_steps)
    return view


def _remembered(index: Path) -> list[tuple[str, int]]:
    """Places in the chain that a list of checkpoints names; a damaged list names none."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["checkpoints"] if index.is_file() else ()
        places = [(entry["ledger_head"], entry["step"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [(head, step) for head, step in places if isinstance(head, str) and isinstance(step, int)]


def verify_contains(ledger: "LedgerView | Ledger", *, head: str, num_steps: int) -> None:
    """Check that a checkpoint's place in the chain is still there, so that a cut tail is noticed.

    Args:
        ledger: the run's ledger, or a view of it.
        head: the ledger's `head` when the checkpoint was made.
        num_steps: the ledger's `num_steps` at that moment.

    Raises:
        LedgerError[ledger-mismatch]: the chain has no such place: steps were cut off, or ledger
            and checkpoint belong to different runs.
    """
    found = ledger.steps_at(head)
    if found == num_steps:
        return
    if found is not None:
        problem = f"the checkpoint counts {num_steps} steps where the ledger counts {found}"
    elif ledger.num_steps < num_steps:
        problem = (
            f"the ledger holds {ledger.num_steps} steps but the checkpoint was made after {num_steps}: "
            "lines were cut off its end"
        )
    else:
        problem = f"the ledger has no line {head!r}: it was rewritten, or belongs to another run"
    raise LedgerError(
        f"Ledger and checkpoint do not belong together: {problem}. Restore the ledger that was beside "
        "this checkpoint, or start a new run; steps that are missing here were spent all the same.",
        code="ledger-mismatch",
    )


class Ledger:
    """A ledger open for appending, by one process at a time. A context manager.

    Guarantee:
        When an `append_...` returns, its line is on disk (fsync), so a crash at any instant leaves
        either all acknowledged lines, or those and the one in progress. More than the planned steps
        cannot be appended, nothing can be taken back, and a second opener is refused.

    Cost: one write and one fsync a step, and 34 bytes.
    """

    def __init__(self, path: Path, file: FileIO, unlock: Callable[[], None], scan: "Scan") -> None:
        self._path = path
        self._file = file
        self._unlock = unlock
        self._chain = scan.chain
        self._size = scan.size
        self._torn_bytes = scan.torn_bytes
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._unsure = False  # an append began and did not end: the file may hold its line or not

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        run_id: str,
        relation: NeighbouringRelation,
        delta: float,
        num_steps: int,
        reproducible: bool = False,
        public: Mapping[str, Any],
    ) -> "Ledger":
        """Start the ledger of a new run, durable when this returns.

        Args:
            path: file to make; its folder must exist. A file whose creation was interrupted is
                taken over, as nothing can have been spent on it.
            run_id: name of the run.
            relation: neighbouring relation of the guarantee.
            delta: delta of the guarantee.
            num_steps: steps the plan allows.
            reproducible: True if the noise can be regenerated. Cannot be taken back.
            public: public settings, as JSON values. Nothing that depends on private data.

        Raises:
            ConfigError[delta]: delta is not strictly between 0 and 1.
            ConfigError[num-steps]: `num_steps` is not an integer >= 1.
            ConfigError[ledger-public]: `public` cannot be written as JSON.
            LedgerError[ledger-exists]: there is a ledger, or another file, at `path`.
            LedgerError[ledger-locked]: another process has it open.
            LedgerError[ledger-io]: the operating system refuses.
        """
        path = Path(path)
        check_delta(delta)
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            raise ConfigError(f"num_steps must be an integer >= 1, got {num_steps!r}.", code="num-steps")
        header = line_of(0, header_entry(run_id, relation, delta, num_steps, reproducible, public), GENESIS)
        file, unlock = open_locked(path, create=True)
        try:
            _refuse_existing(path)
            with os_errors(path, "start"):
                file.truncate(0)
                write_all(file, header)
                sync_folder(path.parent)
            return cls(path, file, unlock, scan_bytes(header, path))
        except BaseException:
            file.close()
            unlock()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Ledger":
        """Go on with a ledger: verify it, repair a torn last line, and lock it.

        A torn last line is the append that a crash interrupted: nothing came of it, so it is
        dropped (`torn_bytes` and a log warning say so). One that lacks only its newline counts.

        Raises:
            LedgerError[ledger-locked]: another process has it open.
            LedgerError[ledger-missing]: there is no such file; and all else that `read_ledger` raises.
        """
        path = Path(path)
        file, unlock = open_locked(path, create=False)
        try:
            scan = scan_bytes(read_bytes(path), path)
            with os_errors(path, "repair"):
                if scan.torn_bytes:
                    _log.warning("%s: dropped an unfinished last line, %d bytes", path, scan.torn_bytes)
                    file.truncate(scan.size)
                    sync(file)
                if scan.lacks_newline:
                    write_all(file, b"\n")
            return cls(path, file, unlock, scan)
        except BaseException:
            file.close()
            unlock()
            raise

    def append_step(self, mechanism: Mechanism) -> int:
        """Spend one step. Call it before anything that the step's noisy sum influences is kept.

        Args:
            mechanism: what the step does to the data.

        Returns:
            Number of steps the ledger now holds.

        Guarantee:
            On disk when it returns. If it raises, the step may or may not be on disk, and must not
            be taken.

        Raises:
            BudgetExhausted[budget-exhausted]: the ledger holds all planned steps; nothing written.
            LedgerError[ledger-io]: the write failed (disk full, ...).
            LedgerError[ledger-changed]: the file was changed, moved or deleted meanwhile.
            LedgerError[ledger-closed]: closed, or an earlier append did not finish.
            LedgerError[ledger-locked]: this is a forked copy of the process that holds it.
            LedgerError[ledger-version]: begun by an older version, which does not know the sampler.
        """
        with self._mutex:
            if self.num_steps >= self.planned_steps:
                raise BudgetExhausted(
                    f"The ledger {self._path} already holds {self.num_steps} of {self.planned_steps} "
                    "planned steps; one more would spend more than the plan's epsilon. Make a new plan "
                    "to train longer.",
                    code="budget-exhausted",
                )
            if SIZES[mechanism.scheme] and self._chain.header.format == 1:
                raise LedgerError(
                    f"The ledger {self._path} has format 1, which has no words for {mechanism.scheme} "
                    "batches. Start a new run.",
                    code="ledger-version",
                )
            step: dict[str, Any] = {}
            if mechanism == self._chain.current:
                self._append(step)
            else:
                self._append(segment_entry(mechanism), step)
            return self.num_steps

    def append_resume(self, *, checkpoint_step: int) -> None:
        """Note that the run goes on from a checkpoint, whose later steps are lost but stay spent.

        Args:
            checkpoint_step: the ledger's `num_steps` when the checkpoint was made.

        Raises:
            LedgerError[ledger-mismatch]: the ledger never held so many steps.
            LedgerError: as `append_step`.
        """
        with self._mutex:
            if not 0 <= checkpoint_step <= self.num_steps:
                raise LedgerError(
                    f"The checkpoint was made after {checkpoint_step} steps, but the ledger {self._path} "
                    f"holds {self.num_steps}: it is not this run's ledger, or its end was cut off.",
                    code="ledger-mismatch",
                )
            self._append({"kind": "resume", "checkpoint_step": checkpoint_step})

    def append_reproducible(self) -> None:
        """Mark the whole run as not private, for good: its noise can be regenerated.

        Raises:
            LedgerError: as `append_step`.
        """
        with self._mutex:
            if not self.reproducible:
                self._append({"kind": "reproducible"})

    def _append(self, *entries: Mapping[str, Any]) -> None:
        """Write the entries in one piece, then take them into the chain as a reader would."""
        self._check_usable()
        lines, head = [], self._chain.head
        for offset, entry in enumerate(entries):
            lines.append(self._chain.line_of(self._chain.seq + offset, entry, head))
            head = hash_of(lines[-1])
        self._unsure = True
        with os_errors(self._path, "append to"):
            write_all(self._file, b"".join(lines))
        for line in lines:
            self._chain.accept(line[:-1], self._path)
            self._size += len(line)
        self._unsure = False

    def _check_usable(self) -> None:
        if self._file.closed or self._unsure:
            problem = "is closed" if self._file.closed else "did not finish its last append"
            raise LedgerError(
                f"The ledger {self._path} {problem}. Open it again with Ledger.open: it then counts what "
                "reached the disk.",
                code="ledger-closed",
            )
        if os.getpid() != self._pid:
            raise LedgerError(
                f"The ledger {self._path} belongs to the process that opened it; this one was forked "
                "from it and may not append.",
                code="ledger-locked",
            )
        mine = os.fstat(self._file.fileno())
        try:
            in_place = os.path.samestat(mine, os.stat(self._path))
        except OSError:
            in_place = False
        if not in_place or mine.st_size != self._size:
            raise LedgerError(
                f"The ledger {self._path} was changed, moved or deleted while this run had it open. "
                "Put it back as it was; the run cannot go on without it.",
                code="ledger-changed",
            )

    def view(self) -> LedgerView:
        """What the ledger says now, as a frozen record."""
        return self._chain.view(torn_bytes=self._torn_bytes)

    def segments(self) -> tuple[tuple[Mechanism, int], ...]:
        """What was spent, in order: each mechanism with its number of consecutive steps."""
        return self._chain.frozen_segments()

    def steps_at(self, head: str) -> int | None:
        """Steps spent up to the line with this hash; None if no line has it."""
        return self._chain.steps_at.get(head)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self._chain.header.run_id

    @property
    def relation(self) -> NeighbouringRelation:
        """Neighbouring relation of the guarantee."""
        return self._chain.header.relation

    @property
    def delta(self) -> float:
        """Delta of the guarantee."""
        return self._chain.header.delta

    @property
    def planned_steps(self) -> int:
        """Steps the plan allows."""
        return self._chain.header.planned_steps

    @property
    def public(self) -> Mapping[str, Any]:
        """Public settings noted at the start."""
        return self._chain.header.public

    @property
    def reproducible(self) -> bool:
        """True if the noise can be regenerated: epsilon is infinite."""
        return self._chain.reproducible

    @property
    def head(self) -> str:
        """Hash of the last line; a checkpoint keeps it."""
        return self._chain.head

    @property
    def num_steps(self) -> int:
        """Steps spent, lost ones included."""
        return self._chain.num_steps

    @property
    def num_lost(self) -> int:
        """Steps spent whose effect is not in the weights."""
        return self._chain.num_lost

    @property
    def torn_bytes(self) -> int:
        """Length of the unfinished last line that was dropped on opening."""
        return self._torn_bytes

    def close(self) -> None:
        """Let go of file and lock; again is harmless."""
        if not self._file.closed:
            self._file.close()
            self._unlock()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self._path)!r}, num_steps={self.num_steps}/{self.planned_steps})"


def _refuse_existing(path: Path) -> None:
    if not is_unfinished_header(read_bytes(path)):
        raise LedgerError(
            f"There is already a ledger, or another file, at {path}. Resume that run, or choose another "
            "folder: a ledger is never overwritten.",
            code="ledger-exists",
        )
