"""Jobs of which a rank is killed, and gone on with by other numbers of ranks: `python -m tests.dist.kills`.

One process reads the modules, and forks every rank of every job: a trial then takes a second.

    python -m tests.dist.kills FOLDER NUM_TRIALS SEED
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reticent.account.ledger import read_ledger
from reticent.clipping import FlatClipping
from reticent.dist import ALONE, Replicas, Shards, TensorParallel
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import TrainSettings, load_tensors, resume, train
from tests.train.joint import cross_entropy, make_data, make_model

NUM_STEPS, KINDS = 12, (Replicas, Shards, TensorParallel)
PLAN = Plan(
    sampler=PoissonSampler(num_examples=64, expected_batch_size=8),
    num_steps=NUM_STEPS,
    noise_multiplier=1.0,
    clipping=FlatClipping(max_norm=1.0),
    delta=1e-3,
    budget=None,
)


def work(ranks, run, what):
    """One rank's part of a run, or of going on with it."""
    model = make_model(seed=ranks.rank)
    if isinstance(ranks, Shards | TensorParallel):
        ranks.shard(model)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    if what == "train":
        train(
            model,
            adam,
            plan=PLAN,
            dataset=make_data(),
            loss_per_example=cross_entropy,
            out=run,
            settings=TrainSettings(checkpoint_every=2, ema=0.9),
            physical_batch_size=4,
            ranks=ranks,
        )
    else:
        resume(model, adam, dataset=make_data(), loss_per_example=cross_entropy, out=run, ranks=ranks)


def fork(kind, rank, size, meeting, run, what):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stderr = open(f"{meeting}-{rank}.err", "w")
        torch.set_num_threads(1)
        if size == 1:
            work(ALONE, run, what)
        else:
            torch.distributed.init_process_group(
                "gloo", f"file://{meeting}", timedelta(seconds=30), world_size=size, rank=rank
            )
            Path(f"{meeting}-{rank}.met").touch()
            work(kind(), run, what)
        code = 0
    except BaseException as e:
        sys.stderr.write(f"{type(e).__name__}: {e}")
    finally:
        sys.stderr.flush()
        os._exit(code)


def num_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def job(kind, size, meeting, run, what, *, kill_at=None, victim=0):
    """Exit codes of all ranks, and their time; `kill_at`: a number of lines in the ledger, and seconds.

    Only after the ranks have met: before, the others wait as long as torch lets them.
    """
    start = time.monotonic()
    pids = [fork(kind, rank, size, meeting, run, what) for rank in range(size)]
    if kill_at is not None:
        met = [Path(f"{meeting}-{rank}.met") for rank in range(size)]
        while not all(path.exists() for path in met) and time.monotonic() < start + 60:
            time.sleep(0.002)
        while num_lines(run / "ledger.jsonl") < kill_at[0] and time.monotonic() < start + 60:
            time.sleep(0.002)
        time.sleep(kill_at[1])
        os.kill(pids[victim], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return codes, time.monotonic() - start


def main():
    folder, trials, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    work(ALONE, folder / "alone", "train")  # reads what is imported late
    codes, whole = job(Shards, 2, folder / "meet", folder / "whole", "train")
    assert codes == [0, 0], codes
    written, again = load_tensors(folder / "whole" / "weights.safetensors")[0], []
    for kind, size in ((Shards, 3), (Replicas, 1), (TensorParallel, 2)):
        shutil.copytree(folder / "whole", run := folder / f"whole-{size}")
        codes, _ = job(kind, size, folder / f"meet-{size}", run, "resume")
        read = load_tensors(run / "weights.safetensors")[0]
        again.append(codes == [0] * size and all(torch.equal(read[n], t) for n, t in written.items()))
    for kind, size in ((TensorParallel, 2), (partial(Shards, num_replicas=2), 4)):
        wrote, read_by_one = folder / f"wrote-{size}", folder / f"read-{size}"
        codes, _ = job(kind, size, folder / f"meet-wrote-{size}", wrote, "train")
        shutil.copytree(wrote, read_by_one)
        codes += job(Replicas, 1, folder / "none", read_by_one, "resume")[0]
        ours, theirs = (load_tensors(run / "weights.safetensors")[0] for run in (wrote, read_by_one))
        again.append(not any(codes) and all(torch.equal(theirs[n], t) for n, t in ours.items()))
        shutil.copytree(wrote, run := folder / f"again-{size}")
        codes, _ = job(kind, size, folder / f"meet-again-{size}", run, "resume")
        theirs = load_tensors(run / "weights.safetensors")[0]
        again.append(not any(codes) and all(torch.equal(theirs[n], t) for n, t in ours.items()))
    found: list[Any] = [again]
    for trial in range(trials):
        kind, other = KINDS[trial % 3], KINDS[(trial + 1) % 3]
        size, run = rng.choice((2, 3)), folder / f"run-{trial}"
        line, victim = rng.randrange(NUM_STEPS), rng.randrange(size)  # line 0: before there is a ledger
        kill_at = (line, rng.uniform(0.0, 1.0) * whole / (NUM_STEPS if line else 3))
        codes, seconds = job(kind, size, folder / f"a-{trial}", run, "train", kill_at=kill_at, victim=victim)
        begun = (run / "run.json").exists()
        ledger = run / "ledger.jsonl"
        spent = read_ledger(ledger).num_steps if num_lines(ledger) else 0
        after = rng.choice((1, 2, 3))
        codes_after, _ = job(
            rng.choice((kind, other)), after, folder / f"b-{trial}", run, "resume" if begun else "train"
        )
        errors = [p.read_text()[-300:] for p in folder.glob(f"[ab]-{trial}-*.err")]
        result = json.loads((run / "result.json").read_text()) if codes_after == [0] * after else {}
        found.append(
            {
                "codes": codes,
                "seconds": seconds,
                "spent": spent,
                "codes_after": codes_after,
                "errors": errors,
                "result": result,
                "epsilon": PLAN.epsilon().epsilon,
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
