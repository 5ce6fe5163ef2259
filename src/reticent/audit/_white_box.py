"""Gradient canaries through a trainer: run it on a problem, and note what each step released.

Room: audit. May import torch, rich, `reticent.{train,plan,sample}` and the room's own files.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from reticent.clipping import AdaptiveClipping, sensitivity
from reticent.errors import AuditError, ConfigError
from reticent.plan import Plan
from reticent.records import SIZES, SamplingScheme
from reticent.sample import FullBatchSampler, PoissonSampler, StagedSampler
from reticent.train import TrainSettings, silent_or_bar, train

from ._problem import Directions, Problem, Subject, Trainer, pose
from ._recording import Recording, require_both

NUM_CANARIES: Final = 1000
NUM_STEPS: Final = 100
_SETTINGS: Final = TrainSettings(checkpoint_every=0)


def private_training(
    problem: Problem,
    *,
    settings: TrainSettings = _SETTINGS,
    console: Console | None = None,
) -> None:
    """The library's own trainer: `reticent.train`, as every recipe calls it, into `run` of the folder."""
    train(
        problem.model,
        problem.optimizer,
        plan=problem.plan,
        dataset=problem.dataset,
        loss_per_example=problem.loss_per_example,
        out=problem.folder / "run",
        physical_batch_size=problem.physical_batch_size,
        settings=settings,
        console=console,
    )


def record(
    trainer: Trainer,
    subject: Subject,
    *,
    num_canaries: int = NUM_CANARIES,
    num_steps: int | None = None,
    num_rows: int = 256,
    directions: Directions = "dirac",
    coins: bool = False,
    seed: int | None = None,
    console: Console | None = None,
) -> Recording:
    """Train on ordinary rows and canaries, and note each step's release along each canary's direction.

    Args:
        trainer: called once, with a `Problem`.
        subject: what is audited. Its plan's number of steps is the claim's, and need not all be run.
        num_canaries: M.
        num_steps: steps to run; by default the plan's, at most 100.
        num_rows: ordinary rows beside the canaries.
        directions: see `Watched`.
        coins: each canary is in the data set by a fair coin, as one-run auditing needs; else all are, unless
            more than half of them take part in a step, which leaves too few to compare with.
        seed: of coins and random directions; by default from the operating system.
        console: where to show progress.

    Returns:
        The recording. Who took part is what went through the model, not what the sampler says.

    Raises:
        ConfigError[audit-size]: not at least 2 canaries, a step and 8 ordinary rows.
        AuditError[audit-subject]: as `check_subject`.
        AuditError[audit-saw-nothing]: all coins fell alike; or the optimizer was never stepped, or what was
            released is not finite.
        AuditError[audit-steps]: it was stepped another number of times than the plan says.
    """
    check_subject(subject)
    steps = min(subject.plan.num_steps, NUM_STEPS) if num_steps is None else num_steps
    if num_canaries < 2 or steps < 1 or num_rows < 8:
        raise ConfigError(
            f"An audit needs at least 2 canaries, 1 step and 8 ordinary rows; got {num_canaries}, {steps} "
            f"and {num_rows}.",
            code="audit-size",
        )
    rng = np.random.default_rng(seed)
    toss = coins or subject.plan.mechanism.sampling_prob > 0.5
    member = rng.random(num_canaries) < 0.5 if toss else np.ones(num_canaries, dtype=bool)
    if toss:
        require_both(member, "were put into the data by their coins")
    plan = shrunk(subject.plan, num_rows=num_rows + int(member.sum()), num_steps=steps)
    scores: list[np.ndarray] = []
    included: list[np.ndarray] = []
    bar = silent_or_bar(console, "audit", steps)
    with tempfile.TemporaryDirectory() as folder, bar as shown:
        problem, model = pose(
            subject,
            plan=plan,
            member=member,
            num_rows=num_rows,
            directions=directions,
            folder=Path(folder),
            seed=int(rng.integers(2**31)),
        )
        unit = plan.expected_batch_size / sensitivity(plan.clipping)

        def note(optimizer: Any, args: Any, kwargs: Any) -> None:
            scores.append(model.along_canaries() * unit)
            took_part = np.zeros(num_canaries, dtype=bool)
            took_part[model.take_seen() - 1] = True
            included.append(took_part)
            shown.step(len(scores), None)

        hook = problem.optimizer.register_step_pre_hook(note)
        try:
            trainer(problem)
        finally:
            hook.remove()
    if scores and len(scores) != steps:
        raise AuditError(
            f"The plan has {steps} steps, and the trainer stepped the optimizer {len(scores)} times. A "
            "trainer under audit takes exactly the plan's steps, one of the optimizer for each.",
            code="audit-steps",
        )
    return Recording(
        scores=np.array(scores).reshape(-1, num_canaries),
        included=np.array(included, dtype=bool).reshape(-1, num_canaries),
        member=member,
    )


def check_subject(subject: Subject) -> None:
    """Refuse what gradient canaries cannot measure.

    Raises:
        AuditError[audit-subject]: adaptive clipping, or as `check_claim`.
    """
    if isinstance(subject.plan.clipping, AdaptiveClipping):
        raise _unfit(
            "its clipping norm adapts. The norm of each step stays inside the trainer, so what a canary puts "
            "into a release is not known; and each step also releases a noised count, which never passes the "
            "optimizer. Audit it with input canaries (--how inputs), which need to know neither"
        )
    check_claim(subject.plan)


def check_claim(plan: Plan) -> None:
    """Refuse a claim that canaries cannot be held against.

    Raises:
        AuditError[audit-subject]: batches that are not Poisson or full, steps that differ, or no noise.
    """
    if isinstance(plan.sampler, StagedSampler):
        raise _unfit(
            "its batches change from stage to stage, and canaries are held against one kind of step. Audit a "
            "plan of each stage"
        )
    if SIZES[plan.mechanism.scheme]:
        raise _unfit(f"its batches are {plan.mechanism.scheme}, and canaries are drawn into Poisson batches")
    if plan.noise_multiplier <= 0.0:
        raise _unfit("it claims no privacy: its noise multiplier is 0")


def _unfit(why: str) -> AuditError:
    return AuditError(f"This cannot be audited with canaries: {why}.", code="audit-subject")


def shrunk(plan: Plan, *, num_rows: int, num_steps: int) -> Plan:
    """The same steps on a data set of `num_rows`: sampling probability, noise and clipping are kept."""
    q = plan.mechanism.sampling_prob
    full = plan.mechanism.scheme is SamplingScheme.FULL_BATCH
    return Plan(
        sampler=FullBatchSampler(num_examples=num_rows)
        if full
        else PoissonSampler(sampling_prob=q, expected_batch_size=q * num_rows),
        num_steps=num_steps,
        noise_multiplier=plan.noise_multiplier,
        clipping=plan.clipping,
        delta=plan.delta,
    )


def small_subject(plan: Plan, *, name: str = "a small network", seed: int = 0) -> Subject:
    """A two-layer network on 64 made-up numbers and 10 labels: for trainers that are given as functions."""

    def build() -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))

    def rows(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((num, 64), generator=generator)
        return x, torch.randint(10, (num,), generator=generator)

    return Subject(name=name, plan=plan, build=build, losses=_cross_entropy, rows=rows)


def _cross_entropy(model: torch.nn.Module, rows: Any) -> torch.Tensor:
    x, y = rows
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")
