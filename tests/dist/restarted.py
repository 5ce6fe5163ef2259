"""A rank that dies in a job which torchrun starts again: `-m tests.dist.restarted KIND FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reticent.clipping import FlatClipping
from reticent.dist import Replicas, Shards, joined
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import TrainSettings, resume, train

NUM_STEPS, EVERY, DIES_AT = 10, 4, 6
PLAN = Plan(
    sampler=PoissonSampler(num_examples=64, expected_batch_size=8),
    num_steps=NUM_STEPS,
    noise_multiplier=1.3,
    clipping=FlatClipping(max_norm=1.0),
    delta=1e-3,
    budget=None,
)


class Noting:
    """Keeps the weights after every step; in the first attempt, rank 1 is killed before a step."""

    def __init__(self, ranks, folder, attempt):
        self._ranks, self._folder, self._attempt, self._step = ranks, folder, attempt, 0

    def before(self, stepper):
        if self._step == 0:
            self._note(stepper)
        if self._attempt == 0 and self._ranks.rank == 1 and self._step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def after(self, stepper, loss):
        self._step += 1
        self._note(stepper)
        return False

    def saved(self, stepper):
        pass

    def _note(self, stepper):
        whole = self._ranks.gather(dict(stepper.model.named_parameters()))
        if self._ranks.leads:
            file = self._folder / f"weights-{self._attempt}-{self._step}.npy"
            np.save(file, whole["weight"].detach().double().flatten().numpy())


def zero(model, rows):
    return 0.0 * model(rows[0]).sum(1)


def join(folder):
    """The ranks meet in every attempt, in all but the last of which rank 1 is killed."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with joined() as ranks:
        ranks.agree("the attempt", attempt)
        if attempt < int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.meet(None)
        (folder / f"met-{ranks.rank}").write_text(str(attempt))


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if kind == "join":
        join(folder)
        return
    torch.distributed.init_process_group("gloo")
    ranks = {"replicas": Replicas, "shards": Shards}[kind]()
    model = nn.Linear(400, 101, bias=False)
    nn.init.zeros_(model.weight)
    if isinstance(ranks, Shards):
        ranks.shard(model)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    data, out = (torch.ones(64, 400),), folder / "run"
    companion = Noting(ranks, folder, int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    if (out / "run.json").exists():
        resume(model, sgd, dataset=data, loss_per_example=zero, out=out, ranks=ranks, companion=companion)
    else:
        train(
            model,
            sgd,
            plan=PLAN,
            dataset=data,
            loss_per_example=zero,
            out=out,
            settings=TrainSettings(checkpoint_every=EVERY),
            ranks=ranks,
            companion=companion,
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
