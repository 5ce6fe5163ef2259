"""How a budget is shared among the releases of a method, and what its ledger must therefore say.

Room: recipes. May import `reticent.{account,sample,plan}` and the floors below.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final

from reticent.account import Segments, calibrate_noise_multiplier, calibrate_noise_scale, epsilon
from reticent.account.ledger import Ledger, LedgerView
from reticent.errors import LedgerError
from reticent.plan import Sampler
from reticent.records import Budget, EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import FullBatchSampler

from ._stages import Stage

_DIGITS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage's releases: how many, of which examples, with how much noise."""

    name: str
    num_steps: int
    sampler: Sampler
    noise_multiplier: float
    repeatable: bool

    @property
    def mechanism(self) -> Mechanism:
        """What one of its releases does to the data."""
        return self.sampler.mechanism(self.noise_multiplier)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Everything a last-layer run releases, in order.

    Args:
        stages: one after the other.
        num_examples: N, a public constant.
        delta: of the guarantee.
        budget: what may be spent; None for a run without privacy.
    """

    stages: tuple[PlannedStage, ...]
    num_examples: int
    delta: float
    budget: Budget | None

    @property
    def num_steps(self) -> int:
        """Releases in all."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def relation(self) -> NeighbouringRelation:
        """Zero-out: the number of examples is public."""
        return NeighbouringRelation.ZERO_OUT

    def epsilon(self) -> EpsilonReport:
        """What the whole plan would spend."""
        return epsilon(
            [(stage.mechanism, stage.num_steps) for stage in self.stages],
            delta=self.delta,
            relation=self.relation,
        )

    def mechanisms(self, num_steps: int) -> list[Mechanism]:
        """What the first `num_steps` releases do to the data."""
        planned = chain.from_iterable(repeat(stage.mechanism, stage.num_steps) for stage in self.stages)
        return [mechanism for mechanism, _ in zip(planned, range(num_steps), strict=False)]

    def describe(self) -> dict[str, Any]:
        """As JSON values, all public."""
        noise = {stage.noise_multiplier for stage in self.stages}
        return {
            "stages": [
                {
                    "name": stage.name,
                    "num_steps": stage.num_steps,
                    "scheme": stage.sampler.scheme.value,
                    "sampling_prob": stage.sampler.sampling_prob,
                    "expected_batch_size": stage.sampler.expected_batch_size,
                    "noise": stage.noise_multiplier,
                }
                for stage in self.stages
            ],
            "num_steps": self.num_steps,
            "num_examples": self.num_examples,
            "delta": self.delta,
            "budget": None
            if self.budget is None
            else {"epsilon": self.budget.epsilon, "delta": self.budget.delta},
            "neighbouring_relation": self.relation.value,
            **({"noise_multiplier": noise.pop()} if len(noise) == 1 else {}),
        }


def plan_stages(
    stages: Sequence[Stage], *, num_examples: int, sampler: Sampler, budget: Budget | None, delta: float
) -> StagePlan:
    """Give each stage its part of the budget: stage s of T releases gets share_s / T of 1 / noise^2 each.

    Where every release uses every example this is the whole story: composition of Gaussian mechanisms
    is exact. With sampling, the same proportions are kept and one factor is solved for.

    Args:
        stages: of the method, in order.
        num_examples: N.
        sampler: of stages that may be sampled.
        budget: epsilon and delta; None for no noise at all.
        delta: of the plan.

    Raises:
        AccountingError[budget-unreachable]: no noise is enough.
    """
    full = FullBatchSampler(num_examples=num_examples)
    samplers = [sampler if stage.sampled else full for stage in stages]
    whole = sum(stage.share for stage in stages)
    relative = [math.sqrt(stage.num_steps * whole / stage.share) for stage in stages]

    def at(factor: float) -> Segments:
        pairs = zip(samplers, relative, stages, strict=True)
        return [(s.mechanism(_rounded_up(factor * r)), stage.num_steps) for s, r, stage in pairs]

    factor = 0.0 if budget is None else _factor(at, samplers, budget)
    return StagePlan(
        stages=tuple(
            PlannedStage(
                name=stage.name,
                num_steps=stage.num_steps,
                sampler=one,
                noise_multiplier=mechanism.noise_multiplier,
                repeatable=stage.repeatable,
            )
            for stage, one, (mechanism, _) in zip(stages, samplers, at(factor), strict=True)
        ),
        num_examples=num_examples,
        delta=delta,
        budget=budget,
    )


def check_stage_ledger(
    ledger: Ledger | LedgerView, plan: StagePlan, *, reproducible: bool, run_id: str
) -> None:
    """Refuse a ledger in which this plan's releases would be entered under another claim.

    Raises:
        LedgerError[ledger-plan]: the planned number, relation, delta, N, an entered mechanism or the run's
            name differ, or the noise is reproducible and the ledger does not say so.
    """
    pairs = (
        ("num_steps", ledger.planned_steps, plan.num_steps),
        ("relation", ledger.relation, plan.relation),
        ("delta", ledger.delta, plan.delta),
        ("num_examples", ledger.public.get("num_examples"), plan.num_examples),
        ("run_id", ledger.run_id, run_id),
    )
    wrong = [f"{name} {theirs} (plan: {ours})" for name, theirs, ours in pairs if theirs != ours]
    entered = list(chain.from_iterable(repeat(m, count) for m, count in ledger.segments()))
    if entered != plan.mechanisms(len(entered)):
        wrong.append("mechanisms")
    if reproducible and not ledger.reproducible:
        wrong.append("claims privacy (this run's noise or sampling is reproducible)")
    if wrong:
        raise LedgerError(
            f"The ledger was not made for this plan: {'; '.join(wrong)}. Use the plan it was made for, or "
            "start a new ledger.",
            code="ledger-plan",
        )


def _factor(at: Any, samplers: Iterable[Sampler], budget: Budget) -> float:
    if any(s.sampling_prob < 1.0 for s in samplers):
        return calibrate_noise_scale(budget=budget, segments=at)
    return calibrate_noise_multiplier(
        budget=budget, scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, num_steps=1
    )


def _rounded_up(noise: float) -> float:
    """To six digits, never down, except by what floating point added to a number that had six."""
    if noise == 0.0:
        return 0.0
    digits = _DIGITS - 1 - math.floor(math.log10(noise))
    nearest = round(noise, digits)
    return nearest if nearest >= noise * (1.0 - 1e-14) else round(noise + 0.5 * 10.0**-digits, digits)
