"""The command line under torchrun: a run on two processes, a rank killed, and going on with one process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from reticent.account.ledger import read_ledger
from tests.dist.ranks import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.slow]
SETTINGS = ["num_steps=40", "expected_batch_size=40", "checkpoint_every=3", "epsilon=8"]


def train(out, *settings, processes=2, command="train"):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    what = ["train", "digits", "--out", str(out)] if command == "train" else ["resume", str(out)]
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
    ranks = subprocess.run(["pgrep", "-f", f"reticent train digits --out {out}"], capture_output=True)
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


def test_torchrun_without_parallel_is_refused_with_the_way_out(tmp_path):
    job = train(tmp_path / "run", *SETTINGS)
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert b"parallel=ddp" in errors and not (tmp_path / "run").exists()


ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


@pytest.mark.parametrize(
    "launch", [["-m", "torch.distributed.run", "--nproc-per-node", "2"], ACCELERATE], ids=["torchrun", "accelerate"]
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
