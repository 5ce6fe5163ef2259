"""A ledger's lines: what they look like, how they are chained by hashes, and what they say together.

Room: account. May import `reticent.records` and `reticent.errors`; no torch. Touches no file.

File format, version 2
    UTF-8 text, one JSON object a line, each line ended by a newline, no spaces. Every line has
    `seq` (0, 1, 2, ...), `prev` (the `hash` of the line before; 22 times "A" on the first) and, as
    its last member, `hash`: the first 128 bits of the SHA-256 of the line's text with the `hash`
    member left out (`{..., "prev":"..."}`), in base64url without padding (22 characters). Lines by kind:

    header: `format` (2), `run_id`, `relation`, `delta`, `planned_steps`, `reproducible`, `public`.
        The first line, and only the first.
    segment: `scheme`, `sampling_prob`, `noise_multiplier`, and the sizes that the scheme has
        (`reticent.records.SIZES`). The mechanism of the steps that follow.
    resume: `checkpoint_step`. The run went on from a checkpoint that was made when the ledger held
        this many steps; later ones are lost, and stay spent.
    reproducible: nothing else. The noise can be regenerated: the whole run is not private.

    These lines name themselves in `kind`. A line with `hash` alone is one more step of the last segment: its
    `seq` and `prev` go without saying, and are hashed as if they stood there (`{"seq":7,"prev":"..."}`).
    `public` is a JSON object of public settings (max_norm, expected_batch_size, versions, ...).
    A step line takes 34 bytes.

    In version 1, step lines say their `seq` and `prev` (up to 79 bytes), and no scheme has sizes. A ledger is
    gone on with in the version that it was begun in.

Sources:
    [1] Haber, Stornetta 1991, "How to time-stamp a digital document" (hash chains).
"""

import base64
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import ConfigError, LedgerError
from reticent.records import SIZES, Mechanism, NeighbouringRelation, SamplingScheme, check_delta

FORMAT: Final = 2
GENESIS: Final = "A" * 22
_HASH_TAIL: Final = len(',"hash":"') + 22 + len('"}')
_STEP_START: Final = b'{"hash":"'
_HEADER_START: Final = b'{"seq":0,"kind":"header",'
_SEGMENT: Final = frozenset(("scheme", "sampling_prob", "noise_multiplier"))
_MEMBERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "header": frozenset(
            ("format", "run_id", "relation", "delta", "planned_steps", "reproducible", "public")
        ),
        "segment": _SEGMENT,
        "resume": frozenset(("checkpoint_step",)),
        "reproducible": frozenset(()),
    }
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    run_id: str
    relation: NeighbouringRelation
    delta: float
    planned_steps: int
    reproducible: bool
    public: Mapping[str, Any]
    format: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A file's chain, how many of its bytes count, and what is wrong with its last line."""

    chain: "Chain"
    size: int
    torn_bytes: int = 0
    lacks_newline: bool = False


class Chain:
    """What the lines so far say. Lines enter through `accept` only, read or just written."""

    __slots__ = ("_resumes", "_segments", "head", "header", "num_steps", "reproducible", "seq", "steps_at")

    def __init__(self, header_line: bytes, path: Path) -> None:
        self.seq: int = 0
        self.head = GENESIS
        self.num_steps: int = 0
        self.steps_at: dict[str, int] = {}
        self._segments: list[tuple[Mechanism, int]] = []
        self._resumes: list[tuple[int, int]] = []  # steps held then, steps lost by then
        _refuse_newer(header_line, path)
        entry, digest = self._checked(header_line, path)
        with _damage(path, 1, "is not a ledger's header"):
            self.header: _Header = _parsed_header(entry)
        self.reproducible: bool = self.header.reproducible
        self._advance(digest)

    @property
    def current(self) -> Mechanism | None:
        """The mechanism of a step line that would come next."""
        return self._segments[-1][0] if self._segments else None

    @property
    def num_lost(self) -> int:
        return self._resumes[-1][1] if self._resumes else 0

    def line_of(self, seq: int, entry: Mapping[str, Any], prev: str) -> bytes:
        """An entry as a line of this ledger's version; {} is a step."""
        return line_of(seq, entry, prev, version=self.header.format)

    def accept(self, line: bytes, path: Path) -> None:
        """Verify one line (without its newline) and take it in."""
        step = self.line_of(self.seq, {}, self.head)
        if self._segments and line == step[:-1]:  # nearly every line; no parsing
            self._spend(hash_of(step))
            return
        if self.header.format > 1 and line.startswith(_STEP_START):
            problem = "was changed, or does not follow the line before it: lines are missing or moved"
            raise _damaged(path, self.seq + 1, problem)
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
            entry = json.loads(body, parse_constant=_no_constant)
            if not isinstance(entry, dict):
                raise ValueError("not an object")
        if entry.pop("seq", None) != self.seq or entry.pop("prev", None) != self.head:
            raise _damaged(path, number, "does not follow the line before it: lines are missing or moved")
        return entry, digest

    def _apply(self, entry: dict[str, Any]) -> None:
        kind = entry.pop("kind")
        sizes = SIZES[SamplingScheme(entry["scheme"])] if kind == "segment" and self.header.format > 1 else ()
        if kind == "header" or entry.keys() != _MEMBERS[kind] | frozenset(sizes):
            raise ValueError(kind)
        if kind == "segment":
            scheme = SamplingScheme(entry.pop("scheme"))
            self._segments.append((Mechanism(scheme=scheme, **entry), 0))
        elif kind == "resume":
            step = entry["checkpoint_step"]
            if type(step) is not int or not 0 <= step <= self.num_steps:
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


