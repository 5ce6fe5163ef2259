"""Input-space canaries among made-up rows of a subject's own kind, through its own training.

Room: audit. May import torch, `reticent.{train,plan,sample}` and the room's own files.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from reticent.errors import AuditError, ConfigError
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import eval_mode

from ._exposure import exposure_ranks
from ._inputs import Inputs, one_run_inputs
from ._intervals import check_confidence
from ._problem import AsLosses, Problem, Rows, Subject, Trainer, count_of, each_tensor, inside
from ._result import AuditResult, Claim, whole_run_curve
from ._white_box import NUM_CANARIES, check_claim, private_training

_NUM_REFERENCES: Final = 1000


def audit_rows(
    subject: Subject,
    *,
    claim: Claim,
    kind: Inputs = "mislabelled",
    strange: Callable[[int], Rows] | None = None,
    trainer: Trainer = private_training,
    num_canaries: int = NUM_CANARIES,
    num_steps: int | None = None,
    num_rows: int = 256,
    confidence: float,
    seed: int | None = None,
) -> AuditResult:
    """Audit a trainer by strange rows among made-up ones, from the losses of the model that it leaves.

    A canary's score is how far training lowered its loss: the loss of the model as it was built, which knows
    no row, less the trained one's.

    Args:
        subject: model, losses, made-up rows and plan. Each row is a privacy unit.
        claim: what the bound is held against.
        kind: of the canaries. "mislabelled": inputs of ordinary rows once more, with the label of another.
            "random tokens": their exposure among others like them is reported as well.
        strange: number -> so many rows of that kind, which are alike but for chance; not with "mislabelled".
        trainer: what trains the problem's model, in place; by default the library's own.
        num_canaries: M, each in the data by a fair coin.
        num_steps: steps to run: the claim's or fewer, whose leak is part of the claim's.
        num_rows: ordinary rows, always in the data.
        confidence: of the bound.
        seed: of coins and order; by default from the operating system.

    Guarantee:
        On a trainer that does what its plan says, above the claim with probability at most 1 - confidence.

    Raises:
        ConfigError[audit-size]: fewer than 2 canaries, no step or more than the claim's, fewer than 8 rows.
        AuditError[audit-subject]: a claim that canaries cannot be held against, or rows that all have one
            label.
        AuditError[audit-scores]: a loss is NaN.
        AuditError[audit-saw-nothing]: all coins fell alike.
    """
    check_confidence(confidence)
    check_claim(subject.plan)
    steps = claim.num_steps if num_steps is None else num_steps
    if num_canaries < 2 or not 1 <= steps <= claim.num_steps or num_rows < 8:
        raise ConfigError(
            f"An audit by inputs needs at least 2 canaries, 1 to {claim.num_steps} steps (the claim's) and 8 "
            f"ordinary rows; got {num_canaries}, {steps} and {num_rows}.",
            code="audit-size",
        )
    num_references = _NUM_REFERENCES if kind == "random tokens" else 0
    made_up = subject.rows(max(num_rows, num_canaries) if strange is None else num_rows)
    planted = mislabelled_rows(made_up) if strange is None else strange(num_canaries + num_references)
    canaries = _Rows(each_tensor(planted, lambda t: t[:num_canaries]))
    references = _Rows(each_tensor(planted, lambda t: t[num_canaries:]))
    trained = _Trained(AsLosses(subject.build(), subject.losses), subject.physical_batch_size)
    plan = _on_rows(subject.plan, num_rows=count_of(made_up) + num_canaries / 2, num_steps=steps)
    before = trained.losses(canaries)

    def run(rows: "_Rows") -> "Callable[[_Rows], np.ndarray]":
        with tempfile.TemporaryDirectory() as folder:
            trainer(
                Problem(
                    model=trained.model,
                    optimizer=subject.optimizer(trained.model),
                    dataset=rows.rows,
                    plan=plan,
                    folder=Path(folder),
                    physical_batch_size=subject.physical_batch_size,
                )
            )
        return lambda asked: trained.losses(asked) - before  # they are the canaries

    found = one_run_inputs(
        run,
        _Rows(made_up),
        canaries,
        delta=claim.delta,
        confidence=confidence,
        mechanism=claim.mechanism,
        num_steps=steps,
        seed=seed,
    )
    return AuditResult(
        target=subject.name,
        claim=claim,
        bound=found.bound,
        curve=whole_run_curve(found.evidence, found.member, replace(claim, num_steps=steps)),
        exposure=exposure_ranks(trained.losses(canaries), trained.losses(references), found.member)
        if num_references
        else None,
        num_canaries=num_canaries,
        num_steps=steps,
        canaries=f"inputs, {kind}",
    )


def mislabelled_rows(rows: Rows) -> Rows:
    """The same inputs, each with the label (the last tensor) of the next row that has another one.

    Raises:
        AuditError[audit-subject]: there is no such row, or no label.
    """
    if isinstance(rows, dict | Tensor) or len(rows) < 2:
        raise _one_label("they have no label behind their inputs")
    *inputs, y = rows
    num = len(y)
    other = torch.arange(1, num + 1) % num
    for _ in range(num):
        same = (y[other] == y).reshape(num, -1).all(1)
        if not same.any():
            return (*inputs, y[other])
        other = torch.where(same, (other + 1) % num, other)
    raise _one_label("all of them have the same label")


def _one_label(why: str) -> AuditError:
    return AuditError(
        f"The made-up rows cannot be mislabelled: {why}. Choose another kind of canaries.",
        code="audit-subject",
    )


def _on_rows(plan: Plan, *, num_rows: float, num_steps: int) -> Plan:
    """The plan's steps on about `num_rows` rows. The divisor knows no coins, so it tells none."""
    q = plan.mechanism.sampling_prob
    return Plan(
        sampler=PoissonSampler(sampling_prob=q, expected_batch_size=q * num_rows),
        num_steps=num_steps,
        noise_multiplier=plan.noise_multiplier,
        clipping=inside(plan.clipping),
        delta=plan.delta,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows that can be chosen from and put together."""

    rows: Rows

    def __len__(self) -> int:
        return count_of(self.rows)

    def where(self, chosen: np.ndarray) -> "_Rows":
        index = torch.from_numpy(chosen)
        return _Rows(each_tensor(self.rows, lambda t: t[index]))

    def and_(self, other: "_Rows") -> "_Rows":
        if isinstance(self.rows, dict):
            assert isinstance(other.rows, dict)
            return _Rows({name: torch.cat([t, other.rows[name]]) for name, t in self.rows.items()})
        if isinstance(self.rows, Tensor):
            assert isinstance(other.rows, Tensor)
            return _Rows(torch.cat([self.rows, other.rows]))
        assert isinstance(other.rows, tuple)
        return _Rows(tuple(torch.cat(pair) for pair in zip(self.rows, other.rows, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    """A model that returns losses, and how many rows it takes at once."""

    model: AsLosses
    at_once: int

    def losses(self, asked: _Rows) -> np.ndarray:
        """Each row's loss, shape (N,), float64."""
        starts = range(0, len(asked), self.at_once)
        with torch.no_grad(), eval_mode(self.model):
            found = [
                self.model(each_tensor(asked.rows, lambda t: t[k : k + self.at_once]))  # noqa: B023
                for k in starts
            ]
        return torch.cat(found).double().cpu().numpy()
