"""`reticent verify`: a run as it was written is sound; one that was changed anywhere is not."""

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.cli import main
from reticent.clipping import FlatClipping
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.recipes import request as request_recipe
from reticent.recipes import run as run_recipe
from reticent.report import verify_run
from reticent.sample import FullBatchSampler
from reticent.train import TrainSettings, train
from tests.report.runs import make_run
from tests.train.joint import cross_entropy, make_data, make_model

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "read_ledger.py"


PLAN = Plan(  # full batches: their epsilon is exact, and takes no time
    sampler=FullBatchSampler(num_examples=64),
    num_steps=6,
    noise_multiplier=20.0,
    clipping=FlatClipping(max_norm=1.0),
    delta=1e-3,
)


def make(out, *, ema=0.0, polyak=False, **options):
    model = make_model()
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan=PLAN,
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=out,
        settings=TrainSettings(checkpoint_every=3, ema=ema, polyak=polyak),
        **options,
    )
    return out


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture
def run(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_a_run_as_it_was_written_is_sound(run):
    found = verify_run(run)
    assert found.problems == () and found.sound and found.private
    assert found.report.epsilon == epsilon(read_ledger(run / "ledger.jsonl").segments(), delta=1e-3).epsilon
    assert {"ledger", "plan", "weights", "result", "RDP at integer orders"} <= set(found.checks)
    assert found.statement["ledger_head"] == read_ledger(run / "ledger.jsonl").head
    assert len(found.statement_sha256) == 64
    assert verify_run(run).statement_sha256 == found.statement_sha256


def edit(name, change):
    def do(folder):
        path = folder / name
        path.write_text(change(path.read_text()))

    return do


def edit_json(name, change):
    def do(folder):
        path = folder / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return do


def flip(pattern, position):
    def do(folder):
        path = sorted(folder.glob(pattern))[-1]
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(bytes(data))

    return do


def set_in(*where):
    *path, name, value = where

    def change(record):
        for part in path:
            record = record[part]
        record[name] = value

    return change


def drop_last_line(text):
    return "\n".join(text.rstrip("\n").split("\n")[:-1]) + "\n"


def without_checkpoint(folder):
    sorted(folder.glob("checkpoint-*.safetensors"))[-1].unlink()


def lengthen(path, end):
    """A tensor whose data end far behind the file's end."""
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def pipe(path):
    """What would be waited for without end."""
    path.unlink()
    os.mkfifo(path)


def public(folder):
    header = json.loads((folder / "ledger.jsonl").read_text().split("\n")[0])
    return {name: value for name, value in header["public"].items() if name != "num_examples"}


def rewrite(folder, member=None, *, scheme=None, **changes):
    """Change the ledger's header, or its sampler, and every hash after it: what no chain can show."""
    path, head, made = folder / "ledger.jsonl", "A" * 22, []
    for seq, line in enumerate(path.read_text().splitlines()):
        entry = {k: v for k, v in json.loads(line).items() if k not in ("seq", "prev", "hash")}
        if seq == 0:
            entry |= {member: changes} if member else changes
        elif scheme and entry.get("kind") == "segment":
            entry |= {"scheme": scheme, "num_examples": 64, "batch_size": 64}
        body = json.dumps({"seq": seq, **entry, "prev": head}, separators=(",", ":"))
        head = base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()[:16])[:22].decode()
        made.append(f'{{"hash":"{head}"}}' if not entry else f'{body[:-1]},"hash":"{head}"}}')
    path.write_text("\n".join(made) + "\n")
    for name in ("checkpoint.json", "result.json", "weights.safetensors"):
        (folder / name).unlink()


