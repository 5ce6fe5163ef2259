"""What each machine of a job does, started by torchrun: `-m tests.dist.machines TASK FOLDER KIND`."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch

from reticent.dist import Replicas, Shards
from reticent.errors import ReticentError
from reticent.noise import NoiseSource
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import PrivateStep, TrainSettings, resume, train
from tests.dist.work import CLIPPINGS, plan_with
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model, take, with_rows

NUM_STEPS = 60
TIMEOUT = 15.0  # seconds that a machine waits for another
PLAN = Plan(
    sampler=PoissonSampler(num_examples=64, expected_batch_size=8),
    num_steps=NUM_STEPS,
    noise_multiplier=1.0,
    clipping=CLIPPINGS["flat"],
    delta=1e-3,
    budget=None,
)


class Noting:
    """Notes in a file how many steps the ledger held when this rank had taken its latest one."""

    def __init__(self, file):
        self._file = file

    def before(self, stepper):
        time.sleep(0.02)
        return True

    def after(self, stepper, loss):
        self._file.write_text(str(stepper.num_steps))
        return False

    def saved(self, stepper):
        pass


def begin(kind):
    """The ranks, a model and an optimizer on them."""
    ranks = {"replicas": Replicas, "shards": Shards}[kind]()
    model = make_model(seed=ranks.rank)
    if isinstance(ranks, Shards):
        ranks.shard(model)
    return ranks, model


def same(kind, folder):
    """Weights after three steps on known batches, without noise."""
    torch.set_default_dtype(torch.float64)
    ranks, model = begin(kind)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    plan, noise = plan_with(CLIPPINGS["flat"]), cast(NoiseSource, NoNoise())
    private = PrivateStep(model, adam, plan=plan, ledger=folder / "same", noise=noise, ranks=ranks)
    x, y = make_data().tensors
    for batch in plan.batches((x.double(), y)):
        take(private, with_rows(batch, torch.arange(batch.step, 64, 5).numpy()))
    whole = ranks.gather(dict(model.named_parameters()))
    return {"weights": {n: p.tolist() for n, p in whole.items()}, "epsilon": private.epsilon().epsilon}


def run(kind, folder, task):
    """The whole run, or the rest of it."""
    ranks, model = begin(kind)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    options = {
        "dataset": make_data(),
        "loss_per_example": cross_entropy,
        "out": folder / "run",
        "ranks": ranks,
        "companion": Noting(folder / f"{task}-{ranks.rank}.steps"),
    }
    if task == "train":
        train(model, adam, plan=PLAN, settings=TrainSettings(checkpoint_every=5), **options)
    else:
        resume(model, adam, **options)
    return {}


def main():
    task, kind, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    try:
        found = same(kind, folder) if task == "same" else run(kind, folder, task)
        torch.distributed.destroy_process_group()
    except ReticentError as e:
        found = {"code": e.code, "text": str(e)}
    found["ended"] = time.time()
    (folder / f"{task}-{rank}.json").write_text(json.dumps(found))
    sys.exit(3 if "code" in found else 0)


if __name__ == "__main__":
    main()
