"""What a script says about privacy, and the plan that follows from it and from its batch size.

Room: hf. May import `reticent.{plan,sample,clipping,records,errors}`; no torch.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679: C = 0.1, delta = 1 / (2 N).
"""

import math
from dataclasses import dataclass

from reticent.clipping import FlatClipping
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.sample import PoissonSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyArguments:
    """Everything that private training needs beside `TrainingArguments`.

    Args:
        target_epsilon: the epsilon that the whole run may spend; its noise is found. With
            `noise_multiplier` as well, it is a bound that the plan must keep.
        noise_multiplier: fixes the noise, in place of `target_epsilon`.
        target_delta: the delta of the statement; by default 1 / (2 N) for N rows (or users) [1].
        max_norm: clipping norm of one row's (or user's) gradient [1].
        max_length: tokens that every row is padded to, if the collator pads to the longest row of a batch:
            how long a row becomes must not depend on other rows. A longer row is refused.
        user_column: column of the training data that says whose a row is. The guarantee is then a user's:
            users are drawn, and batch sizes count them.
        rows_per_user: the most rows of one user that take part, the first in the data's order.
        low_memory: clip by two backwards, between which nothing is kept; see `PrivateStep`.
        show_loss: log the training loss, which is NOT private.
        show_norms: write down gradient norms, which are NOT private either.
        noise_seed: fixes noise and sampling, for tests and research: the run is then NOT private.
        other_data: says that no one whose rows are to be trained on had rows in the data of the earlier
            runs that trained the model. Without it, a model that is known to come from a run is refused,
            since what that run spent would be in no ledger of the new one. `run.json` notes it.

    Raises:
        ConfigError[trainer-privacy]: no noise follows from these, or one of them would be ignored.

    Sources:
        [1] Li et al. 2022, arXiv:2110.05679.
    """

    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    target_delta: float | None = None
    max_norm: float = 0.1
    max_length: int | None = None
    user_column: str | None = None
    rows_per_user: int | None = None
    low_memory: bool = False
    show_loss: bool = False
    show_norms: bool = False
    noise_seed: int | None = None
    other_data: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.target_epsilon is None and self.noise_multiplier is None:
            problems.append("give target_epsilon, or noise_multiplier to fix the noise")
        if self.target_epsilon is not None and math.isinf(self.target_epsilon):
            problems.append("target_epsilon is infinite: without privacy, use the Trainer of transformers")
        if self.noise_multiplier is not None and not self.noise_multiplier > 0:
            problems.append(f"noise_multiplier must be > 0, got {self.noise_multiplier!r}")
        if (self.user_column is None) != (self.rows_per_user is None):
            problems.append("user_column and rows_per_user belong together: give both or neither")
        if self.max_length is not None and self.max_length < 1:
            problems.append(f"max_length must be at least 1, got {self.max_length!r}")
        if problems:
            raise ConfigError("PrivacyArguments: " + "; ".join(problems) + ".", code="trainer-privacy")

    @property
    def unit(self) -> str:
        """What one item of the data set is, as a plan names it."""
        return "example" if self.user_column is None else "user"

    def plan(self, *, num_units: int, expected_batch_size: float, num_steps: int) -> Plan:
        """The plan of a run.

        Args:
            num_units: N rows or users, a public constant.
            expected_batch_size: of them in a step, on average.
            num_steps: updates in the whole run.

        Raises:
            AccountingError, ConfigError: no noise meets the budget, or a number is out of range.
        """
        sampler = PoissonSampler(num_examples=num_units, expected_batch_size=expected_batch_size)
        clipping = FlatClipping(max_norm=self.max_norm)
        delta = 1 / (2 * num_units) if self.target_delta is None else self.target_delta
        budget = None if self.target_epsilon is None else Budget(epsilon=self.target_epsilon, delta=delta)
        if self.noise_multiplier is not None:
            return Plan(
                sampler=sampler,
                num_steps=num_steps,
                noise_multiplier=self.noise_multiplier,
                clipping=clipping,
                delta=delta,
                budget=budget,
                unit=self.unit,
            )
        return Plan.calibrate(
            budget=budget, sampler=sampler, num_steps=num_steps, clipping=clipping, unit=self.unit
        )
