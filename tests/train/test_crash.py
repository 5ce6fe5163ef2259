"""Runs killed at random instants: what the ledger says, what is lost, and how they end."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.train._checkpoint import load_checkpoint

NUM_STEPS = 60
RUN = """
import hashlib, pathlib, sys, time
import torch
torch.set_num_threads(1)
from reticent.data import load
from reticent.recipes import go_on, request, run
from reticent.train import PrivateStep
from reticent.noise import CipherNoise

out, log = pathlib.Path(sys.argv[1]), sys.argv[2]
released = open(log, "ab", buffering=0)
normal = CipherNoise.normal
def listening(self, shape, **options):
    z = normal(self, shape, **options)
    released.write(b"noise " + hashlib.sha256(z.numpy().tobytes()).hexdigest().encode() + b"\\n")
    return z
CipherNoise.normal = listening
init = PrivateStep.__init__
def tracing(self, model, optimizer, **options):
    init(self, model, optimizer, **options)
    optimizer.register_step_pre_hook(lambda *_: time.sleep(0.004))  # spent, and not yet in the weights
    optimizer.register_step_post_hook(lambda *_: released.write(b"update\\n"))
PrivateStep.__init__ = tracing

released.write(b"begin\\n")
if (out / "run.json").exists():
    go_on(out, data=load("digits"))
else:
    settings = ["expected_batch_size=40", "checkpoint_every=4", "eval_every=5", "epsilon=8"]
    asked = request("digits", [*settings, f"num_steps={sys.argv[3]}"])
    run(asked, out=out, data=load("digits"))
"""


def start(out, log):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(out), str(log), str(NUM_STEPS)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_after(process, seconds):
    """Kill it, unless it ends first; True if it was killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    finally:
        error = process.stderr.read().decode()
        process.stderr.close()
    assert process.returncode == 0, error
    return False


def begun(log):
    """Processes that got as far as to begin or resume the run."""
    return log.read_bytes().count(b"begin\n") if log.exists() else 0


def size(path):
    return path.stat().st_size if path.exists() else 0


def wait_for_growth(path, process):
    """Until the process has added to a file, or ended."""
    before = size(path)
    while size(path) == before and process.poll() is None:
        time.sleep(0.002)


def updates(log):
    """Updates that reached weights in memory, over all processes."""
    return log.read_bytes().count(b"update\n")


def noise(log):
    return [line for line in log.read_bytes().split(b"\n") if line.startswith(b"noise ")]


def read_begun(out):
    """The run's ledger, or None where its first line is not whole yet."""
    ledger = out / "ledger.jsonl"
    return read_ledger(ledger) if ledger.exists() and b"\n" in ledger.read_bytes() else None


def check_ledger(out, log):
    """The ledger counts what was done, or one step more for each process that was killed."""
    view = read_begun(out)
    if view is None:
        assert updates(log) == 0
        return
    assert updates(log) <= view.num_steps <= updates(log) + begun(log)
    assert view.num_steps <= NUM_STEPS


def crash_and_finish(out, log, *, kills, choose):
    """Kill an unfinished run again and again at random instants, then let it end; how often it was killed."""
    was_killed = 0
    while was_killed < kills:
        view = read_begun(out)
        before = 0 if view is None else view.num_steps
        process = start(out, log)
        wait_for_growth(log if choose.random() < 0.2 else out / "ledger.jsonl", process)
        if not kill_after(process, choose.uniform(0.0, 0.4)) or (out / "result.json").exists():
            break
        was_killed += 1
        check_ledger(out, log)
        if before:
            assert read_ledger(out / "ledger.jsonl").num_steps >= before
    assert not kill_after(start(out, log), 300)
    return was_killed


def check_end(out, log):
    view = read_ledger(out / "ledger.jsonl")
    assert view.num_steps == NUM_STEPS
    check_ledger(out, log)
    result = json.loads((out / "result.json").read_text())
    assert result["private"] is True
    assert result["num_lost"] == view.num_lost
    spent = epsilon(view.segments(), delta=view.delta, relation=view.relation)
    assert result["epsilon"] == spent.epsilon <= 8.0
    checkpoint = load_checkpoint(out, say=pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.updates) == (NUM_STEPS, NUM_STEPS - view.num_lost)
    assert all(bool(t.isfinite().all()) for t in checkpoint.model.values() if t.is_floating_point())
    drawn = noise(log)
    assert len(set(drawn)) == len(drawn), "noise was used twice"
    assert len(drawn) >= updates(log)
    return view


def crash_until(tmp_path, *, total, seed):
    """Runs, each killed up to five times, until `total` kills are done."""
    choose = random.Random(seed)
    done = run = 0
    while done < total:
        out, log = tmp_path / f"run-{run}", tmp_path / f"log-{run}"
        done += crash_and_finish(out, log, kills=min(5, total - done), choose=choose)
        check_end(out, log)
        run += 1
        assert run < 4 * total, "runs end before they are killed"


def test_a_run_killed_anywhere_keeps_its_account(tmp_path):
    crash_until(tmp_path, total=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_keep_the_account(tmp_path):
    crash_until(tmp_path, total=30, seed=2)


def test_the_log_of_these_tests_would_show_repeated_noise(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"begin\nnoise aa\nupdate\nbegin\nnoise aa\nupdate\n")
    assert updates(log) == 2
    assert len(set(noise(log))) < len(noise(log))
