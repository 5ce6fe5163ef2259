"""The ledger: nothing acknowledged is lost, nothing altered goes unnoticed.

Each test attacks one sentence of the module's docstring.
"""
# pyright: reportArgumentType=false

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reticent.account import _ledger_chain as chain_module
from reticent.account import _ledger_file as file_module
from reticent.account.ledger import Ledger, read_ledger, read_run_ledger, verify_contains
from reticent.errors import BudgetExhausted, ConfigError, LedgerError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from reticent.report._plain_ledger import spent_by_plain_reading

POISSON = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=1.1)
STRONGER = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=2.0)
FULL = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=30.0)


def create(path: Path, *, num_steps: int = 100, reproducible: bool = False, **public: object) -> Ledger:
    return Ledger.create(
        path,
        run_id="run-1",
        relation=NeighbouringRelation.ZERO_OUT,
        delta=1e-5,
        num_steps=num_steps,
        reproducible=reproducible,
        public=public,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def written(path: Path) -> Path:
    """A ledger with every kind of line."""
    with create(path, max_norm=1.0, note='brackets "} in text') as ledger:
        for mechanism in (POISSON, POISSON, STRONGER, FULL, FULL):
            ledger.append_step(mechanism)
        ledger.append_resume(checkpoint_step=3)
        ledger.append_reproducible()
        ledger.append_step(FULL)
        ledger.append_step(FULL)
    return path


def relinked(path: Path, change: dict[int, dict[str, object]]) -> None:
    """Change entries and compute every hash again: what the chain cannot notice."""
    lines, prev = [], chain_module.GENESIS
    for seq, line in enumerate(path.read_text().splitlines()):
        entry = {**json.loads(line), **change.get(seq, {})}
        for member in ("seq", "prev", "hash"):
            entry.pop(member, None)
        lines.append(chain_module.line_of(seq, entry, prev))
        prev = chain_module.hash_of(lines[-1])
    path.write_bytes(b"".join(lines))


# ---- with the checkpoints beside it -------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1])
def test_a_runs_ledger_is_checked_against_what_its_checkpoints_remember(tmp_path, kept):
    path = tmp_path / "ledger.jsonl"
    with create(path) as ledger:
        places = [(ledger.head, ledger.num_steps)]
        ledger.append_step(POISSON)
        places.append((ledger.head, ledger.num_steps))
    entries = [{"ledger_head": head, "step": step} for head, step in places]
    (tmp_path / "checkpoint.json").write_text(json.dumps({"checkpoints": entries}))
    assert read_run_ledger(tmp_path) == read_ledger(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + kept]))
    with pytest.raises(LedgerError, match=r"cut off.*\[ledger-mismatch\]"):
        read_run_ledger(tmp_path)


@pytest.mark.parametrize("index", ["", "{", "[1]", '{"checkpoints": [{"ledger_head": null, "step": 3}]}'])
def test_a_list_of_checkpoints_that_remembers_nothing_is_passed_over(tmp_path, index):
    create(tmp_path / "ledger.jsonl").close()
    (tmp_path / "checkpoint.json").write_text(index)
    assert read_run_ledger(tmp_path).num_steps == 0


# ---- what it says -------------------------------------------------------------------------------


def test_it_says_what_was_appended(path):
    with create(path, max_norm=1.5, expected_batch_size=256.0, versions={"torch": "2"}) as ledger:
        assert [ledger.append_step(m) for m in (POISSON, POISSON, STRONGER, POISSON)] == [1, 2, 3, 4]
        head = ledger.head
    view = read_ledger(path)
    assert view.segments() == ((POISSON, 2), (STRONGER, 1), (POISSON, 1))
    assert (view.run_id, view.delta, view.planned_steps) == ("run-1", 1e-5, 100)
    assert view.relation is NeighbouringRelation.ZERO_OUT
    assert dict(view.public) == {"max_norm": 1.5, "expected_batch_size": 256.0, "versions": {"torch": "2"}}
    assert (view.num_steps, view.num_lost, view.num_resumes, view.torn_bytes) == (4, 0, 0, 0)
    assert view.head == head
    assert not view.reproducible


