"""Small models, plans and doubles for the joint's tests."""

import dataclasses

import numpy as np
import torch
from torch import nn

from reticent.plan import LogicalBatch, Plan
from reticent.records import FlatClipping
from reticent.sample import PoissonSampler
from reticent.train import PrivateStep

NUM_EXAMPLES = 64
BATCH_SIZE = 16


class NoNoise:
    """A stand-in that adds nothing, so that sums can be read. It claims to be private: tests only."""

    private = True

    def normal(self, shape, *, dtype, device="cpu"):
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


class LoopEngine:
    """The paper's loop, one example at a time; remembers the raw sums it was given."""

    def __init__(self, model, max_norm):
        self.model, self.max_norm = model, max_norm
        self.checked, self.sums = [], []

    def check(self, losses, batch):
        self.checked.append(batch)

    def clipped_sum(self, losses, batch=None, *, num_units=None, out=None):
        from reticent.bounded import BoundedSum

        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        total = {n: torch.zeros_like(p) for n, p in params.items()} if out is None else out
        self.sums.append(total)
        for loss in losses(batch):
            grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
            norm = float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
            for name, g in zip(params, grads, strict=True):
                total[name].add_(g / max(1.0, norm / self.max_norm))
        return BoundedSum(total=total, bound=self.max_norm, norms=torch.empty(0))


def make_plan(
    *, num_steps=5, noise_multiplier=1.0, max_norm=1.0, num_examples=NUM_EXAMPLES, batch=BATCH_SIZE
):
    return Plan(
        sampler=PoissonSampler(num_examples=num_examples, expected_batch_size=batch),
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
        clipping=FlatClipping(max_norm=max_norm),
        delta=1e-3,
        budget=None,
    )


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def make_data(seed=0, num_examples=NUM_EXAMPLES):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, 6, generator=generator)
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def cross_entropy(model, rows):
    x, y = rows
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def make_private(tmp_path, *, model=None, optimizer=None, plan=None, **options):
    model = model or make_model()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    return PrivateStep(model, optimizer, plan=plan or make_plan(), ledger=tmp_path / "run", **options)


def with_rows(batch: LogicalBatch, indices) -> LogicalBatch:
    """The same batch, with other examples drawn."""
    return dataclasses.replace(batch, indices=np.asarray(indices, dtype=np.int64))


def take(private, batch, loss=cross_entropy):
    with private.step(batch) as step:
        for chunk in step.chunks():
            step.backward(loss, chunk)


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
