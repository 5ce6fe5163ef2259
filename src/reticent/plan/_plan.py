"""A plan: which examples a step draws, how they are clipped and noised, how often, at what price.

Room: plan. May import `reticent.account`, `reticent.sample`, `reticent.records`; never torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from typing import Any, Final, Self

from reticent.account import (
    Segments,
    calibrate_noise_scale,
    calibrate_sampling_prob,
    epsilon,
    first_steps,
    noise_multiplier_for,
    num_steps_for,
)
from reticent.clipping import Clipping, sensitivity
from reticent.errors import ConfigError, DataError
from reticent.plan._batches import LogicalBatch, num_rows
from reticent.plan._checks import (
    check_budget,
    check_clipping,
    check_neighbours,
    check_no_idle_setting,
    check_noise,
    check_num_steps,
    check_sampler,
    check_unit,
    given,
    is_integer,
    problem,
    raise_together,
    the_unknown,
)
from reticent.plan._clipping import clipping_from, clipping_record
from reticent.plan._record import bad_record, check_keys, sampler_from, sampler_record
from reticent.plan._steps import PlannedStep, noise_of, planned, steps_differ
from reticent.records import (
    Budget,
    EpsilonReport,
    Mechanism,
    NeighbouringRelation,
    check_delta,
)
from reticent.sample import PoissonSampler, Sampler, SampleStream, StagedSampler

_KEYS: Final = ("sampler", "num_steps", "noise_multiplier", "clipping", "delta", "budget")
ROW: Final = "example"  # the privacy unit unless a plan says otherwise
_DERIVED: Final = (
    "neighbouring_relation",
    "gradient_noise_multiplier",
    "count_noise_multiplier",
    "noise_std",
    "notes",
    "unit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides the privacy of a run; frozen, printable, and made without any data.

    Args:
        sampler: how each step's examples are drawn; also the neighbouring relation. A `StagedSampler`
            draws with another probability in each of its stages.
        num_steps: number of steps T that may be taken, at least 1; of stages, as many as they have.
        noise_multiplier: noise standard deviation over the bound of what a step releases; 0 means no
            noise, and no privacy. With adaptive clipping a step releases the clipped sum and a
            count: this is the multiplier of the two together, and the accountant's. A stage has
            `noise_scale` times as much.
        clipping: how one unit's influence on the sum is bounded.
        delta: the delta of the privacy statement.
        budget: what the plan must keep to, if anything; its delta is the plan's.
        unit: what one item of the data set is, and so whom the guarantee speaks of: "example", or "user"
            for a data set of users. `num_examples` and `expected_batch_size` count these units.
        neighbours: which data sets the guarantee compares, where the sampler leaves a choice: replace-one
            instead of what `sampler.relation` says, at up to about twice the noise.

    Guarantee:
        `num_steps` steps that draw from `batches` and add noise of `gradient_noise_multiplier` times
        the bound to the clipped sum (and of `count_noise_multiplier` times its sensitivity to the count,
        if clipping adapts) are (`epsilon()`, `delta`)-DP under `relation`, against anyone who sees
        everything but the draws and the noise. With a budget, `epsilon()` is inside it. Where stages differ,
        step t draws, is noised and is divided as `at(t)` says, and `epsilon()` is that of all of them
        composed.

    Raises:
        ConfigError: a bad setting, with that setting's code (`num-steps`, `noise-multiplier`,
            `delta`, ...); with several, all are named and the code is `plan-invalid`.
        ConfigError[plan-over-budget]: the steps spend more than `budget.epsilon`.
    """

    sampler: Sampler | StagedSampler
    num_steps: int
    noise_multiplier: float
    clipping: Clipping
    delta: float
    budget: Budget | None = None
    unit: str = ROW
    neighbours: NeighbouringRelation | None = None

    def __post_init__(self) -> None:
        raise_together(
            problem(lambda: check_sampler(self.sampler)),
            problem(lambda: check_num_steps(self.num_steps)),
            problem(lambda: check_noise(self.noise_multiplier)),
            problem(lambda: check_clipping(self.clipping)),
            problem(lambda: check_delta(self.delta)),
            problem(lambda: check_budget(self.budget, self.delta)),
            problem(lambda: check_unit(self.unit)),
            problem(lambda: check_neighbours(self.neighbours, self.sampler)),
        )
        self._check_stages()
        self._check_within_budget()

    def _check_stages(self) -> None:
        stages = self.sampler.num_steps if isinstance(self.sampler, StagedSampler) else self.num_steps
        if self.num_steps != stages:
            raise ConfigError(
                f"num_steps is {self.num_steps}, and the sampler's stages have {stages} steps: give that.",
                code="num-steps",
            )
        for kind in self.steps:  # which refuses a count that leaves no noise for the gradient
            check_noise(kind.noise_multiplier)

    def _check_within_budget(self) -> None:
        if self.budget is None:
            return
        spent = self.epsilon().epsilon
        if spent > self.budget.epsilon * (1.0 + 1e-6):  # libraries may differ in the last digits
            raise ConfigError(
                f"{self.num_steps} steps with noise multiplier {self.noise_multiplier:g} spend epsilon "
                f"{spent:.6g}, more than the budget's {self.budget.epsilon:g}. Use Plan.calibrate, or "
                "leave the budget out.",
                code="plan-over-budget",
            )

    @classmethod
    def calibrate(
        cls,
        *,
        clipping: Clipping,
        sampler: Sampler | StagedSampler | None = None,
        num_examples: int | None = None,
        budget: Budget | None = None,
        delta: float | None = None,
        num_steps: int | None = None,
        noise_multiplier: float | None = None,
        unit: str = ROW,
        neighbours: NeighbouringRelation | None = None,
    ) -> Self:
        """Solve for the one setting left out: noise, number of steps, batch size, or epsilon.

        | left out | give | what is found |
        |---|---|---|
        | `noise_multiplier` | budget, sampler, num_steps | the least noise inside the budget |
        | `num_steps` | budget, sampler, noise_multiplier | the most steps inside the budget |
        | `sampler` | budget, num_examples, num_steps, noise_multiplier | the largest expected batch |
        | `budget` | delta, sampler, num_steps, noise_multiplier | nothing: ask `epsilon()` |

        Args:
            clipping: how one unit's influence on what a step releases is bounded. Does not change epsilon.
            sampler: how each step's examples are drawn.
            num_examples: N, public; only where the batch size is to be found.
            budget: the epsilon and delta that may be spent.
            delta: only without a budget.
            num_steps: number of steps. Stages have their own: of them it may be left out as well.
            noise_multiplier: noise standard deviation over the bound of the clipped sum. One number is found
                for all stages, of which each has its `noise_scale`.
            unit: what one item of the data set is; see the class.
            neighbours: see the class.

        Returns:
            A plan.

        Guarantee:
            With a budget, the plan's `epsilon()` is at most `budget.epsilon`, and noise and batch
            size found here leave at most a thousandth of it unspent.

        Raises:
            ConfigError[plan-unknowns]: not exactly one setting is left out.
            AccountingError[budget-unreachable]: nothing in range meets the budget.
        """
        raise_together(
            problem(lambda: check_clipping(clipping)),
            problem(lambda: check_sampler(sampler), unless=sampler is None),
            problem(lambda: check_budget(budget, None), unless=budget is None),
            problem(lambda: check_delta(given(delta)), unless=delta is None),
            problem(lambda: check_num_steps(given(num_steps)), unless=num_steps is None),
            problem(lambda: check_noise(given(noise_multiplier)), unless=noise_multiplier is None),
            problem(lambda: check_neighbours(neighbours, sampler)),
        )
        if isinstance(sampler, StagedSampler) and num_steps is None:
            num_steps = sampler.num_steps
        unknown = the_unknown(
            {
                "noise_multiplier": noise_multiplier,
                "num_steps": num_steps,
                "sampler": sampler,
                "budget": budget,
            }
        )
        check_no_idle_setting(unknown, num_examples=num_examples, delta=delta)
        if unknown == "sampler":
            sampler = _largest_batch(
                given(budget), given(num_examples), given(noise_multiplier), given(num_steps), neighbours
            )
        sampler = given(sampler)
        relation = sampler.relation if neighbours is None else neighbours
        if isinstance(sampler, StagedSampler):
            if unknown == "noise_multiplier":
                noise_multiplier = _noise_of_stages(sampler, given(budget), relation)
        elif unknown == "noise_multiplier":
            noise_multiplier = noise_multiplier_for(
                sampler.mechanism,
                budget=given(budget),
                num_steps=given(num_steps),
                relation=relation,
            )
        elif unknown == "num_steps":
            num_steps = num_steps_for(
                sampler.mechanism(given(noise_multiplier)), budget=given(budget), relation=relation
            )
        return cls(
            sampler=sampler,
            num_steps=given(num_steps),
            noise_multiplier=given(noise_multiplier),
            clipping=clipping,
            delta=budget.delta if budget is not None else given(delta),
            budget=budget,
            unit=unit,
            neighbours=neighbours,
        )

    @property
    def steps(self) -> tuple[PlannedStep, ...]:
        """The kinds of steps, in order: one, or one for each stage."""
        return planned(
            self.sampler,
            num_steps=self.num_steps,
            noise_multiplier=self.noise_multiplier,
            clipping=self.clipping,
        )

    def at(self, step: int) -> PlannedStep:
        """How step t = 0, 1, ... draws, and how much noise it gets.

        Raises:
            ConfigError[start-step]: there is no such step.
        """
        left = step
        for kind in self.steps if step >= 0 else ():
            if left < kind.num_steps:
                return kind
            left -= kind.num_steps
        raise ConfigError(
            f"This plan has steps 0 to {self.num_steps - 1}, and step {step!r} was asked for.",
            code="start-step",
        )

    def segments(self, num_steps: int | None = None) -> Segments:
        """What all steps, or the first `num_steps`, do to the data: as the ledger has them at the end."""
        kinds = [(kind.mechanism, kind.num_steps) for kind in self.steps]
        return first_steps(kinds, self.num_steps if num_steps is None else num_steps)

    def _only(self, what: str) -> PlannedStep:
        if isinstance(self.sampler, StagedSampler):
            raise steps_differ(what)
        return self.steps[0]

    @property
    def mechanism(self) -> Mechanism:
        """What each step does to the data, as the ledger records it.

        Raises:
            ConfigError[steps-differ]: the sampler has stages; so do the three below.
        """
        return self._only("mechanism").mechanism

    @property
    def gradient_noise_multiplier(self) -> float:
        """Noise on the clipped sum over its bound: `noise_multiplier`, or more beside a count."""
        return self._only("gradient_noise_multiplier").gradient_noise_multiplier

    @property
    def count_noise_multiplier(self) -> float | None:
        """Noise on adaptive clipping's count over the count's sensitivity; None where none is released."""
        return self._only("count_noise_multiplier").count_noise_multiplier

    @property
    def relation(self) -> NeighbouringRelation:
        """Which data sets the guarantee compares: `neighbours`, or what the sampler says."""
        return self.sampler.relation if self.neighbours is None else NeighbouringRelation(self.neighbours)

    @property
    def expected_batch_size(self) -> float:
        """The public divisor of the noised sum."""
        return self._only("expected_batch_size").expected_batch_size

    @property
    def largest_batch_size(self) -> float:
        """The expected batch size, of the stage where it is largest."""
        return max(kind.expected_batch_size for kind in self.steps)

    @property
    def mean_batch_size(self) -> float:
        """The expected batch size, on average over all steps."""
        if not isinstance(self.sampler, StagedSampler):
            return self.sampler.expected_batch_size
        return sum(kind.num_steps * kind.expected_batch_size for kind in self.steps) / self.num_steps

    def epsilon(self) -> EpsilonReport:
        """Epsilon after all `num_steps` steps. A run's own epsilon comes from its ledger instead."""
        return epsilon(self.segments(), delta=self.delta, relation=self.relation)

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and hardly ever meant: a delta that promises nothing, no noise, a lost count."""
        found = []
        public = self.sampler.num_examples is not None
        num_examples = max(kind.expected_batch_size / kind.sampler.sampling_prob for kind in self.steps)
        if self.delta * num_examples > 1.0:
            found.append(
                f"delta {self.delta:g} is above 1/N for {'the' if public else 'an expected'} "
                f"N = {num_examples:.6g} examples: publishing one whole example at random would be allowed "
                f"too. Choose a delta well below {1.0 / num_examples:.2g}."
            )
        if self.noise_multiplier == 0.0:
            found.append("the noise multiplier is 0: this plan gives no privacy.")
        share_std = max((k.count_noise_multiplier or 0.0) / 2.0 / k.expected_batch_size for k in self.steps)
        if share_std > 0.5:
            found.append(
                f"the noise on the share of units below the norm has standard deviation {share_std:.2g} in "
                "every step: the clipping norm will wander rather than follow its quantile. Take larger "
                "batches, or give less noise to the count (count_noise_multiplier)."
            )
        return tuple(found)

    def describe(self) -> dict[str, Any]:
        """The plan as a JSON object, which `from_dict` reads back; every value in it is public.

        Of stages, what is not a plan's own is a list with an entry for each of them.
        """
        budget = self.budget
        return {
            "sampler": sampler_record(self.sampler),
            "num_steps": self.num_steps,
            "noise_multiplier": self.noise_multiplier,
            "clipping": clipping_record(self.clipping),
            "delta": self.delta,
            "budget": None if budget is None else {"epsilon": budget.epsilon, "delta": budget.delta},
            "neighbouring_relation": self.relation.value,
            "gradient_noise_multiplier": self.of_steps(lambda kind: kind.gradient_noise_multiplier),
            "count_noise_multiplier": self.of_steps(lambda kind: kind.count_noise_multiplier),
            "noise_std": self.of_steps(
                lambda kind: kind.gradient_noise_multiplier * sensitivity(self.clipping)
            ),
            "notes": list(self.warnings()),
            **({"unit": self.unit} if self.unit != ROW else {}),
        }

    def stages(self) -> list[dict[str, float]]:
        """The stages of its steps, for people: as JSON values; none if the steps are all alike."""
        if not isinstance(self.sampler, StagedSampler):
            return []
        return [
            {
                "num_steps": kind.num_steps,
                "expected_batch_size": kind.expected_batch_size,
                "sampling_prob": kind.sampler.sampling_prob,
                "noise_multiplier": kind.noise_multiplier,
            }
            for kind in self.steps
        ]

    def of_steps(self, of: Callable[[PlannedStep], Any]) -> Any:
        """A value that all steps have; of stages, a list with an entry for each."""
        found = [of(kind) for kind in self.steps]
        return found if isinstance(self.sampler, StagedSampler) else found[0]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read back what `describe` wrote.

        Raises:
            ConfigError[plan-record]: a key is missing, unknown, or contradicts the others.
            ConfigError: a value is not one a plan may have.
        """
        check_keys(record, required=_KEYS, optional=_DERIVED, where="plan")
        clipping, budget = clipping_from(record["clipping"]), record["budget"]
        if budget is not None:
            check_keys(budget, required=("epsilon", "delta"), where="budget")
        sampler = sampler_from(record["sampler"])
        relation = record.get("neighbouring_relation", sampler.relation.value)
        if relation not in [known.value for known in sampler.relations]:
            raise bad_record(f"neighbouring_relation is {relation!r}, and this sampler has no bound for it.")
        return cls(
            sampler=sampler,
            num_steps=record["num_steps"],
            noise_multiplier=record["noise_multiplier"],
            clipping=clipping,
            delta=record["delta"],
            budget=None if budget is None else Budget(epsilon=budget["epsilon"], delta=budget["delta"]),
            unit=record.get("unit", ROW),
            neighbours=None if relation == sampler.relation else relation,
        )

    def batches(
        self, dataset: object, *, start: int = 0, stream: SampleStream | None = None
    ) -> Iterator[LogicalBatch]:
        """Draw the logical batch of each step from `start` on.

        Args:
            dataset: anything with a length, or a tuple, list or dict of equally long arrays. Only
                its length is read here.
            start: number of steps already taken, from 0 to `num_steps`.
            stream: where the draws come from; by default a fresh, secret one.

        Returns:
            `num_steps - start` batches. Each is drawn when it is asked for.

        Raises:
            ConfigError[data-size]: N is public and the data set holds another number of examples.
            ConfigError[start-step]: `start` is not a step of this plan.
            DataError[data-empty]: the data set is empty.
            DataError[data-rows]: the data set has no length.
        """
        num_available = num_rows(dataset)
        if num_available == 0:
            raise DataError("The data set is empty: there is nothing to learn from.", code="data-empty")
        if self.sampler.num_examples not in (None, num_available):
            raise ConfigError(
                f"The plan declares N = {self.sampler.num_examples} examples a public constant, and the data "
                f"set holds {num_available}. Make a plan for this data set, or give sampling_prob instead of "
                "num_examples.",
                code="data-size",
            )
        if not is_integer(start) or not 0 <= start <= self.num_steps:
            raise ConfigError(
                f"start must be an integer from 0 to num_steps = {self.num_steps}, got {start!r}.",
                code="start-step",
            )
        return self._draws(dataset, num_available, start, stream or SampleStream.fresh())

    def _draws(
        self, dataset: object, num_available: int, start: int, stream: SampleStream
    ) -> Iterator[LogicalBatch]:
        for step in range(start, self.num_steps):
            sampler = self.at(step).sampler
            yield LogicalBatch(
                step=step,
                indices=sampler.draw(num_available, stream, step=step),
                dataset=dataset,
                expected_batch_size=sampler.expected_batch_size,
                sampler=sampler,
                private=stream.private,
            )