def test_an_open_ledger_and_its_reader_agree(written):
    view = read_ledger(written)
    with Ledger.open(written) as ledger:
        assert ledger.view() == view
        assert ledger.segments() == view.segments()
        assert ledger.path == written
        names = "run_id relation delta planned_steps public reproducible head num_steps num_lost torn_bytes"
        for name in names.split():
            assert getattr(ledger, name) == getattr(view, name), name


def test_a_new_ledger_holds_nothing(path):
    create(path).close()
    view = read_ledger(path)
    assert (view.segments(), view.num_steps) == ((), 0)


def test_consecutive_steps_of_one_mechanism_share_a_segment_across_openings(path):
    create(path).close()
    for _ in range(3):
        with Ledger.open(path) as ledger:
            ledger.append_step(POISSON)
    assert read_ledger(path).segments() == ((POISSON, 3),)
    assert path.read_text().count('"segment"') == 1


STEPS = st.lists(
    st.one_of(
        st.sampled_from([POISSON, FULL]),
        st.builds(
            Mechanism,
            scheme=st.just(SamplingScheme.POISSON),
            sampling_prob=st.floats(0.0, 1.0, exclude_min=True),
            noise_multiplier=st.floats(0.0, 1e300),
        ),
    ),
    max_size=12,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    steps=STEPS,
    public=st.dictionaries(st.text(), JSON, max_size=4),
    run_id=st.text(),
    delta=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    relation=st.sampled_from(NeighbouringRelation),
    reproducible=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path, steps, public, run_id, delta, relation, reproducible):
    path = tmp_path / "round-trip.jsonl"
    path.unlink(missing_ok=True)
    facts = dict(run_id=run_id, relation=relation, delta=delta, num_steps=12, reproducible=reproducible)
    with Ledger.create(path, public=public, **facts) as ledger:
        for step in steps:
            ledger.append_step(step)
    view = read_ledger(path)
    assert [m for m, count in view.segments() for _ in range(count)] == steps
    assert all(a[0] != b[0] for a, b in zip(view.segments(), view.segments()[1:], strict=False))
    assert dict(view.public) == public
    assert (view.run_id, view.delta, view.relation) == (run_id, delta, relation)
    assert (view.reproducible, view.planned_steps) == (reproducible, 12)


def test_every_line_is_json_with_its_number_its_link_and_a_hash_of_128_bits(written):
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for seq, line in enumerate(lines):
        assert line.get("seq", seq) == seq and (line.keys() == {"hash"}) == ("kind" not in line)
        assert seq == 0 or line.get("prev", lines[seq - 1]["hash"]) == lines[seq - 1]["hash"]
    assert all(len(line["hash"]) == 22 for line in lines)  # 22 digits of 6 bits
    assert [line.get("kind", "step") for line in lines] == (
        "header segment step step segment step segment step step resume reproducible step step".split()
    )


# ---- the plan's limit, losses, the mark ---------------------------------------------------------


def test_no_step_beyond_the_plan(path):
    with create(path, num_steps=2) as ledger:
        ledger.append_step(POISSON)
        ledger.append_step(POISSON)
        before = path.read_bytes()
        with pytest.raises(BudgetExhausted, match=r"2 of 2 planned steps.*\[budget-exhausted\]"):
            ledger.append_step(POISSON)
        assert path.read_bytes() == before
    with Ledger.open(path) as ledger, pytest.raises(BudgetExhausted):
        ledger.append_step(POISSON)


def steps_and_resume(ledger: Ledger, count: int, checkpoint_step: int) -> int:
    for _ in range(count):
        ledger.append_step(POISSON)
    ledger.append_resume(checkpoint_step=checkpoint_step)
    return ledger.num_lost


