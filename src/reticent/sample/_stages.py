"""Batch sizes that change during a run: stages of steps, each with a sampling probability of its own.

Room: sample. May import `reticent.records`, `reticent.errors`.

Stages are Poisson, or full batches: their steps compose with each other exactly, in any number and order.
Batches whose size is bounded, and partitions of the examples, have no such bound that we trust.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from reticent.errors import ConfigError
from reticent.records import NeighbouringRelation, SamplingScheme
from reticent.sample._checks import is_integer, is_real
from reticent.sample.samplers import FullBatchSampler, PoissonSampler

_MAX_SCALE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps that all draw alike, and have the same noise.

    Args:
        sampler: how each of them draws; Poisson, or all examples.
        num_steps: how many they are, at least 1.
        noise_scale: noise multiplier of these steps over the plan's: 1, or a number from 1e-6 to 1e6.

    Raises:
        ConfigError[batch-schedule]: another sampler, or a number out of range.
    """

    sampler: PoissonSampler | FullBatchSampler
    num_steps: int
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if type(self.sampler) not in (PoissonSampler, FullBatchSampler):
            raise _refused(
                f"a stage draws by a PoissonSampler or FullBatchSampler, got {type(self.sampler).__name__}: "
                "no other batches are known to compose with batches of another size"
            )
        if not is_integer(self.num_steps) or self.num_steps < 1:
            raise _refused(f"num_steps of a stage must be an integer >= 1, got {self.num_steps!r}")
        if not is_real(self.noise_scale) or not 1.0 / _MAX_SCALE <= self.noise_scale <= _MAX_SCALE:
            raise _refused(f"noise_scale must be a number from 1e-6 to 1e6, got {self.noise_scale!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSampler:
    """Stages one after the other; step t of the run belongs to the stage that it falls into.

    The borders are numbers of steps, fixed beforehand and public: nothing that depends on the data moves
    them. A step that a crash lost is spent all the same, so it counts for the border too.

    Args:
        stages: at least one, in order. All declare the same public N, or none does; two that follow each
            other differ.

    Raises:
        ConfigError[batch-schedule]: no stage, two alike side by side, or stages that differ in N.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        stages = self.stages
        if not isinstance(stages, tuple) or not stages or not all(isinstance(s, Stage) for s in stages):
            raise _refused("stages must be a tuple of Stage, at least one")
        sizes = {stage.sampler.num_examples for stage in stages}
        if len(sizes) > 1:
            raise _refused(
                f"all stages draw from one data set, and they declare N = {', '.join(map(str, sizes))}"
            )
        for one, other in pairwise(stages):
            if (one.sampler, one.noise_scale) == (other.sampler, other.noise_scale):
                raise _refused("two stages that follow each other are alike: make one of them")

    @classmethod
    def from_schedule(
        cls, schedule: tuple[tuple[float, float], ...], *, num_examples: int, num_steps: int
    ) -> Self:
        """Poisson stages of a schedule relative to the number of steps.

        Args:
            schedule: (share of the steps after which it begins, expected batch size) of each stage, as
                `read_batch_schedule` returns it. The stage begins with step round(share * num_steps).
            num_examples: N, declared a public constant.
            num_steps: T.

        Raises:
            ConfigError[batch-schedule]: a stage would have no step.
            ConfigError: a batch size that a Poisson sampler may not have.
        """
        starts = [round(share * num_steps) for share, _ in schedule]
        counts = [after - start for start, after in zip(starts, [*starts[1:], num_steps], strict=True)]
        if min(counts) < 1:
            raise _refused(
                f"in {num_steps} steps its stages would begin at {', '.join(map(str, starts))}, so that one "
                "has no step: take more steps, or borders further apart"
            )
        return cls(
            stages=tuple(
                Stage(
                    sampler=PoissonSampler(num_examples=num_examples, expected_batch_size=size),
                    num_steps=count,
                )
                for (_, size), count in zip(schedule, counts, strict=True)
            )
        )

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def num_examples(self) -> int | None:
        """N, where the stages declare it public."""
        return self.stages[0].sampler.num_examples

    @property
    def relation(self) -> NeighbouringRelation:
        """As of every stage's sampler: zero-out if the number of examples is public."""
        return self.stages[0].sampler.relation

    @property
    def relations(self) -> tuple[NeighbouringRelation, ...]:
        """Which statements can be made; `relation` is the first."""
        return self.stages[0].sampler.relations

    @property
    def scheme(self) -> SamplingScheme:
        """Poisson; full batch if no stage samples."""
        schemes = {stage.sampler.scheme for stage in self.stages}
        return SamplingScheme.POISSON if SamplingScheme.POISSON in schemes else schemes.pop()

    def at(self, step: int) -> Stage:
        """The stage that step t = 0, 1, ... belongs to.

        Raises:
            ConfigError[start-step]: there is no such step.
        """
        left = step
        for stage in self.stages if step >= 0 else ():
            if left < stage.num_steps:
                return stage
            left -= stage.num_steps
        raise ConfigError(
            f"These stages have steps 0 to {self.num_steps - 1}, and step {step!r} was asked for.",
            code="start-step",
        )


def read_batch_schedule(text: str) -> tuple[tuple[float, float], ...]:
    """Read "0.0:1024,0.5:2048": shares of the steps after which an expected batch size begins.

    Returns:
        (share, size) of each stage, at least two, shares growing from 0 and below 1.

    Raises:
        ConfigError[batch-schedule]: anything else.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        schedule = tuple((float(share), float(size)) for share, size in pairs)
    except (ValueError, AttributeError):
        raise _refused(f"it reads share:size,share:size,... as in 0.0:1024,0.5:2048, got {text!r}") from None
    shares = [share for share, _ in schedule]
    growing = all(one < other for one, other in zip(shares, [*shares[1:], 1.0], strict=True))
    if len(schedule) < 2 or shares[0] != 0.0 or not growing:
        raise _refused(
            "it needs two stages or more, whose shares grow from 0.0 and stay below 1; for one size, set "
            f"expected_batch_size. Got {text!r}"
        )
    if not all(0.0 < size < math.inf for _, size in schedule):
        raise _refused(f"its sizes must be finite numbers > 0, got {text!r}")
    if any(one[1] == other[1] for one, other in pairwise(schedule)):
        raise _refused(f"a stage of it begins with the size that there is already, in {text!r}")
    return schedule


def _refused(problem: str) -> ConfigError:
    return ConfigError(f"The batch schedule cannot be: {problem}.", code="batch-schedule")
