"""Starting the ranks of a test, and collecting what each of them found."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(task, folder, *, size, module="tests.dist.work"):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", module, task]
    return [
        subprocess.Popen([*command, str(rank), str(size), str(folder)], env=env, stderr=subprocess.PIPE)
        for rank in range(size)
    ]


def results(task, folder, *, size, module="tests.dist.work"):
    """What every rank's task returned; of several, "one+another", a dictionary."""
    folder.mkdir(exist_ok=True)
    processes = start(task, folder, size=size, module=module)
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * size, said
    found = [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(size)]
    return found if "+" in task else [of_rank[task] for of_rank in found]