def test_lost_steps_stay_spent_and_are_counted_once(path):
    with create(path) as ledger:
        assert steps_and_resume(ledger, 10, 9) == 1
        assert steps_and_resume(ledger, 3, 9) == 4  # from the same checkpoint: the 3 new ones too
        assert steps_and_resume(ledger, 7, 18) == 6  # 5 of the 7 are in the checkpoint
        assert steps_and_resume(ledger, 0, 20) == 6  # a clean stop loses nothing
        assert steps_and_resume(ledger, 2, 9) == 13  # back to the first: all later ones are lost
        assert steps_and_resume(ledger, 0, 0) == 22
        assert ledger.num_steps == 22
    view = read_ledger(path)
    assert (view.num_steps, view.num_lost, view.num_resumes) == (22, 22, 6)
    assert view.segments() == ((POISSON, 22),)


def test_a_resume_from_a_step_never_reached_is_refused(path):
    with create(path) as ledger:
        ledger.append_step(POISSON)
        for step in (2, -1):
            with pytest.raises(LedgerError, match=rf"after {step} steps.*holds 1.*\[ledger-mismatch\]"):
                ledger.append_resume(checkpoint_step=step)


def test_reproducible_is_for_good(path, tmp_path):
    with create(path) as ledger:
        ledger.append_reproducible()
        ledger.append_reproducible()
        ledger.append_step(POISSON)
        assert ledger.reproducible
        with pytest.raises(AttributeError):
            ledger.reproducible = False  # type: ignore[misc]
    assert path.read_text().count('"kind":"reproducible"') == 1
    with Ledger.open(path) as ledger:
        assert ledger.reproducible
    create(tmp_path / "other", reproducible=True).close()
    with Ledger.open(tmp_path / "other") as ledger:
        ledger.append_step(POISSON)
        assert ledger.view().reproducible


# ---- crashes ------------------------------------------------------------------------------------

LOAD = """
import importlib, sys, types
# The ledger alone: the package around it takes seconds to import.
package = types.ModuleType("reticent.account")
package.__path__ = [sys.argv[2]]
sys.modules["reticent.account"] = package
module = importlib.import_module("reticent.account.ledger")
Ledger = module.Ledger
"""
APPENDER = (
    LOAD
    + """
from reticent.records import Mechanism
weak = Mechanism(scheme="poisson", sampling_prob=0.01, noise_multiplier=1.0)
strong = Mechanism(scheme="poisson", sampling_prob=0.01, noise_multiplier=2.0)
with Ledger.open(sys.argv[1]) as ledger:
    while True:
        count = ledger.append_step(strong if ledger.num_steps % 7 == 0 else weak)
        sys.stdout.write(f"{count}\\n")
        sys.stdout.flush()
"""
)


def in_a_process(program: str, path: Path) -> list[str]:
    """The command that runs `program` on the ledger at `path`."""
    return [sys.executable, "-c", program, str(path), str(Path(chain_module.__file__).parent)]