def _noise_of_stages(sampler: StagedSampler, budget: Budget, relation: NeighbouringRelation) -> float:
    """The least noise multiplier of a plan of stages that keeps all of them together inside the budget."""

    def segments(noise_multiplier: float) -> Segments:
        return [
            (stage.sampler.mechanism(noise_of(stage, noise_multiplier)), stage.num_steps)
            for stage in sampler.stages
        ]

    return calibrate_noise_scale(budget=budget, segments=segments, relation=relation)


def _largest_batch(
    budget: Budget,
    num_examples: int,
    noise_multiplier: float,
    num_steps: int,
    neighbours: NeighbouringRelation | None,
) -> PoissonSampler:
    some = PoissonSampler(
        num_examples=num_examples, expected_batch_size=1
    )  # refuses a bad num_examples first
    check_neighbours(neighbours, some)
    prob = calibrate_sampling_prob(
        budget=budget,
        noise_multiplier=noise_multiplier,
        num_steps=num_steps,
        relation=some.relation if neighbours is None else neighbours,
    )
    rounding = Context(prec=6, rounding=ROUND_FLOOR)
    size = num_examples if prob == 1.0 else float(rounding.create_decimal_from_float(prob * num_examples))
    return PoissonSampler(num_examples=num_examples, expected_batch_size=size)
