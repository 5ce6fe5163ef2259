"""The command line under torchrun: a run on two processes, a rank killed, and going on with one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from reticent.account.ledger import read_ledger
from tests.dist import restarted
from tests.dist.ranks import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.slow]
SETTINGS = ["num_steps=40", "expected_batch_size=40", "checkpoint_every=3", "epsilon=8"]


def train(out, *settings, processes=2, command="train", restarts=0, environment=None):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    env |= environment or {}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    launch += ["--max-restarts", str(restarts)] if restarts else []
    what = ["train", "digits", "--out", str(out)] if command == "train" else ["resume", str(out)]
    what += ["--resume"] if restarts else []
    for setting in settings:
        what += ["--set", setting]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "reticent", *what, "--json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2", "tp"])
def test_a_rank_is_killed_and_one_process_goes_on_to_the_plans_end(tmp_path, parallel):
    out = tmp_path / "run"
    job = train(out, *SETTINGS, f"parallel={parallel}")
    ledger = out / "ledger.jsonl"
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 8):
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(job.pid), "-f", str(out)], capture_output=True)  # not torchrun
    os.kill(max(int(pid) for pid in ranks.stdout.split()), signal.SIGKILL)
    job.communicate(timeout=120)  # no rank waits for the dead one
    assert job.returncode != 0
    spent = read_ledger(ledger).num_steps
    again = train(out, processes=1, command="resume")
    said, errors = again.communicate(timeout=300)
    result = json.loads(said.splitlines()[-1])
    assert again.returncode == 0, errors
    assert result["num_steps"] == 40 and result["num_lost"] == read_ledger(ledger).num_lost <= spent
    assert result["epsilon"] <= 8.0


def test_torchrun_starts_a_job_again_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    out = tmp_path / "run"
    job = train(out, *SETTINGS, "parallel=fsdp2", restarts=1)
    ledger = out / "ledger.jsonl"
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 12):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    ranks = subprocess.run(["pgrep", "-P", str(job.pid), "-f", str(out)], capture_output=True)  # not torchrun
    os.kill(max(int(pid) for pid in ranks.stdout.split()), signal.SIGKILL)
    said, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors[-3000:]
    result = json.loads(said.splitlines()[-1])
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    resumed = [number for number, entry in enumerate(entries) if entry.get("kind") == "resume"]
    assert len(resumed) == 1 and result["num_steps"] == read_ledger(ledger).num_steps == 40
    assert 12 < resumed[0] < 42 and 0 <= result["num_lost"] <= 3  # a checkpoint every third step
    assert result["epsilon"] <= 8.0


def test_a_rank_that_falls_silent_is_given_up_after_the_time_that_the_environment_says(tmp_path):
    """Its process is stopped, so that connections stay open, as where a cable is cut."""
    held = socket.socket()  # bound, so that nobody else is given the port, and rank 0 may listen on it
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port = str(held.getsockname()[1])
    out, jobs = tmp_path / "run", []
    for rank in ("0", "1"):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RETICENT_RANK_TIMEOUT": "12"}
        jobs.append(train(out, *SETTINGS, "parallel=ddp", processes=1, environment=env))
    try:
        ledger = out / "ledger.jsonl"
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 8):
            assert jobs[0].poll() is None, jobs[0].communicate()
            time.sleep(0.02)
        jobs[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        errors = jobs[0].communicate(timeout=90)[1]
        assert jobs[0].returncode != 0 and b"[rank-lost]" in errors
        assert 6 < time.monotonic() - began < 60  # the time it was given, and not torch's half an hour
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
        held.close()
    assert 7 <= read_ledger(ledger).num_steps < 40


def restart(kind, folder, *, times, **environment):
    paths = os.pathsep.join([str(ROOT), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launch, "--max-restarts", str(times), "-m", "tests.dist.restarted", kind, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_restarted_ranks_find_each_other_and_not_those_of_before(tmp_path):
    restart("join", tmp_path, times=3)
    assert [(tmp_path / f"met-{rank}").read_text() for rank in range(2)] == ["3", "3"]


@pytest.mark.parametrize("kind", ["replicas", "shards"])
def test_the_noise_after_a_restart_is_new(tmp_path, kind):
    """Gradients are zero: what moves the weights is noise, also where a lost step's batch is drawn again."""
    restart(kind, tmp_path, times=1, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    first = [np.load(tmp_path / f"weights-0-{step}.npy") for step in range(restarted.DIES_AT + 1)]
    last = [np.load(path) for path in sorted(tmp_path.glob("weights-1-*.npy"))]
    kept = restarted.DIES_AT - restarted.DIES_AT % restarted.EVERY
    assert (last[0] == first[kept]).all()  # from the checkpoint on
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    lost, since = ledger.num_lost, restarted.DIES_AT - kept
    assert ledger.num_steps == restarted.NUM_STEPS and since <= lost <= since + 1
    assert len(last) == 1 + restarted.NUM_STEPS - kept - lost
    moves = np.stack([b - a for run in (first, last) for a, b in pairwise(run)])
    std = restarted.PLAN.noise_multiplier * 1.0 / restarted.PLAN.expected_batch_size
    error = 1 / (2 * moves.shape[1]) ** 0.5
    assert (abs(moves.std(axis=1) / std - 1) < 6 * error).all()
    correlations = np.corrcoef(moves) - np.eye(len(moves))
    assert abs(correlations).max() < 6 / moves.shape[1] ** 0.5  # noise drawn again would have 1


def test_torchrun_without_parallel_is_refused_with_the_way_out(tmp_path):
    job = train(tmp_path / "run", *SETTINGS)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert b"parallel=ddp" in errors and not (tmp_path / "run").exists()


ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


@pytest.mark.parametrize(
    "launch",
    [["-m", "torch.distributed.run", "--nproc-per-node", "2"], ACCELERATE],
    ids=["torchrun", "accelerate"],
)
def test_a_script_that_uses_accelerate_names_its_ranks_and_prepares_nothing(tmp_path, launch):
    pytest.importorskip("accelerate")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    script = [str(ROOT / "tests" / "dist" / "accelerated.py"), str(tmp_path)]
    done = subprocess.run([sys.executable, *launch, *script], env=env, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2))
    assert first == second and first["steps"] == 5
    assert first["wrapped"] == first["unnamed"] == "several-ranks"
    assert first["optimizer"] == "optimizer-type" and first["loader"] == "data-rows"