def test_kill_at_any_instant_loses_no_acknowledged_step(path):
    """25 times: kill -9 an appending process, then go on with the same ledger."""
    rng = random.Random(0)
    create(path, num_steps=10**6).close()
    held = 0
    for _ in range(25):
        child = subprocess.Popen(in_a_process(APPENDER, path), stdout=subprocess.PIPE)
        assert child.stdout is not None
        acknowledged = [child.stdout.readline()]  # it is at work
        time.sleep(rng.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().splitlines(keepends=True)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        last = int([line for line in acknowledged if line.endswith(b"\n")][-1])
        assert last > held
        held = read_ledger(path).num_steps
        assert last <= held <= last + 1
        with Ledger.open(path) as ledger:
            assert ledger.num_steps == held


def test_a_line_is_on_disk_before_append_returns(path, monkeypatch):
    synced: list[tuple[str, bytes]] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else ""
        synced.append((name, path.read_bytes()))

    monkeypatch.setattr(file_module.os, "fsync", fsync)
    with create(path) as ledger:
        assert synced[0][1].count(b"\n") == 1  # the header, then the folder that names the file
        assert len(synced) == 2
        if synced[1][0]:
            assert Path(synced[1][0]) == path.parent
        for count in (1, 2, 3):
            ledger.append_step(POISSON)
            assert len(synced) == 2 + count
            assert synced[-1][1] == path.read_bytes()
            assert synced[-1][1].count(b"\n") == 2 + count
        ledger.append_resume(checkpoint_step=1)
        assert len(synced) == 6


@pytest.mark.parametrize("last", ["step", "segment and step", "resume"])
def test_a_write_torn_at_any_byte_is_dropped_or_counts(path, caplog, last):
    with create(path) as ledger:
        ledger.append_step(POISSON)
        ledger.append_step(POISSON)
        before = path.read_bytes()
        if last == "resume":
            ledger.append_resume(checkpoint_step=1)
        else:
            ledger.append_step(STRONGER if last == "segment and step" else POISSON)
    after = path.read_bytes()
    for length in range(len(before), len(after)):
        path.write_bytes(after[:length])
        caplog.clear()
        view = read_ledger(path)
        complete = after[length : length + 1] == b"\n"  # all but the newline: the line counts
        torn = 0 if complete else len(after[:length].rpartition(b"\n")[2])
        assert view.torn_bytes == torn
        assert view.num_steps == (3 if complete and last != "resume" and length == len(after) - 1 else 2)
        with Ledger.open(path) as ledger:
            assert ledger.view() == view
            assert ledger.torn_bytes == torn
            assert ledger.append_step(STRONGER) == view.num_steps + 1
        assert ("dropped an unfinished last line" in caplog.text) == bool(torn)
        again = read_ledger(path)
        assert (again.num_steps, again.torn_bytes) == (view.num_steps + 1, 0)


def test_a_tail_of_zeros_is_a_torn_line(written):
    whole = read_ledger(written)
    written.write_bytes(written.read_bytes() + bytes(50))
    with Ledger.open(written) as ledger:
        assert (ledger.num_steps, ledger.torn_bytes) == (whole.num_steps, 50)


def test_a_creation_cut_short_is_refused_and_can_be_made_again(path):
    create(path, note='a "} b').close()
    header = path.read_bytes()
    for length in range(len(header)):
        path.write_bytes(header[:length])
        for use in (read_ledger, Ledger.open):
            with pytest.raises(LedgerError, match=r"before anything was spent.*\[ledger-unfinished\]"):
                use(path)
        create(path, note='a "} b').close()
        assert path.read_bytes() == header


def test_a_failed_write_stops_the_ledger_until_it_is_opened_again(path, monkeypatch):
    with create(path) as ledger:
        ledger.append_step(POISSON)

        def disk_full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(file_module.os, "fsync", disk_full)
            with pytest.raises(LedgerError, match=r"Cannot append to.*No space left.*\[ledger-io\]"):
                ledger.append_step(POISSON)
        with pytest.raises(LedgerError, match=r"did not finish its last append.*\[ledger-closed\]"):
            ledger.append_step(POISSON)
    with Ledger.open(path) as ledger:
        assert ledger.num_steps == 2  # the line had reached the file: it counts


def test_an_interrupt_inside_an_append_stops_the_ledger_too(path, monkeypatch):
    with create(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(
                file_module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                ledger.append_step(POISSON)
        with pytest.raises(LedgerError, match="ledger-closed"):
            ledger.append_step(POISSON)


# ---- cost ---------------------------------------------------------------------------------------

HUNDRED_THOUSAND_STEPS = (
    LOAD
    + """
import os, time
from reticent.records import Mechanism
# The disk's own time is not the question here.
sys.modules["reticent.account._ledger_file"].sync = lambda file: None
with Ledger.open(sys.argv[1]) as ledger:
    for _ in range(100_000):
        ledger.append_step(Mechanism(scheme="poisson", sampling_prob=0.01, noise_multiplier=1.0))
start = time.process_time()
view = module.read_ledger(sys.argv[1])
print(view.num_steps, time.process_time() - start, os.path.getsize(sys.argv[1]))
"""
)


def test_a_million_steps_take_less_than_fifty_megabytes_and_reading_is_fast(path):
    create(path, num_steps=100_000).close()
    run = subprocess.run(in_a_process(HUNDRED_THOUSAND_STEPS, path), check=True, capture_output=True)
    num_steps, seconds, size = map(float, run.stdout.split())
    assert num_steps == 100_000
    assert size / num_steps < 35
    assert seconds < 2.0


# ---- tampering ----------------------------------------------------------------------------------


def test_any_changed_byte_is_noticed(written):
    """Every byte of the file, with several replacements each; `_scan` is what every reader calls."""
    data, rng = written.read_bytes(), random.Random(0)
    assert chain_module.scan_bytes(data, written).chain.num_steps == 7
    for position, byte in enumerate(data):
        for other in {0, 10, 32, 34, 48, 57, 125, byte ^ 1, byte ^ 32, rng.randrange(256)} - {byte}:
            changed = data[:position] + bytes([other]) + data[position + 1 :]
            # A larger digit in the format's place is a newer version, refused as such.
            with pytest.raises(LedgerError, match=r"ledger-(damaged|version)"):
                chain_module.scan_bytes(changed, written)


def test_the_damaged_line_is_named(written):
    lines = written.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines) + 1):
        changed = list(lines)
        changed[number - 1] = changed[number - 1].replace(b'"hash":"', b'"hash":"x', 1)
        written.write_bytes(b"".join(changed))
        for use in (read_ledger, Ledger.open):
            with pytest.raises(
                LedgerError, match=rf"Line {number} of the ledger .* was changed.*\[ledger-damaged\]"
            ):
                use(written)


def test_a_missing_doubled_or_moved_line_is_named(written):
    lines = written.read_bytes().splitlines(keepends=True)
    for i in range(1, len(lines) - 1):
        swapped = [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]
        missing = [*lines[:i], *lines[i + 1 :]]
        for changed, number in ((swapped, i + 1), (missing, i + 1), ([*lines[: i + 1], *lines[i:]], i + 2)):
            written.write_bytes(b"".join(changed))
            with pytest.raises(LedgerError, match=rf"Line {number} of .* does not follow the line before"):
                read_ledger(written)


def test_lines_of_another_ledger_do_not_fit(written, tmp_path):
    with create(tmp_path / "other") as other:
        for _ in range(20):
            other.append_step(POISSON)
    lines = written.read_bytes().splitlines(keepends=True)
    theirs = (tmp_path / "other").read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([*lines[:4], *theirs[4:]]))
    with pytest.raises(LedgerError, match=r"Line 5 of .* does not follow"):
        read_ledger(written)


