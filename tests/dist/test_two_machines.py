"""Two machines that see nobody else: network namespaces with an address each, and a cable between them."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from reticent.account.ledger import read_ledger
from reticent.dist import ALONE
from reticent.train import load_checkpoint, resume
from tests.dist import machines
from tests.dist.ranks import ROOT
from tests.train.joint import cross_entropy, make_data, make_model

pytestmark = [pytest.mark.dist, pytest.mark.slow]
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # for documentation (RFC 5737); there is no way out of a namespace


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    return None if done.returncode == 0 else f"ip {' '.join(words)}: {done.stderr.strip()}"


class Cable:
    """Two machines, and the cable between them."""

    def __init__(self, names):
        self.names = names

    def lay(self):
        """What is wrong, or None."""
        if shutil.which("ip") is None:
            return "there is no ip command"
        first, second = self.names
        words = [
            *(["netns", "add", name] for name in self.names),
            ["-n", first, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", second],
        ]
        for name, address in zip(self.names, ADDRESSES, strict=True):
            words.append(["-n", name, "addr", "add", f"{address}/30", "dev", "veth0"])
            words += [["-n", name, "link", "set", device, "up"] for device in ("lo", "veth0")]
        return next((problem for w in words if (problem := ip(*w)) is not None), None)

    def cut(self):
        assert ip("-n", self.names[1], "link", "set", "veth0", "down") is None

    def mend(self):
        assert ip("-n", self.names[1], "link", "set", "veth0", "up") is None

    def remove(self):
        for name in self.names:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def cable():
    laid = Cable([f"reticent-{os.getpid()}-{which}" for which in "ab"])
    try:
        problem = laid.lay()
        if problem is not None:
            pytest.skip(f"network namespaces cannot be made here: {problem}")
        yield laid
    finally:
        laid.remove()


def launch(cable, task, kind, folder):
    """torchrun on each machine."""
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join([str(ROOT), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "veth0"}
    jobs = []
    for number, (name, address) in enumerate(zip(cable.names, ADDRESSES, strict=True)):
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--node-rank",
            str(number),
        ]
        torchrun += ["--master-addr", ADDRESSES[0], "--master-port", "29511", "--local-addr", address]
        torchrun += ["-m", "tests.dist.machines", task, kind, str(folder)]
        with open(folder / f"{task}-{number}.err", "wb") as errors:
            command = ["ip", "netns", "exec", name, *torchrun]
            jobs.append(subprocess.Popen(command, env=env, stdout=errors, stderr=errors))
    return jobs


def ended(jobs, task, folder, *, timeout):
    """What each machine found."""
    until = time.monotonic() + timeout
    try:
        codes = [job.wait(max(1.0, until - time.monotonic())) for job in jobs]
    except subprocess.TimeoutExpired:
        for job in jobs:
            job.terminate()
        raise
    files = [folder / f"{task}-{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), [
        (folder / f"{task}-{n}.err").read_text()[-2000:] for n in (0, 1)
    ]
    return codes, [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("kind", ["replicas", "shards"])
def test_two_machines_find_what_one_process_finds(cable, tmp_path, kind):
    codes, found = ended(launch(cable, "same", kind, tmp_path / "two"), "same", tmp_path / "two", timeout=120)
    assert codes == [0, 0]
    wanted = alone(tmp_path)
    assert [of["epsilon"] for of in found] == [wanted["epsilon"]] * 2
    for name, weight in wanted["weights"].items():
        np.testing.assert_allclose(found[0]["weights"][name], weight, rtol=0, atol=1e-8)  # noise's grid


def alone(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "begin", lambda kind: (ALONE, make_model(seed=0)))
        try:
            return machines.same("alone", folder)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind, after", [("replicas", 12), ("shards", 23)])
def test_a_machine_is_cut_off_both_end_in_time_and_the_run_goes_on(cable, tmp_path, kind, after):
    jobs = launch(cable, "train", kind, tmp_path)
    ledger = tmp_path / "run" / "ledger.jsonl"
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < after:
        assert all(job.poll() is None for job in jobs), (tmp_path / "train-0.err").read_text()[-2000:]
        time.sleep(0.005)
    cable.cut()
    cut_at = time.time()
    try:
        codes, found = ended(jobs, "train", tmp_path, timeout=machines.TIMEOUT + 60)
    finally:
        cable.mend()
    assert all(code != 0 for code in codes)
    for of_rank in found:
        assert of_rank["code"] == "rank-lost" and "resuming it" in of_rank["text"]
        assert of_rank["ended"] - cut_at < machines.TIMEOUT + 5
    spent = read_ledger(ledger).num_steps
    kept = load_checkpoint(tmp_path / "run", say=print)
    taken = [int((tmp_path / f"train-{rank}.steps").read_text()) for rank in range(2)]
    assert max(taken) <= spent < machines.NUM_STEPS  # no machine took a step that is not spent
    # Two lines are no steps; the last one may be under way.
    assert spent >= after - 2 and max(taken) >= spent - 1
    if kind == "replicas":
        codes, _ = ended(launch(cable, "resume", kind, tmp_path), "resume", tmp_path, timeout=120)
        assert codes == [0, 0]
    else:  # the other machine is gone for good
        adam = torch.optim.Adam((model := make_model()).parameters(), lr=1e-2)
        resume(model, adam, dataset=make_data(), loss_per_example=cross_entropy, out=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    checkpoint = load_checkpoint(tmp_path / "run", say=print)
    assert checkpoint is not None and checkpoint.updates == machines.NUM_STEPS - result["num_lost"]
    assert result["num_steps"] == read_ledger(ledger).num_steps == machines.NUM_STEPS
    assert result["epsilon"] == machines.PLAN.epsilon().epsilon
    assert kept is not None and result["num_lost"] == spent - kept.step <= 5