TAMPERED = {
    "a changed line": (edit("ledger.jsonl", lambda t: t.replace("20.0,", "90.0,", 1)), "line"),
    "a cut ledger": (edit("ledger.jsonl", drop_last_line), "cut off"),
    "no ledger": (lambda folder: (folder / "ledger.jsonl").unlink(), "no ledger"),
    "a smaller epsilon": (edit_json("result.json", set_in("epsilon", 0.1)), "epsilon"),
    "an epsilon that is none": (edit_json("result.json", set_in("epsilon", "0")), "epsilon"),
    "fewer steps in the result": (edit_json("result.json", set_in("num_steps", 5)), "num_steps"),
    "another head": (edit_json("result.json", set_in("ledger_head", "A" * 22)), "ledger_head"),
    "another delta in the result": (edit_json("result.json", set_in("delta", 1e-9)), "delta"),
    "not private in the result": (edit_json("result.json", set_in("private", False)), "private"),
    "a result that is no JSON": (edit("result.json", lambda t: t[:-9]), "JSON"),
    "another noise": (edit_json("run.json", set_in("plan", "noise_multiplier", 5.0)), "mechanism"),
    "another delta in the plan": (edit_json("run.json", set_in("plan", "delta", 1e-7)), "delta"),
    "another norm": (edit_json("run.json", set_in("plan", "clipping", "max_norm", 9.0)), "clipping"),
    "an unknown word in the plan": (edit_json("run.json", set_in("plan", "hello", 1)), "plan"),
    "no plan": (edit_json("run.json", set_in("plan", None)), "no plan"),
    "another run's description": (edit_json("run.json", set_in("run_id", "other")), "different runs"),
    "a newer run format": (edit_json("run.json", set_in("format", 2)), "format"),
    "a changed checkpoint": (flip("checkpoint-*.safetensors", -1), "SHA-256"),
    "a missing checkpoint": (without_checkpoint, "missing"),
    "another place": (edit_json("checkpoint.json", set_in("checkpoints", 0, "step", 5)), "checkpoint"),
    "other weights": (flip("weights.safetensors", -1), "weights"),
    "data that end nowhere": (lambda f: lengthen(f / "weights.safetensors", 10**17), "weights"),
    "a seed that nobody told": (edit_json("run.json", set_in("settings", "noise_seed", 7)), "noise_seed"),
    "a loss that nobody told": (edit_json("run.json", set_in("settings", "show_loss", True)), "is shown"),
    "a smaller data set": (lambda f: rewrite(f, "public", num_examples=9, **public(f)), "number of examples"),
    "a pipe as a checkpoint": (lambda f: pipe(sorted(f.glob("checkpoint-*.safetensors"))[-1]), "SHA-256"),
    "a pipe as weights": (lambda f: pipe(f / "weights.safetensors"), "weights"),
    "a pipe as the list": (lambda f: pipe(f / "checkpoint.json"), "checkpoints"),
    "steps that are no number": (lambda f: rewrite(f, planned_steps="6"), "header"),
    "settings that are no object": (lambda f: rewrite(f, public="x"), "header"),
    "no JSON among the settings": (lambda f: rewrite(f, public={"x": float("nan")}), "changed"),
    "no bound for such steps": (lambda f: rewrite(f, scheme="fixed-size"), "statement"),
    "weights cut short": (lambda f: (f / "weights.safetensors").write_bytes(b"\xff" * 8), "weights"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_a_run_that_was_changed_is_not_sound(what, run):
    tamper, text = TAMPERED[what]
    tamper(run)
    found = verify_run(run)
    assert not found.sound and not found.private
    assert text.lower() in " ".join(found.problems).lower()
    assert found.statement is None and found.statement_sha256 is None


def test_the_command_says_it_in_json_and_by_its_status(run):
    good = subprocess.run(
        [sys.executable, "-m", "reticent", "verify", str(run), "--json"], capture_output=True, text=True
    )
    assert (good.returncode, good.stderr) == (0, "")
    said = json.loads(good.stdout)
    assert said["sound"] and said["problems"] == [] and said["epsilon"] > 0
    edit_json("result.json", set_in("epsilon", 0.1))(run)
    result = CliRunner().invoke(main, ["verify", str(run), "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert not said["sound"] and said["problems"] and said["epsilon"] is None
    shown = CliRunner().invoke(main, ["verify", str(run)])
    assert shown.exit_code == 1 and "problem" in shown.stdout


def test_what_a_terminal_would_obey_is_shown_as_text(run):
    edit_json("result.json", set_in("num_lost", "\x1b[2J all is sound"))(run)
    shown = CliRunner().invoke(main, ["verify", str(run)])
    assert shown.exit_code == 1 and "\x1b" not in shown.stdout and "x1b[2J" in shown.stdout


@pytest.mark.parametrize(
    ("file", "name"),
    [("ema.safetensors", "averaged weights"), ("polyak.safetensors", "plain mean of weights")],
)
def test_the_averages_are_checked_too(tmp_path, file, name):
    folder = make(tmp_path / "run", ema=0.5, polyak=True)
    assert name in verify_run(folder).checks
    flip(file, -1)(folder)
    assert any(file in problem and "average" in problem for problem in verify_run(folder).problems)


def test_a_checkpoint_of_several_ranks_is_checked_part_by_part(run):
    """Its folder is put together here: what ranks write is tested in tests/dist."""
    listed = json.loads((run / "checkpoint.json").read_text())
    entry = listed["checkpoints"][0]
    parts = run / entry["file"].removesuffix(".safetensors")
    parts.mkdir()
    (run / entry["file"]).rename(parts / "part.safetensors")
    about = {key: entry[key] for key in ("step", "updates", "ledger_head")}
    digest = hashlib.sha256((parts / "part.safetensors").read_bytes()).hexdigest()
    (parts / "parts.json").write_text(json.dumps({**about, "parts": {"part.safetensors": digest}}))
    entry |= {"file": parts.name, "sha256": hashlib.sha256((parts / "parts.json").read_bytes()).hexdigest()}
    (run / "checkpoint.json").write_text(json.dumps(listed))
    found = verify_run(run)
    assert found.problems == () and "weights" in found.left_out
    flip(f"{parts.name}/part.safetensors", -1)(run)
    assert any("a part" in problem for problem in verify_run(run).problems)


def test_a_folder_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        verify_run(tmp_path)
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "none"), "--json"]).exit_code == 2


def test_a_reproducible_run_is_sound_and_not_private(tmp_path):
    found = verify_run(make(tmp_path / "run", noise_seed=3))
    assert found.sound and not found.private
    assert found.statement["epsilon"] is None


def test_a_run_without_privacy_is_sound(tmp_path):
    found = verify_run(make_run(tmp_path / "run", private=False, ledger=False))
    assert found.sound and not found.private and "ledger" in found.left_out


def test_a_header_that_lies_about_its_length_is_a_problem_and_no_crash(run):
    (run / "weights.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert any("weights" in problem for problem in verify_run(run).problems)


def test_the_ledger_is_readable_without_reticent(run):
    said = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(run / "ledger.jsonl")], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    view = read_ledger(run / "ledger.jsonl")
    assert "6 steps: full-batch, sampling probability 1, noise multiplier 20" in said.stdout
    assert f"6 of 6 planned steps; head {view.head}" in said.stdout
    assert len(SCRIPT.read_text().splitlines()) < 60
    flip("ledger.jsonl", 300)(run)
    broken = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(run / "ledger.jsonl")], capture_output=True, text=True
    )
    assert broken.returncode != 0


# -- a run of stages that release different things --------------------------------------------------------


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    out = tmp_path_factory.mktemp("staged") / "run"
    settings = ["features=digits", "epsilon=2", "method=fc", "num_steps=3", "centre=private"]
    run_recipe(request_recipe("last-layer", settings), out=out)
    return out


def test_a_run_of_stages_is_sound(staged):
    found = verify_run(staged)
    assert found.problems == () and found.private
    assert len(json.loads((staged / "run.json").read_text())["plan"]["stages"]) == 3


@pytest.mark.parametrize(
    ("where", "told"),
    [
        (("plan", "stages", 1, "noise", 1.0), "mechanism"),
        (("plan", "stages", 0, "num_steps", 10**12), "num_steps"),
        (("plan", "num_examples", 1438), "number of examples"),
        (("plan", "budget", "epsilon", 1.0), "budget"),
    ],
)
def test_a_run_of_stages_that_was_edited_is_not_sound(staged, tmp_path, where, told):
    folder = Path(shutil.copytree(staged, tmp_path / "run"))
    edit_json("run.json", set_in(*where))(folder)
    found = verify_run(folder)
    assert not found.sound and any(told in problem for problem in found.problems)
