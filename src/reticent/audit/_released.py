"""What a trainer releases in a step: on data that give no gradient, and with and without one row.

Room: audit. May import torch, `reticent.{plan,sample,clipping}` and the room's own files.

Both ask the trainer for steps on data and plans of the auditor's choosing: every row in every step, and for
the neighbours all but no noise. So they need nothing of a trainer but that it keeps to the plan it is given.
"""

import copy
import math
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from reticent.clipping import sensitivity
from reticent.errors import AuditError
from reticent.plan import Plan
from reticent.sample import PoissonSampler

from ._probes import Probe, moved_probe, noise_fresh, noise_size
from ._problem import AsLosses, Problem, Rows, Subject, Trainer, count_of, each_tensor, inside

_ALMOST_NO_NOISE: Final = 1e-5
_STEEP: Final = 1e3  # the losses' factor: gradients long enough to be clipped
_MOST_COORDINATES: Final = 20_000  # of each step, for tests of independence


def _steps(
    trainer: Trainer,
    subject: Subject,
    model: nn.Module,
    rows: Rows,
    plan: Plan,
    *,
    factor: float,
    seed: int = 0,
) -> list[dict[str, np.ndarray]]:
    """What each step of a plan releases, name -> the noised sum over its bound, float64."""
    model = AsLosses(copy.deepcopy(model), subject.losses, factor)
    scale = plan.expected_batch_size / sensitivity(plan.clipping)
    seen: list[dict[str, np.ndarray]] = []

    def note(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.append(
            {
                name.removeprefix("inner."): p.grad.detach().double().cpu().numpy() * scale
                for name, p in model.named_parameters()
                if p.requires_grad and p.grad is not None
            }
        )

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        problem = Problem(
            model=model,
            optimizer=subject.optimizer(model),
            dataset=rows,
            plan=plan,
            folder=Path(folder),
            physical_batch_size=max(1, (count_of(rows) + 1) // 2),  # at least two chunks a step
        )
        hook = problem.optimizer.register_step_pre_hook(note)
        try:
            trainer(problem)
        finally:
            hook.remove()
    if len(seen) != plan.num_steps or not all(np.isfinite(v).all() for step in seen for v in step.values()):
        raise AuditError(
            f"The audit asked for {plan.num_steps} steps and saw {len(seen)}, or released gradients that are "
            "not finite. The trainer must step the optimizer that it was given, once for each of the plan's "
            "steps.",
            code="audit-saw-nothing",
        )
    return seen


def _everything(plan: Plan, *, num_rows: int, num_steps: int, noise: float) -> Plan:
    """The plan's clipping and noise, with every row in every step."""
    return Plan(
        sampler=PoissonSampler(sampling_prob=1.0, expected_batch_size=float(num_rows)),
        num_steps=num_steps,
        noise_multiplier=noise,
        clipping=inside(plan.clipping),
        delta=plan.delta,
    )


def noise_probes(
    trainer: Trainer, subject: Subject, *, num_rows: int = 8, num_steps: int = 2, chance: float
) -> list[Probe]:
    """Train on losses that do not depend on the model, so that noise is all there is to release.

    Sees every trainable tensor: one without noise, or with another's. Trains twice, torch's global generator
    seeded anew: noise from a seed that does not change is the same in both.
    """
    noise = subject.plan.noise_multiplier
    plan = _everything(subject.plan, num_rows=num_rows, num_steps=num_steps, noise=noise)
    steps = [
        step
        for _ in range(2)
        for step in _steps(
            trainer,
            subject,
            subject.build(),
            subject.rows(num_rows),
            plan,
            factor=0.0,
            seed=secrets.randbits(31),
        )
    ]
    tensors = [(name, values) for step in steps for name, values in step.items()]
    flat = [np.concatenate([v.ravel() for v in step.values()])[:_MOST_COORDINATES] for step in steps]
    return [
        noise_size(tensors, std=noise, chance=chance / 2),
        noise_fresh(flat, std=noise, chance=chance / 2),
    ]


def neighbour_probe(trainer: Trainer, subject: Subject, *, num_rows: int = 8) -> Probe:
    """Take each of some rows away in turn: what is released may move by the bound, and no more.

    The model is in evaluation mode, so that no random layer moves with the row. What little noise the plan
    has is taken off the squared distance, and six times its spread is allowed for.
    """
    model = subject.build().eval()
    rows = subject.rows(num_rows)
    whole = _sum(trainer, subject, model, rows)
    moved, slack = [], 0.0
    for rest in _each_left_out(rows):
        less = _sum(trainer, subject, model, rest)
        square, size = 0.0, 0
        for name, values in whole.items():
            square += float(np.square(values - less[name]).sum())
            size += values.size
        noise = 2.0 * size * _ALMOST_NO_NOISE**2
        spread = 2.0 * _ALMOST_NO_NOISE**2 * math.sqrt(2.0 * size) + 2.0 * math.sqrt(2.0) * _ALMOST_NO_NOISE
        moved.append(math.sqrt(max(0.0, square - noise)))
        slack = 6.0 * spread
    return moved_probe(moved, slack=slack)


def _sum(trainer: Trainer, subject: Subject, model: nn.Module, rows: Rows) -> dict[str, np.ndarray]:
    plan = _everything(subject.plan, num_rows=count_of(rows), num_steps=1, noise=_ALMOST_NO_NOISE)
    return _steps(trainer, subject, model, rows, plan, factor=_STEEP)[0]


def _each_left_out(rows: Rows) -> Iterator[Rows]:
    num = count_of(rows)
    for left_out in range(num):
        keep = torch.arange(num) != left_out
        yield each_tensor(rows, lambda t: t[keep])  # noqa: B023  (used before the loop goes on)
