"""The ledger: an append-only file that says what was spent, durable before it is spent.

Room: account. May import `reticent.records` and `reticent.errors`; no torch.

A run's epsilon is always computed from this file. An entry is on disk before its noisy gradient can
influence anything that is kept, so a crash may count a step that was lost and never loses a step
that counted. Nothing that depends on private data enters: no realised batch sizes, no losses, no
keys.

File format, version 1
    UTF-8 text, one JSON object a line, each line ended by a newline, no spaces. Every line has
    `seq` (0, 1, 2, ...), `prev` (the `hash` of the line before; 22 times "A" on the first) and, as
    its last member, `hash`: the first 128 bits of the SHA-256 of the line's text with the `hash`
    member left out (`{..., "prev":"..."}`), in base64url without padding (22 characters). Lines by kind:

    header: `format` (1), `run_id`, `relation`, `delta`, `planned_steps`, `reproducible`, `public`.
        The first line, and only the first.
    segment: `scheme`, `sampling_prob`, `noise_multiplier`. The mechanism of the steps that follow.
    resume: `checkpoint_step`. The run went on from a checkpoint that was made when the ledger held
        this many steps; later ones are lost, and stay spent.
    reproducible: nothing else. The noise can be regenerated: the whole run is not private.

    These lines name themselves in `kind`. A line without `kind` is one more step of the last segment.
    `public` is a JSON object of public settings (max_norm, expected_batch_size, versions, ...).
    A step line takes at most 79 bytes up to a million steps.

What the chain shows, and what not
    A line that was changed, removed, inserted or moved is noticed, and named. A last line without
    its newline is an append that a crash cut short: it is dropped, except when it is whole, and
    then it counts. Lines cut off at the end are noticed by `verify_contains` when a checkpoint
    remembers them. Replacing the whole folder by an older copy cannot be noticed from the folder,
    and the chain is no signature: who rewrites the file can compute the hashes again. It guards
    against accidents and careless edits, not against the person who runs the training.

Sources:
    [1] Haber, Stornetta 1991, "How to time-stamp a digital document" (hash chains).
"""

import base64
import hashlib
import json
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import BudgetExhausted, ConfigError, LedgerError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme, check_delta

try:
    import fcntl
except ModuleNotFoundError:  # Windows: a lock file takes its place
    fcntl = None

