"""What one step of a plan is: how it draws, and how much noise it gets.

Room: plan. May import `reticent.{account,sample,records,clipping}`.
"""

from dataclasses import dataclass

from reticent.account import split_noise
from reticent.clipping import AdaptiveClipping, Clipping
from reticent.errors import ConfigError
from reticent.records import Mechanism
from reticent.sample import Sampler, Stage, StagedSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step, or all steps that are alike.

    Args:
        sampler: how its examples are drawn.
        num_steps: steps that are alike in a row.
        noise_multiplier: noise standard deviation over the bound of what it releases.
        gradient_noise_multiplier: noise on the clipped sum over its bound: the same, or more beside a count.
        count_noise_multiplier: noise on adaptive clipping's count over its sensitivity; None without one.
    """

    sampler: Sampler
    num_steps: int
    noise_multiplier: float
    gradient_noise_multiplier: float
    count_noise_multiplier: float | None

    @property
    def mechanism(self) -> Mechanism:
        """What the step does to the data, as the ledger records it."""
        return self.sampler.mechanism(self.noise_multiplier)

    @property
    def expected_batch_size(self) -> float:
        """The public divisor of its noised sum."""
        return self.sampler.expected_batch_size


def planned(
    sampler: Sampler | StagedSampler, *, num_steps: int, noise_multiplier: float, clipping: Clipping
) -> tuple[PlannedStep, ...]:
    """Every kind of step that a plan has, in order.

    Raises:
        ConfigError: a count of adaptive clipping leaves no noise for the gradient.
    """
    if not isinstance(sampler, StagedSampler):
        return (_made(sampler, num_steps, noise_multiplier, clipping),)
    return tuple(
        _made(stage.sampler, stage.num_steps, noise_of(stage, noise_multiplier), clipping)
        for stage in sampler.stages
    )


def noise_of(stage: Stage, noise_multiplier: float) -> float:
    """A stage's noise multiplier, where the plan's is given."""
    return noise_multiplier * stage.noise_scale


def _made(sampler: Sampler, num_steps: int, noise_multiplier: float, clipping: Clipping) -> PlannedStep:
    gradient, count = noise_multiplier, None
    if isinstance(clipping, AdaptiveClipping):
        gradient, count = split_noise(noise_multiplier, clipping.count_noise_multiplier)
    return PlannedStep(
        sampler=sampler,
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
        gradient_noise_multiplier=gradient,
        count_noise_multiplier=count,
    )


def steps_differ(what: str) -> ConfigError:
    """For a question that a plan of several stages has no one answer to."""
    return ConfigError(
        f"The steps of this plan are not all alike, so that it has no one {what}: ask plan.at(step), or "
        "plan.segments() for all of them.",
        code="steps-differ",
    )