def test_a_cut_tail_is_noticed_by_a_checkpoint_that_remembers_it(written):
    lines = written.read_bytes().splitlines(keepends=True)
    view = read_ledger(written)
    with Ledger.open(written) as ledger:
        verify_contains(ledger, head=view.head, num_steps=view.num_steps)
    for kept in range(1, len(lines)):
        written.write_bytes(b"".join(lines[:kept]))
        short = read_ledger(written)  # by itself, a cut tail looks like an earlier state
        verify_contains(view, head=short.head, num_steps=short.num_steps)  # and an earlier place is found
        with pytest.raises(LedgerError, match=r"(cut off|no line).*\[ledger-mismatch\]"):
            verify_contains(short, head=view.head, num_steps=view.num_steps)


def test_a_checkpoint_of_another_run_or_count_is_refused(written, tmp_path):
    view = read_ledger(written)
    with pytest.raises(LedgerError, match=r"counts 3 steps where the ledger counts 7.*\[ledger-mismatch\]"):
        verify_contains(view, head=view.head, num_steps=3)
    with create(tmp_path / "other") as other:
        with pytest.raises(LedgerError, match=r"no line .* another run.*\[ledger-mismatch\]"):
            verify_contains(view, head=other.head, num_steps=other.num_steps)


@pytest.mark.parametrize(
    ("seq", "change"),
    [
        (0, {"kind": "headline"}),
        (0, {"format": 0}),
        (0, {"delta": 1.0}),
        (0, {"relation": "replace-two"}),
        (0, {"surprise": 1}),
        (1, {"kind": "discount"}),
        (1, {"kind": "header"}),
        (1, {"noise_multiplier": -1.0}),
        (1, {"sampling_prob": "0.01"}),
        (1, {"scheme": "shuffle"}),
        (1, {"surprise": 1}),
        (2, {"surprise": 1}),
        (9, {"checkpoint_step": 6}),
        (9, {"checkpoint_step": -1}),
    ],
)
def test_what_this_version_does_not_know_is_refused_even_with_right_hashes(written, seq, change):
    relinked(written, {})
    read_ledger(written)  # the rewriting itself is faithful
    relinked(written, {seq: change})
    with pytest.raises(LedgerError, match=rf"Line {seq + 1} .*\[ledger-damaged\]"):
        read_ledger(written)