FORMAT: Final = 1
_GENESIS: Final = "A" * 22
_HASH_TAIL: Final = len(',"hash":"') + 22 + len('"}')
_HEADER_START: Final = b'{"seq":0,"kind":"header",'
_MEMBERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "header": frozenset(
            ("format", "run_id", "relation", "delta", "planned_steps", "reproducible", "public")
        ),
        "segment": frozenset(("scheme", "sampling_prob", "noise_multiplier")),
        "resume": frozenset(("checkpoint_step",)),
        "reproducible": frozenset(()),
    }
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """What a ledger said when it was read; its chain was verified.

    Args:
        run_id: name of the run, as given at its start.
        relation: neighbouring relation of the guarantee.
        delta: delta of the guarantee.
        planned_steps: steps the plan allows; no more can be appended.
        reproducible: True if the noise can be regenerated: epsilon is infinite.
        public: public settings noted at the start.
        num_steps: steps spent, lost ones included: the number that counts.
        num_lost: steps spent whose effect is not in the weights, because the run was resumed from
            a checkpoint made before them.
        num_resumes: how often the run was resumed.
        head: hash of the last line; a checkpoint keeps it, see `verify_contains`.
        torn_bytes: length of an unfinished last line that was left out, 0 if there was none.
    """

    run_id: str
    relation: NeighbouringRelation
    delta: float
    planned_steps: int
    reproducible: bool
    public: Mapping[str, Any]
    num_steps: int
    num_lost: int
    num_resumes: int
    head: str
    torn_bytes: int
    _segments: tuple[tuple[Mechanism, int], ...] = field(repr=False)
    _steps_at: Mapping[str, int] = field(repr=False, compare=False)

    def segments(self) -> tuple[tuple[Mechanism, int], ...]:
        """What was spent, in order: each mechanism with its number of consecutive steps."""
        return self._segments

    def steps_at(self, head: str) -> int | None:
        """Steps spent up to the line with this hash; None if no line has it."""
        return self._steps_at.get(head)


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
    scan = _scan(_read(path), path)
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
        entries = json.loads(index.read_text(encoding="utf-8"))["checkpoints"]
        places = [(entry["ledger_head"], entry["step"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
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

    Cost: one write and one fsync a step, and less than 80 bytes.
    """

    def __init__(self, path: Path, file: FileIO, unlock: Callable[[], None], scan: "_Scan") -> None:
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
        header = _line(0, _header(run_id, relation, delta, num_steps, reproducible, public), _GENESIS)
        file, unlock = _open_locked(path, create=True)
        try:
            _refuse_existing(path)
            with _os_errors(path, "start"):
                file.truncate(0)
                _write_all(file, header)
                _sync_folder(path.parent)
            return cls(path, file, unlock, _scan(header, path))
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
        file, unlock = _open_locked(path, create=False)
        try:
            scan = _scan(_read(path), path)
            with _os_errors(path, "repair"):
                if scan.torn_bytes:
                    _log.warning("%s: dropped an unfinished last line, %d bytes", path, scan.torn_bytes)
                    file.truncate(scan.size)
                    _sync(file)
                if scan.lacks_newline:
                    _write_all(file, b"\n")
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
        """
        with self._mutex:
            if self.num_steps >= self.planned_steps:
                raise BudgetExhausted(
                    f"The ledger {self._path} already holds {self.num_steps} of {self.planned_steps} "
                    "planned steps; one more would spend more than the plan's epsilon. Make a new plan "
                    "to train longer.",
                    code="budget-exhausted",
                )
            step: dict[str, Any] = {}
            if mechanism == self._chain.current:
                self._append(step)
            else:
                self._append(_segment(mechanism), step)
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
            lines.append(_line(self._chain.seq + offset, entry, head))
            head = _hash_of(lines[-1])
        self._unsure = True
        with _os_errors(self._path, "append to"):
            _write_all(self._file, b"".join(lines))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    run_id: str
    relation: NeighbouringRelation
    delta: float
    planned_steps: int
    reproducible: bool
    public: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """A file's chain, how many of its bytes count, and what is wrong with its last line."""

    chain: "_Chain"
    size: int
    torn_bytes: int = 0
    lacks_newline: bool = False


class _Chain:
    """What the lines so far say. Lines enter through `accept` only, read or just written."""

    __slots__ = ("_resumes", "_segments", "head", "header", "num_steps", "reproducible", "seq", "steps_at")

    def __init__(self, header_line: bytes, path: Path) -> None:
        self.seq = 0
        self.head = _GENESIS
        self.num_steps = 0
        self.steps_at: dict[str, int] = {}
        self._segments: list[tuple[Mechanism, int]] = []
        self._resumes: list[tuple[int, int]] = []  # steps held then, steps lost by then
        _refuse_newer(header_line, path)
        entry, digest = self._checked(header_line, path)
        with _damage(path, 1, "is not a ledger's header"):
            self.header = _parsed_header(entry)
        self.reproducible = self.header.reproducible
        self._advance(digest)

    @property
    def current(self) -> Mechanism | None:
        """The mechanism of a step line that would come next."""
        return self._segments[-1][0] if self._segments else None

    @property
    def num_lost(self) -> int:
        return self._resumes[-1][1] if self._resumes else 0

    def accept(self, line: bytes, path: Path) -> None:
        """Verify one line (without its newline) and take it in."""
        step = _line(self.seq, {}, self.head)
        if self._segments and line == step[:-1]:  # nearly every line; no parsing
            self._spend(_hash_of(step))
            return
        entry, digest = self._checked(line, path)
        with _damage(path, self.seq + 1, "holds something that this version cannot read"):
            self._apply(entry)
        self._advance(digest)

    def _checked(self, line: bytes, path: Path) -> tuple[dict[str, Any], str]:
        """The entry on a line and its hash, after checking hash, place and shape."""
        number = self.seq + 1
        with _damage(path, number, "was changed"):
            text = line.decode("ascii")
            body, tail = text[:-_HASH_TAIL] + "}", text[-_HASH_TAIL:]
            digest = _digest(body)
            if tail != f',"hash":"{digest}"}}':
                raise ValueError("hash")
            entry = json.loads(body)
            if not isinstance(entry, dict):
                raise ValueError("not an object")
        if entry.pop("seq", None) != self.seq or entry.pop("prev", None) != self.head:
            raise _damaged(path, number, "does not follow the line before it: lines are missing or moved")
        return entry, digest

    def _apply(self, entry: dict[str, Any]) -> None:
        kind = entry.pop("kind")
        if kind == "header" or entry.keys() != _MEMBERS[kind]:
            raise ValueError(kind)
        if kind == "segment":
            scheme = SamplingScheme(entry.pop("scheme"))
            self._segments.append((Mechanism(scheme=scheme, **entry), 0))
        elif kind == "resume":
            step = entry["checkpoint_step"]
            if not 0 <= step <= self.num_steps:
                raise ValueError(step)
            self._resumes.append((self.num_steps, self._lost_at(step) + self.num_steps - step))
        else:
            self.reproducible = True

    def _lost_at(self, num_steps: int) -> int:
        """Steps lost in the history of weights saved when the ledger held `num_steps`."""
        before = bisect_right(self._resumes, num_steps, key=lambda resume: resume[0])
        return self._resumes[before - 1][1] if before else 0

    def _spend(self, digest: str) -> None:
        mechanism, count = self._segments[-1]
        self._segments[-1] = (mechanism, count + 1)
        self.num_steps += 1
        self._advance(digest)

    def _advance(self, digest: str) -> None:
        self.seq += 1
        self.head = digest
        self.steps_at[digest] = self.num_steps

    def frozen_segments(self) -> tuple[tuple[Mechanism, int], ...]:
        return tuple(segment for segment in self._segments if segment[1])

    def view(self, *, torn_bytes: int) -> LedgerView:
        return LedgerView(
            run_id=self.header.run_id,
            relation=self.header.relation,
            delta=self.header.delta,
            planned_steps=self.header.planned_steps,
            reproducible=self.reproducible,
            public=self.header.public,
            num_steps=self.num_steps,
            num_lost=self.num_lost,
            num_resumes=len(self._resumes),
            head=self.head,
            torn_bytes=torn_bytes,
            _segments=self.frozen_segments(),
            _steps_at=MappingProxyType(dict(self.steps_at)),
        )


def _scan(data: bytes, path: Path) -> _Scan:
    """Verify a ledger's bytes from the first to the last."""
    *lines, tail = data.split(b"\n")
    if not lines:
        if not _is_unfinished_header(tail):
            raise _damaged(path, 1, "is not a ledger's header")
        raise LedgerError(
            f"The ledger {path} has no complete first line: the run was stopped while making it, before "
            "anything was spent. Start the run again.",
            code="ledger-unfinished",
        )
    chain = _Chain(lines[0], path)
    for line in lines[1:]:
        chain.accept(line, path)
    if b'"}' in tail:  # a line ends so and never holds it before: whole, or not what we wrote
        chain.accept(tail, path)
        return _Scan(chain=chain, size=len(data) + 1, lacks_newline=True)
    return _Scan(chain=chain, size=len(data) - len(tail), torn_bytes=len(tail))


def _is_unfinished_header(data: bytes) -> bool:
    return b"\n" not in data and (data.startswith(_HEADER_START) or _HEADER_START.startswith(data))


def _line(seq: int, entry: Mapping[str, Any], prev: str) -> bytes:
    if entry:
        body = json.dumps({"seq": seq, **entry, "prev": prev}, separators=(",", ":"), allow_nan=False)
    else:
        body = f'{{"seq":{seq},"prev":"{prev}"}}'
    return f'{body[:-1]},"hash":"{_digest(body)}"}}\n'.encode("ascii")


def _digest(body: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()[:16])[:22].decode()


def _hash_of(line: bytes) -> str:
    return line[-len('AAAAAAAAAAAAAAAAAAAAAA"}\n') : -len('"}\n')].decode()


def _header(
    run_id: str,
    relation: NeighbouringRelation,
    delta: float,
    num_steps: int,
    reproducible: bool,
    public: Mapping[str, Any],
) -> dict[str, Any]:
    try:
        settings = json.loads(json.dumps(dict(public), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The ledger's public settings must be JSON values (finite numbers, text, lists, ...): {error}.",
            code="ledger-public",
        ) from None
    return {
        "kind": "header",
        "format": FORMAT,
        "run_id": run_id,
        "relation": NeighbouringRelation(relation).value,
        "delta": float(delta),
        "planned_steps": num_steps,
        "reproducible": bool(reproducible),
        "public": settings,
    }


def _parsed_header(entry: dict[str, Any]) -> _Header:
    if entry.pop("kind") != "header" or entry.keys() != _MEMBERS["header"] or entry.pop("format") != FORMAT:
        raise ValueError("header")
    check_delta(entry["delta"])
    relation, public = NeighbouringRelation(entry.pop("relation")), MappingProxyType(entry.pop("public"))
    return _Header(relation=relation, public=public, **entry)


def _segment(mechanism: Mechanism) -> dict[str, Any]:
    return {
        "kind": "segment",
        "scheme": mechanism.scheme.value,
        "sampling_prob": float(mechanism.sampling_prob),
        "noise_multiplier": float(mechanism.noise_multiplier),
    }


def _refuse_newer(header_line: bytes, path: Path) -> None:
    """Look at the version before the hash: a newer format may hash in another way."""
    try:
        header = json.loads(header_line)
    except ValueError:
        return  # damaged; said where the hash is checked
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise LedgerError(
            f"The ledger {path} has format {version}; this version of Reticent reads up to format {FORMAT}. "
            "Use the version that wrote it, or a newer one.",
            code="ledger-version",
        )


def _refuse_existing(path: Path) -> None:
    if not _is_unfinished_header(_read(path)):
        raise LedgerError(
            f"There is already a ledger, or another file, at {path}. Resume that run, or choose another "
            "folder: a ledger is never overwritten.",
            code="ledger-exists",
        )


def _damaged(path: Path, number: int, problem: str) -> LedgerError:
    return LedgerError(
        f"Line {number} of the ledger {path} {problem}. What was spent cannot be known from a damaged "
        "ledger; restore it from a copy. If there is none, do not release this run's results as private.",
        code="ledger-damaged",
    )


@contextmanager
def _damage(path: Path, number: int, problem: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, number, problem) from error


@contextmanager
def _os_errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"Cannot {action} the ledger {path}: {error.strerror or error}. No step may be taken without "
            "it; check the folder, its permissions and the free space.",
            code="ledger-io",
        ) from error


def _read(path: Path) -> bytes:
    with _os_errors(path, "read"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise _missing(path) from None


def _missing(path: Path) -> LedgerError:
    return LedgerError(
        f"There is no ledger at {path}. Without it nothing is known about what was spent; check the path.",
        code="ledger-missing",
    )


def _open_locked(path: Path, *, create: bool) -> tuple[FileIO, Callable[[], None]]:
    """Open for appending, and lock; the second value lets go of the lock once the file is closed."""
    flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0) | getattr(os, "O_BINARY", 0)
    with _os_errors(path, "open"):
        try:
            file = FileIO(os.open(path, flags, 0o666), "a+")
        except FileNotFoundError:
            if create:
                raise
            raise _missing(path) from None
    try:
        return file, _lock(file, path)
    except BaseException:
        file.close()
        raise


def _lock(file: FileIO, path: Path) -> Callable[[], None]:
    """Take the exclusive lock: the kernel's, which dies with us, or else a lock file."""
    lock_file = path.with_name(path.name + ".lock")
    with _os_errors(path, "lock"):
        try:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lambda: None
            os.close(os.open(lock_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return lambda: lock_file.unlink(missing_ok=True)
        except (BlockingIOError, FileExistsError):
            stale = "" if fcntl is not None else f" If there is none, delete {lock_file}."
            raise LedgerError(
                f"The ledger {path} is open in another process: two runs may not share one ledger. Stop "
                f"that process, or wait until its workers have ended.{stale}",
                code="ledger-locked",
            ) from None


def _write_all(file: FileIO, data: bytes) -> None:
    """Write every byte and wait until it is on disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    _sync(file)


def _sync(file: FileIO) -> None:
    """Wait for the disk; on macOS for its cache too, which fsync alone does not."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full_sync is not None:
        fcntl.fcntl(file.fileno(), full_sync)
    else:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
