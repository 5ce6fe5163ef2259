"""What each rank of a job in stages does: `python -m tests.dist.staged TASK RANK SIZE FOLDER`."""

import os
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from reticent.dist import Replicas, Shards
from reticent.noise import CipherNoise, NoiseSource
from reticent.train import PrivateStep, TrainSettings, resume, train
from tests.dist.work import main
from tests.train.joint import NoNoise, make_data, make_model, take, with_rows
from tests.train.test_stages import PLAN, N, Ones, counted

DIVISORS = (8, 8, 8, 48, 48, 48, 64, 64)


def whole(p):
    """A parameter's numbers, from all ranks."""
    return p.full_tensor().detach().clone() if isinstance(p, DTensor) else p.detach().clone()


def clipped_sums(ranks, folder):
    """Each step's clipped sum, on known batches, without noise."""
    torch.set_default_dtype(torch.float64)
    model = make_model()
    if isinstance(ranks, Shards):
        ranks.shard(model)
    sgd, without = torch.optim.SGD(model.parameters(), lr=1.0), cast(NoiseSource, NoNoise())
    private = PrivateStep(
        model, sgd, plan=PLAN, ledger=folder / "sums", noise=without, ranks=ranks, physical_batch_size=4
    )
    x, y = make_data().tensors
    sums = []
    for batch in PLAN.batches((x.double(), y)):
        before = [whole(p) for p in model.parameters()]
        rows = np.random.default_rng(batch.step).choice(N, DIVISORS[batch.step] - 1, replace=False)
        take(private, batch if batch.step > 5 else with_rows(batch, np.sort(rows)))
        moved = [b - whole(p) for b, p in zip(before, model.parameters(), strict=True)]
        sums.append([(DIVISORS[batch.step] * t).tolist() for t in moved])
    spent = [[str(m.describe()), n] for m, n in private.ledger.segments()]
    return {"sums": sums, "epsilon": private.epsilon().epsilon, "spent": spent}


class Rows:
    """How many rows were in the sum of each step, gradients being 1 each; ends the job before one step."""

    def __init__(self, ranks, model, *, stop):
        self._ranks, self._model, self._stop, self.found = ranks, model, stop, []

    def before(self, stepper):
        if stepper.num_steps == self._stop:
            self._ranks.meet(None)  # what the leader writes is written
            os._exit(3)
        self._weight = whole(self._model.weight)
        return True

    def after(self, stepper, loss):
        moved = float(self._weight - whole(self._model.weight))
        step = stepper.num_steps - 1
        self.found.append([step, moved * DIVISORS[step]])
        return False

    def saved(self, stepper):
        pass


def run(ranks, folder, *, stop=None):
    """A run that ends before a step, or the rest of it; noise is zero, in this process."""
    model: nn.Module = Ones()
    if isinstance(ranks, Shards):
        ranks.shard(model)
    sgd, rows = torch.optim.SGD(model.parameters(), lr=1.0), Rows(ranks, model, stop=stop)
    normal = CipherNoise.normal
    CipherNoise.normal = NoNoise.normal  # type: ignore[method-assign,assignment]
    try:
        options = {
            "dataset": torch.ones(N, 1),
            "loss_per_example": counted,
            "out": folder / "run",
            "ranks": ranks,
            "companion": rows,
        }
        if stop is None:
            result = resume(model, sgd, **options)
        else:
            result = train(model, sgd, plan=PLAN, settings=TrainSettings(checkpoint_every=2), **options)
    finally:
        CipherNoise.normal = normal  # type: ignore[method-assign]
    return {"rows": rows.found, "epsilon": result.epsilon.epsilon, "num_lost": result.num_lost}


TASKS = {
    "clipped_sums": clipped_sums,
    "clipped_sums_of_shards": lambda _, folder: clipped_sums(Shards(), folder / "of-shards"),
    "stop_at_2": partial(run, stop=2),
    "stop_at_3": partial(run, stop=3),
    "go_on": run,
}

if __name__ == "__main__":
    main(TASKS, Shards if os.environ.get("KIND") == "shards" else Replicas)