def test_a_step_before_any_mechanism_is_refused(path):
    create(path).close()
    header = path.read_bytes()
    path.write_bytes(header + chain_module.line_of(1, {}, chain_module.hash_of(header)))
    with pytest.raises(LedgerError, match=r"Line 2 .*\[ledger-damaged\]"):
        read_ledger(path)


def of_version_1(path: Path) -> None:
    """Write a ledger as the first version did: a header, a segment, two steps."""
    header = chain_module.header_entry("run-1", NeighbouringRelation.ZERO_OUT, 1e-5, 4, False, {})
    lines, prev = [], chain_module.GENESIS
    for seq, entry in enumerate(({**header, "format": 1}, chain_module.segment_entry(POISSON), {}, {})):
        lines.append(chain_module.line_of(seq, entry, prev, version=1))
        prev = chain_module.hash_of(lines[-1])
    path.write_bytes(b"".join(lines))


def test_a_ledger_of_the_first_version_is_read_and_gone_on_with_in_its_own_format(path):
    of_version_1(path)
    with Ledger.open(path) as ledger:
        ledger.append_step(POISSON)
        cut = Mechanism(
            scheme="truncated-poisson", sampling_prob=0.1, noise_multiplier=1, num_examples=9, batch_size=2
        )
        with pytest.raises(LedgerError, match=r"no words for truncated-poisson.*\[ledger-version\]"):
            ledger.append_step(cut)
    assert read_ledger(path).segments() == ((POISSON, 3),)
    assert {"seq", "prev", "hash"} == json.loads(path.read_text().splitlines()[-1]).keys()
    assert spent_by_plain_reading(path).segments == [(("poisson", 0.01, 1.1), 3)]


def test_a_newer_format_is_refused_as_such(written):
    relinked(written, {0: {"format": 3}})
    for use in (read_ledger, Ledger.open):
        with pytest.raises(
            LedgerError, match=r"has format 3; this version.*up to format 2.*\[ledger-version\]"
        ):
            use(written)


@pytest.mark.parametrize(
    "content", [b"hello\n", b"hello", b"[1]\n", b"\n", b"\xff\xfe\n", b'{"format": true}\n']
)
def test_another_file_is_not_a_ledger_and_is_never_overwritten(path, content):
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"Line 1 .*\[ledger-damaged\]"):
        read_ledger(path)
    with pytest.raises(LedgerError, match=r"never overwritten.*\[ledger-exists\]"):
        create(path)
    assert path.read_bytes() == content


def test_a_file_changed_under_an_open_ledger_stops_it(path, tmp_path):
    with create(path) as ledger:
        ledger.append_step(POISSON)
        saved = path.read_bytes()
        path.write_bytes(saved + b"x")
        with pytest.raises(LedgerError, match=r"was changed, moved or deleted.*\[ledger-changed\]"):
            ledger.append_step(POISSON)
        path.write_bytes(saved)
        ledger.append_step(POISSON)
        path.rename(tmp_path / "moved")
        with pytest.raises(LedgerError, match="ledger-changed"):
            ledger.append_step(POISSON)
        path.write_bytes((tmp_path / "moved").read_bytes())  # a copy in its place is another file
        with pytest.raises(LedgerError, match="ledger-changed"):
            ledger.append_step(POISSON)


# ---- one process at a time, and the operating system --------------------------------------------

OPENER = (
    LOAD
    + """
from reticent.errors import LedgerError
try:
    Ledger.open(sys.argv[1]).close()
except LedgerError as error:
    sys.exit(str(error))
"""
)


def test_a_second_process_is_refused(path):
    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(in_a_process(OPENER, path), capture_output=True, text=True, check=False)

    with create(path) as ledger:
        refused = second()
        assert refused.returncode == 1
        assert "two runs may not share one ledger" in refused.stderr
        assert "[ledger-locked]" in refused.stderr
        ledger.append_step(POISSON)
        assert read_ledger(path).num_steps == 1  # reading needs no lock
    assert second().returncode == 0


