"""Opacus under audit by gradient canaries, like anybody's trainer: used as it should be, and shuffled.

Sources: opacus 1.6, `privacy_engine.py` (`make_private`: rate 1 / len(loader), divisor int(N * rate)).
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import reticent as rt
from benchmarks.audit.opacus_rows import CONFIDENCE, made_private, reported
from reticent.audit import (
    AuditResult,
    Claim,
    Problem,
    audit_steps,
    gaussian_epsilon,
    small_subject,
)
from reticent.clipping import sensitivity

DELTA, SAMPLING_PROB, NUM_STEPS = 1e-5, 0.1, 100


def used_well(problem: Problem) -> None:
    """`make_private` as its documentation shows it."""
    _train(problem, poisson=True)


def shuffled(problem: Problem) -> None:
    """`make_private(poisson_sampling=False)`: batches of a shuffled data set, the epsilon of Poisson ones."""
    _train(problem, poisson=False)


def _train(problem: Problem, *, poisson: bool) -> None:
    plan, rows = problem.plan, problem.dataset
    data = TensorDataset(*((rows,) if isinstance(rows, Tensor) else rows))
    q = plan.mechanism.sampling_prob
    loader = DataLoader(data, batch_size=round(len(data) * q), shuffle=True)
    if not math.isclose(1.0 / len(loader), q):
        raise ValueError(f"Opacus would sample {len(data)} rows at 1/{len(loader)}, and the plan says {q}")
    optimizer: Any = problem.optimizer
    model, optimizer, loader = made_private(
        problem.model, optimizer, loader, plan.noise_multiplier, sensitivity(plan.clipping), poisson=poisson
    )
    steps = 0
    while steps < plan.num_steps:
        for batch in loader:
            if steps == plan.num_steps:
                break
            optimizer.zero_grad()
            model(tuple(batch)).mean().backward()
            optimizer.step()
            steps += 1


def gradient_canaries(
    trainer: Callable[[Problem], None], *, epsilon: float = 8.0, num_canaries: int = 1000, num_rows: int = 250
) -> tuple[AuditResult, dict[str, Any]]:
    """Audit Opacus with gradient canaries and probes; the claim is the epsilon that it reports itself."""
    plan = rt.Plan.calibrate(
        budget=rt.Budget(epsilon=epsilon, delta=DELTA),
        sampler=rt.PoissonSampler(sampling_prob=SAMPLING_PROB, expected_batch_size=100.0),
        num_steps=NUM_STEPS,
        clipping=rt.FlatClipping(max_norm=1.0),
    )
    noise = plan.noise_multiplier
    claimed = reported(noise, SAMPLING_PROB, NUM_STEPS, DELTA)
    result = audit_steps(
        small_subject(plan, name=f"opacus, {trainer.__name__.replace('_', ' ')}"),
        claim=Claim(epsilon=claimed, delta=DELTA, mechanism=plan.mechanism, num_steps=NUM_STEPS),
        trainer=trainer,
        num_canaries=num_canaries,
        num_rows=num_rows,
        confidence=CONFIDENCE,
    )
    epochs = NUM_STEPS * SAMPLING_PROB
    return result, {
        **{name: value for name, value in result.to_dict().items() if name not in ("curve", "pictures")},
        "epsilon_without_amplification": gaussian_epsilon(math.sqrt(epochs) / noise, delta=DELTA),
    }
