"""Parsers fed with damaged input: each must read it, or refuse it with a code. Anything else is a crash.

Inputs are valid ones with bytes flipped, cut, doubled, or replaced by tokens that parsers trip over.
No coverage guides the choice; the figure is executions, and the seed of every crash.
"""

import gzip
import json
import random
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from benchmarks.trust import fuzz_data
from benchmarks.trust.fuzz_data import in_place
from reticent.account import _ledger_chain as chain
from reticent.account import epsilon
from reticent.account.ledger import Ledger, read_ledger
from reticent.clipping import FlatClipping
from reticent.data._archive import unpack
from reticent.data._images import read_idx
from reticent.errors import ReticentError
from reticent.plan import Plan
from reticent.recipes._config import parse_settings, read_toml
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from reticent.report import read_run
from reticent.sample import PoissonSampler
from reticent.train._checkpoint import Checkpoint, load_checkpoint, save_checkpoint

TOKENS = (
    *(b"\x00", b"\xff", b"null", b"NaN", b"1e999", b"-1", b"{}", b"[]", b'"', b"}", b"\n"),
    *(b"9" * 40, b"[" * 3000),
)


def damaged(data, choose):
    """A copy with one to four faults."""
    data = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(data) + 1)
        match choose.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << choose.randrange(8)
            case 1:
                del data[at : at + choose.randint(1, 40)]
            case 2:
                data[at:at] = choose.choice(TOKENS)
            case _:
                data[at:at] = data[at : at + choose.randint(1, 60)]
    return bytes(data)


def _plan():
    return Plan(
        sampler=PoissonSampler(num_examples=50, expected_batch_size=5),
        num_steps=3,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-3,
    )


def targets(folder):
    """Name -> (a valid input, what reads a file of it)."""
    run = folder / "run"
    run.mkdir()
    path = run / "ledger.jsonl"
    with Ledger.create(
        path, run_id="a", relation=NeighbouringRelation.ZERO_OUT, delta=1e-5, num_steps=9, public={"x": 1}
    ) as ledger:
        step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.1, noise_multiplier=1.0)
        for _ in range(3):
            ledger.append_step(step)
        ledger.append_resume(checkpoint_step=1)
    about = {"format": 1, "run_id": "a", "created": "now", "private": True, "plan": _plan().describe()}
    (run / "run.json").write_text(json.dumps(about))
    kept = folder / "kept"
    kept.mkdir()
    tensors = {"w": torch.zeros(3)}
    save_checkpoint(
        kept,
        Checkpoint(
            step=1, updates=1, ledger_head="A" * 22, seconds=0.0, model=tensors, ema={}, optimizer={"lr": 0.1}
        ),
    )
    archive = folder / "a.zip"

    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a/b.txt", "hello" * 20)
    counter = iter(range(10**9))

    def beside(name, valid, read):
        def parse(data):
            target = folder / name
            target.write_bytes(data)
            read(target)

        return valid, parse

    sized = Mechanism(
        scheme="truncated-poisson", sampling_prob=0.1, noise_multiplier=1.0, num_examples=90, batch_size=20
    )
    header = chain.header_entry("a", NeighbouringRelation.ZERO_OUT, 1e-5, 9, False, {"x": 1})
    entries = [header, chain.segment_entry(step), {}, {}, chain.segment_entry(sized), {}]
    first_version = [{**header, "format": 1}, chain.segment_entry(step), {}, {}]
    toml = b'recipe = "digits"\nepsilon = 3.0\nnum_steps = 100\n[more]\nx = [1, 2]\n'
    idx = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 3) + bytes(18)
    (checkpoint,) = kept.glob("checkpoint-*.safetensors")
    return {
        "ledger": in_place(path, lambda: read_ledger(path)),
        "ledger, hashes mended": beside(
            "l.jsonl", json.dumps(entries).encode(), lambda p: _mended(p, version=2)
        ),
        "ledger of version 1, hashes mended": beside(
            "l1.jsonl", json.dumps(first_version).encode(), lambda p: _mended(p, version=1)
        ),
        "run.json": in_place(run / "run.json", lambda: read_run(run)),
        "checkpoint index": in_place(
            kept / "checkpoint.json", lambda: load_checkpoint(kept, say=lambda _: None)
        ),
        "checkpoint": in_place(checkpoint, lambda: load_checkpoint(kept, say=lambda _: None)),
        "plan": beside(
            "plan.json", json.dumps(_plan().describe()).encode(), lambda p: Plan.from_dict(_json(p))
        ),
        "recipe file": beside("a.toml", toml, read_toml),
        "settings": beside(
            "s.txt",
            b"epsilon=3.0 num_steps=100 clipping=flat x=[1,2]",
            lambda p: parse_settings(p.read_text(errors="replace").split()),
        ),
        "IDX images": beside("a.idx", idx, read_idx),
        "gzipped IDX": beside("a.idx.gz", gzip.compress(idx), read_idx),
        "archive": beside("b.zip", archive.read_bytes(), lambda p: unpack(p, folder / f"out{next(counter)}")),
    }


def _mended(path, *, version):
    """Read a ledger of damaged entries whose hashes are right: the chain hides nothing from the parser."""
    entries = _json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return
    lines, prev = [], chain.GENESIS
    for seq, entry in enumerate(entries):
        said = {key: value for key, value in entry.items() if key not in ("seq", "prev", "hash")}
        try:
            lines.append(chain.line_of(seq, said, prev, version=version))
        except ValueError:
            return  # an infinity, which no line can hold
        prev = chain.hash_of(lines[-1])
    path.write_bytes(b"".join(lines))
    view = read_ledger(path)
    epsilon(view.segments(), delta=view.delta, relation=view.relation)


def _json(path):
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None  # the parser under test is the plan's, not JSON's


def fuzz(seconds, *, seed=0):
    """Executions and crashes of every parser, each for its share of `seconds`."""
    executions, crashes = {}, []
    with tempfile.TemporaryDirectory() as name:
        parsers = {**targets(Path(name)), **fuzz_data.targets(Path(name) / "data")}
        for target, (valid, parse) in parsers.items():
            choose, end = random.Random(f"{seed} {target}"), time.process_time() + seconds / len(parsers)
            executions[target] = 0
            while time.process_time() < end:
                data = damaged(valid, choose)
                executions[target] += 1
                try:
                    parse(data)
                except ReticentError:
                    pass
                except Exception as error:  # a crash is what is counted
                    said = f"{target} at execution {executions[target]}: {type(error).__name__}: {error}"
                    if not any(c.startswith(f"{target} ") and type(error).__name__ in c for c in crashes):
                        crashes.append(said[:300])
    return {
        "fuzz executions": sum(executions.values()),
        "by parser": executions,
        "kinds of crash": crashes,
    }