@pytest.mark.parametrize("with_fcntl", [True, False])
def test_a_second_opener_is_refused_with_and_without_kernel_locks(path, monkeypatch, with_fcntl):
    if not with_fcntl:
        monkeypatch.setattr(file_module, "fcntl", None)
    with create(path):
        for use in (Ledger.open, create):
            with pytest.raises(LedgerError, match=r"open in another process.*\[ledger-locked\]") as refused:
                use(path)
            assert ("delete" in str(refused.value)) == (not with_fcntl)
    with Ledger.open(path) as ledger:
        ledger.append_step(POISSON)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_opening_lets_go_of_the_lock(written, monkeypatch):
    monkeypatch.setattr(file_module, "fcntl", None)
    good = written.read_bytes()
    written.write_bytes(good.replace(b"segment", b"Segment", 1))
    with pytest.raises(LedgerError, match="ledger-damaged"):
        Ledger.open(written)
    with pytest.raises(LedgerError, match="ledger-exists"):
        create(written)
    written.write_bytes(good)
    Ledger.open(written).close()


def test_a_forked_child_may_not_append(path, monkeypatch):
    with create(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(file_module.os, "getpid", lambda: -1)
            with pytest.raises(LedgerError, match=r"forked.*\[ledger-locked\]"):
                ledger.append_step(POISSON)
        assert ledger.append_step(POISSON) == 1


def test_threads_that_share_a_ledger_keep_its_chain(path):
    with create(path, num_steps=150) as ledger:

        def append() -> None:
            for _ in range(30):
                ledger.append_step(POISSON)

        threads = [threading.Thread(target=append) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read_ledger(path).num_steps == 150


def test_a_closed_ledger_appends_nothing_and_still_reads(path):
    ledger = create(path)
    ledger.append_step(POISSON)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match=r"is closed.*Ledger.open.*\[ledger-closed\]"):
        ledger.append_step(POISSON)
    assert ledger.num_steps == 1


def test_a_missing_file_is_refused(path):
    for use in (read_ledger, Ledger.open):
        with pytest.raises(LedgerError, match=r"There is no ledger at .*\[ledger-missing\]"):
            use(path)
    assert not path.exists()


def test_a_folder_that_is_missing_or_no_folder_is_refused(tmp_path):
    with pytest.raises(LedgerError, match=r"Cannot open the ledger.*\[ledger-io\]"):
        create(tmp_path / "absent" / "ledger.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="ledger-io"):
        create(tmp_path / "file" / "ledger.jsonl")
    for use in (create, Ledger.open, read_ledger):
        with pytest.raises(LedgerError, match="ledger-io"):
            use(tmp_path)


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    """A real one, and (since root may write everywhere) what the system would say."""
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:

        def read_only(*arguments: object) -> int:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(file_module.os, "open", read_only)
    with pytest.raises(LedgerError, match=r"Cannot open the ledger.*(denied|Read-only).*\[ledger-io\]"):
        create(tmp_path / "ledger.jsonl")
    tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_ledger_is_never_overwritten(written):
    before = written.read_bytes()
    with pytest.raises(LedgerError, match=r"already a ledger.*never overwritten.*\[ledger-exists\]"):
        create(written)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"num_steps": 0}, "num-steps"),
        ({"num_steps": -1}, "num-steps"),
        ({"num_steps": True}, "num-steps"),
        ({"public": {"x": float("nan")}}, "ledger-public"),
        ({"public": {"x": object()}}, "ledger-public"),
    ],
)
def test_bad_facts_are_refused_before_a_file_is_made(path, change, code):
    facts = dict(run_id="r", relation=NeighbouringRelation.ZERO_OUT, delta=1e-5, num_steps=3, public={})
    with pytest.raises(ConfigError, match=rf"\[{code}\]"):
        Ledger.create(path, **{**facts, **change})
    assert not path.exists()


def test_the_ledger_never_imports_torch():
    program = "import sys, reticent.account.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
