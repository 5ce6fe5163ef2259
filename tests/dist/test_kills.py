"""Ranks killed at random instants, and runs gone on with by other numbers of ranks, sharded or not."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from reticent.account.ledger import read_ledger
from reticent.errors import CheckpointError
from reticent.train import load_checkpoint
from tests.dist.kills import NUM_STEPS
from tests.dist.ranks import ROOT

pytestmark = pytest.mark.dist


def trials(folder, *, number, seed):
    """The finished run's weights as others read them, and what came of each trial."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.dist.kills", str(folder), str(number), str(seed)]
    done = subprocess.run(command, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def require_right(folder, found):
    for number, trial in enumerate(found):
        assert trial["seconds"] < 25, "the others waited for the dead rank"
        assert trial["codes_after"] == [0] * len(trial["codes_after"]), trial["errors"]
        result = trial["result"]
        assert (result["num_steps"], result["epsilon"]) == (NUM_STEPS, trial["epsilon"])
        assert result["num_lost"] <= min(trial["spent"], 2)  # a checkpoint every other step
        run = folder / f"run-{number}"
        checkpoint = load_checkpoint(run, say=print)
        assert checkpoint is not None and checkpoint.updates == NUM_STEPS - result["num_lost"]
        assert read_ledger(run / "ledger.jsonl").head == checkpoint.ledger_head == result["ledger_head"]
    assert any(-9 in trial["codes"] for trial in found)


def test_a_killed_job_ends_and_any_number_of_ranks_goes_on_with_it(tmp_path):
    same_weights, *found = trials(tmp_path, number=3, seed=1)
    # The checkpoint of two is read by three, by one, and by two with slices; those of two with slices, and of
    # two copies in two shards, are read by one process and by their like.
    assert same_weights == [True] * 7
    require_right(tmp_path, found)
    part = next((tmp_path / "whole" / f"checkpoint-{NUM_STEPS:06d}").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    said: list[str] = []
    checkpoint = load_checkpoint(tmp_path / "whole", say=said.append)
    assert checkpoint is not None and checkpoint.step == NUM_STEPS - 2 and "damaged" in said[0]
    shutil.copy(part, tmp_path / "whole" / f"checkpoint-{NUM_STEPS - 2:06d}" / f"x{part.name}")
    with pytest.raises(CheckpointError, match="not its own"):
        load_checkpoint(tmp_path / "whole", say=said.append)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_at_many_more_instants(tmp_path, seed):
    require_right(tmp_path, trials(tmp_path, number=8, seed=seed)[1:])