def scan_bytes(data: bytes, path: Path) -> Scan:
    """Verify a ledger's bytes from the first to the last."""
    *lines, tail = data.split(b"\n")
    if not lines:
        if not is_unfinished_header(tail):
            raise _damaged(path, 1, "is not a ledger's header")
        raise LedgerError(
            f"The ledger {path} has no complete first line: the run was stopped while making it, before "
            "anything was spent. Start the run again.",
            code="ledger-unfinished",
        )
    chain = Chain(lines[0], path)
    for line in lines[1:]:
        chain.accept(line, path)
    if b'"}' in tail:  # a line ends so and never holds it before: whole, or not what we wrote
        chain.accept(tail, path)
        return Scan(chain=chain, size=len(data) + 1, lacks_newline=True)
    return Scan(chain=chain, size=len(data) - len(tail), torn_bytes=len(tail))


def is_unfinished_header(data: bytes) -> bool:
    return b"\n" not in data and (data.startswith(_HEADER_START) or _HEADER_START.startswith(data))


def line_of(seq: int, entry: Mapping[str, Any], prev: str, *, version: int = FORMAT) -> bytes:
    if entry:
        body = json.dumps({"seq": seq, **entry, "prev": prev}, separators=(",", ":"), allow_nan=False)
    else:
        body = f'{{"seq":{seq},"prev":"{prev}"}}'
        if version > 1:
            return f'{{"hash":"{_digest(body)}"}}\n'.encode("ascii")
    return f'{body[:-1]},"hash":"{_digest(body)}"}}\n'.encode("ascii")


def _digest(body: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()[:16])[:22].decode()


def hash_of(line: bytes) -> str:
    return line[-len('AAAAAAAAAAAAAAAAAAAAAA"}\n') : -len('"}\n')].decode()


def header_entry(
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
    version = entry["format"]
    if entry.pop("kind") != "header" or entry.keys() != _MEMBERS["header"] or type(version) is not int:
        raise ValueError("header")
    if not 1 <= version <= FORMAT:
        raise ValueError(version)
    kinds = (("run_id", str), ("planned_steps", int), ("reproducible", bool), ("public", dict))
    if any(type(entry[name]) is not kind for name, kind in kinds) or entry["planned_steps"] < 1:
        raise ValueError("header")
    check_delta(entry["delta"])
    relation, public = NeighbouringRelation(entry.pop("relation")), MappingProxyType(entry.pop("public"))
    return _Header(relation=relation, public=public, **entry)


def _no_constant(name: str) -> None:
    """Refuse NaN and infinities, which JSON does not have and Python's reader takes."""
    raise ValueError(name)


def segment_entry(mechanism: Mechanism) -> dict[str, Any]:
    return {"kind": "segment", **mechanism.describe()}


def _refuse_newer(header_line: bytes, path: Path) -> None:
    """Look at the version before the hash: a newer format may hash in another way."""
    try:
        header = json.loads(header_line)
    except (ValueError, RecursionError):
        return  # damaged; said where the hash is checked
    version = header.get("format") if isinstance(header, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise LedgerError(
            f"The ledger {path} has format {version}; this version of Reticent reads up to format {FORMAT}. "
            "Use the version that wrote it, or a newer one.",
            code="ledger-version",
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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, number, problem) from error
