"""The trainings that are attacked: the library's real path, and the same without privacy."""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import reticent as rt
from reticent.account import Risk, risk

Rows = tuple[Tensor, ...]
DELTA = 1e-5


def losses(model: nn.Module, rows: Any) -> Tensor:
    """Cross entropy, (B,)."""
    x, y = rows
    return F.cross_entropy(model(x), y, reduction="none")


def step_plainly(model: nn.Module, optimizer: Optimizer, rows: Rows, *, num_steps: int) -> None:
    """Full-batch steps without clipping and noise."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        losses(model, rows).mean().backward()
        optimizer.step()


def step_privately(model: nn.Module, optimizer: Optimizer, rows: Rows, *, plan: rt.Plan) -> rt.PrivateStep:
    """All steps of a plan, through `PrivateStep`; the ledger is read and then thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        private = rt.PrivateStep(
            model, optimizer, plan=plan, ledger=folder, check_batch=tuple(part[:1] for part in rows)
        )
        for batch in plan.batches(rows):
            with private.step(batch) as step:
                for chunk in step.chunks():
                    step.backward(losses, chunk)
        private.close()
    return private


def what_it_allows(private: rt.PrivateStep) -> Risk:
    """Bounds on attacks, from the steps in the ledger."""
    return risk(private.epsilon(), [(private.plan.mechanism, private.num_steps)])


def seeded(make: Any, seed: int) -> Any:
    """What `make` builds under a torch seed; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
