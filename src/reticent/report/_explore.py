"""The plan explorer's numbers: from five settings to the plan they need, by the library's own calibration.

Room: report. May import `reticent.{account,plan,sample}` and the floors below; never torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from reticent.account import risk
from reticent.clipping import FlatClipping
from reticent.errors import ConfigError, ReticentError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.report._figures import percent_up, round_up
from reticent.sample import PoissonSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting of the explorer.

    Args:
        name: as `reticent plan` has it.
        label: for people.
        low: least value of the slider; the slider is logarithmic.
        high: its largest; numbers may go as far, and no further.
        start: where it stands at first.
        whole: whether only integers are meant.
    """

    name: str
    label: str
    low: float
    high: float
    start: float
    whole: bool = False


KNOBS: Final = (
    Knob(name="epsilon", label="privacy budget ε", low=0.05, high=50.0, start=3.0),
    Knob(name="delta", label="δ", low=1e-12, high=1e-2, start=1e-5),
    Knob(name="num_examples", label="training examples N", low=100, high=1e9, start=60_000, whole=True),
    Knob(name="expected_batch_size", label="expected batch size B", low=1, high=1e7, start=4096),
    Knob(name="num_steps", label="steps", low=1, high=1_000_000, start=600, whole=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What a set of settings comes to: rows of words for people, and the command that says the same.

    Args:
        values: the settings, as numbers.
        rows: (name, value, what it means).
        warnings: what is allowed and hardly ever meant.
        command: `reticent plan` with these settings.
    """

    values: Mapping[str, float]
    rows: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...] = field(default=())
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "values": dict(self.values),
            "rows": [list(row) for row in self.rows],
            "warnings": list(self.warnings),
            "command": self.command,
        }


def starting_values(given: Mapping[str, float | None]) -> dict[str, float]:
    """Where the knobs stand at first: as given, else at their own start.

    Raises:
        ConfigError[plan-explorer]: a value is beyond what the explorer computes.
    """
    values = {knob.name: knob.start if (value := given.get(knob.name)) is None else value for knob in KNOBS}
    _check(values)
    return values


def explore(given: Mapping[str, str | float]) -> Explored:
    """The noise that five settings need, and what it costs.

    Args:
        given: the name of each knob -> its value, as typed or as a number.

    Returns:
        The plan's numbers. Noise is rounded up and every epsilon too, as in `Plan.calibrate`.

    Raises:
        ConfigError[plan-explorer]: a value is missing, no number, or out of the explorer's range.
        ReticentError: the settings contradict each other, or no noise meets the budget.
    """
    values = {knob.name: _number(knob, given.get(knob.name, "")) for knob in KNOBS}
    _check(values)
    num_examples, size = int(values["num_examples"]), values["expected_batch_size"]
    plan = Plan.calibrate(
        budget=Budget(epsilon=values["epsilon"], delta=values["delta"]),
        sampler=PoissonSampler(num_examples=num_examples, expected_batch_size=size),
        num_steps=int(values["num_steps"]),
        clipping=FlatClipping(max_norm=1.0),
    )
    options = " ".join(f"--{knob.name.replace('_', '-')} {values[knob.name]:.12g}" for knob in KNOBS)
    return Explored(
        values=values,
        rows=_rows(plan),
        warnings=plan.warnings(),
        command=f"reticent plan {options}",
    )


def _rows(plan: Plan) -> tuple[tuple[str, str, str], ...]:
    report, size, sigma = plan.epsilon(), plan.expected_batch_size, plan.noise_multiplier
    prob = plan.mechanism.sampling_prob
    found = risk(report, [(plan.mechanism, plan.num_steps)])
    return (
        ("noise multiplier σ", f"{sigma:.6g}", "noise standard deviation over the clipping norm C"),
        (
            "signal to noise B/σ",
            f"{size / sigma:.4g}",
            "a batch of like gradients of length C, against the noise on one coordinate of their sum: larger "
            "is better",
        ),
        (
            "ε by PLD",
            _shown(report.epsilon_pld),
            "privacy loss distribution; the smallest valid bound counts",
        ),
        ("ε by RDP", _shown(report.epsilon_rdp), "Rényi differential privacy: looser, from a closed form"),
        (
            "a guess is right at most",
            percent_up((1.0 + found.advantage) / 2.0),
            "whether one example was used, at even odds; 50 % is a coin",
        ),
        ("sampling probability q", f"{prob:.4g}", "each example takes part in each step with this chance"),
        (
            "examples processed",
            f"{plan.num_steps * size:,.0f}",
            f"{plan.num_steps * prob:.4g} passes over the data, on average",
        ),
    )


def _shown(epsilon: float | None) -> str:
    return "does not apply" if epsilon is None else round_up(epsilon)


def _number(knob: Knob, typed: str | float) -> float:
    try:
        value = float(str(typed).replace(",", "").strip())
    except ValueError:
        raise _wrong(f"{knob.label} must be a number, and is {str(typed)[:40]!r}") from None
    if not math.isfinite(value):
        raise _wrong(f"{knob.label} must be a finite number")
    return value


def _check(values: Mapping[str, float]) -> None:
    problems = []
    for knob in KNOBS:
        value = values[knob.name]
        if not knob.low <= value <= knob.high:
            problems.append(f"{knob.label} must be from {knob.low:,g} to {knob.high:,g} here, not {value:,g}")
        elif knob.whole and value != int(value):
            problems.append(f"{knob.label} must be a whole number, not {value:g}")
    if not problems and values["expected_batch_size"] > values["num_examples"]:
        problems.append("expected batch size B must not be larger than the number N of training examples")
    if problems:
        raise _wrong("; ".join(problems))


def _wrong(text: str) -> ConfigError:
    return ConfigError(f"{text}.", code="plan-explorer")


def in_words(error: ReticentError) -> str:
    """An error for the page: what is wrong, without the code for the manual."""
    return str(error).removesuffix(f" [{error.code}]")
