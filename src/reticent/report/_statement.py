"""What can be said about a run's privacy, from its ledger.

Room: report. The epsilon is computed here from the ledger's segments through `reticent.account`;
no number that the run stored is repeated as truth, only compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reticent.account import epsilon, first_steps, recorded_choice_epsilon
from reticent.account.ledger import LedgerView
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation
from reticent.report._run import Run

Segment = tuple[Mechanism, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The privacy of a run, in numbers and sentences.

    Args:
        private: whether any guarantee can be stated.
        why_not: why none can, in a sentence; None when `private`.
        report: epsilon with all that gives it meaning; None for a run without a ledger.
        curve: (number of steps, epsilon after them), at most about twenty points; empty if not private.
        warnings: sentences that a reader must see beside the number.
    """

    private: bool
    why_not: str | None
    report: EpsilonReport | None
    curve: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...]


def state(run: Run, *, num_points: int = 20) -> Statement:
    """Compute what a run's ledger allows to be said.

    Args:
        run: the run, as `read_run` returned it.
        num_points: about how many points the curve of epsilon against steps has.

    Guarantee:
        `private` is True only if a ledger exists, is not marked reproducible, and its segments have a
        finite epsilon at the ledger's own delta and relation.
    """
    ledger = run.ledger
    if ledger is None:
        return Statement(
            private=False,
            why_not="This run was trained without clipping and noise, and kept no ledger.",
            report=None,
            curve=(),
            warnings=(),
        )
    segments = tuple(ledger.segments())
    report = _report(run, ledger, segments)
    why_not = _why_not(run, ledger, segments, report)
    private = why_not is None
    return Statement(
        private=private,
        why_not=why_not,
        report=report,
        curve=_curve(segments, ledger, num_points) if private and run.selection is None else (),
        warnings=(*_of_the_choice(run), *_warnings(run, ledger, segments, report)),
    )


def _report(run: Run, ledger: LedgerView, segments: Sequence[Segment]) -> EpsilonReport:
    """Of the run's steps; of the choice, if it was kept as the best of a random number of runs."""
    if run.selection is None:
        return epsilon(segments, delta=ledger.delta, relation=ledger.relation)
    return recorded_choice_epsilon(
        run.selection.model_dump(), segments, delta=ledger.delta, relation=ledger.relation
    )


def _of_the_choice(run: Run) -> Sequence[str]:
    if run.selection is None:
        return ()
    return (
        "This run was kept as the best of a random number of runs with different settings. The epsilon above "
        "is that of the choice; it holds only if nothing else of those runs is published.",
    )


def _why_not(run: Run, ledger: LedgerView, segments: Sequence[Segment], report: EpsilonReport) -> str | None:
    if ledger.reproducible:
        return (
            "The noise of this run came from a seed, so that it can be reproduced. Whoever knows the seed "
            "can subtract the noise."
        )
    if any(mechanism.noise_multiplier == 0 for mechanism, _ in segments):
        return "Noise was off: the noise multiplier of at least one step is 0."
    if not math.isfinite(report.epsilon):
        return "No finite epsilon holds for the steps in the ledger."
    if not run.about.private:
        return "The run describes itself as not private."
    return None


def _curve(segments: Sequence[Segment], ledger: LedgerView, num_points: int) -> tuple[tuple[int, float], ...]:
    total = sum(count for _, count in segments)
    if total == 0:
        return ()
    # Epsilon grows about as the square root of the steps: these are evenly spaced in epsilon.
    steps = sorted({max(1, round(total * (k / num_points) ** 2)) for k in range(1, num_points + 1)})
    return tuple(
        (
            num_steps,
            epsilon(first_steps(segments, num_steps), delta=ledger.delta, relation=ledger.relation).epsilon,
        )
        for num_steps in steps
    )


def public_num_examples(run: Run) -> int | None:
    """The number of training examples, if the plan declared it public."""
    value = _find(run.about.plan, "num_examples")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def num_available(run: Run) -> int | None:
    """How many units those that took part were chosen among; None if all did."""
    value = run.about.data.get("num_available")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def privacy_unit(run: Run) -> str:
    """Whom the plan's guarantee speaks of: an example, unless it says otherwise."""
    return str((run.about.plan or {}).get("unit", "example"))


def number(run: Run, name: str) -> float | None:
    """A number of the plan, wherever in the plan's description it stands; None if it is not there."""
    value = _find(run.about.plan, name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def planned_noise(run: Run) -> set[float]:
    """Noise multipliers that the plan's steps have; empty if it does not say."""
    sigma, stages = number(run, "noise_multiplier"), staged(run)
    if sigma is None:
        return set()
    return {sigma * stage["noise_scale"] for stage in stages} or {sigma}


def staged(run: Run) -> list[Any]:
    """The stages of the plan's sampler, as `Plan.describe` wrote them; none if its steps are all alike."""
    sampler = (run.about.plan or {}).get("sampler")
    stages = sampler.get("stages") if isinstance(sampler, dict) else None
    return stages if isinstance(stages, list) else []


def batch_in_words(run: Run) -> str | None:
    """The expected batch size, of each stage if there are several; None if the plan does not say."""
    if stages := staged(run):
        return ", then ".join(
            f"{stage['sampler']['expected_batch_size']:.8g} for {stage['num_steps']:,} steps"
            for stage in stages
        )
    size = number(run, "expected_batch_size")
    return None if size is None else f"{size:.8g}"


def clipping_in_words(run: Run) -> str | None:
    """How the plan bounded an example's influence; None if it does not say."""
    clipping = (run.about.plan or {}).get("clipping")
    if not isinstance(clipping, dict):
        return None
    norm, kind = number(run, "max_norm"), clipping.get("kind")
    match kind:
        case "flat" if norm is not None:
            return f"norm C = {norm:.8g}"
        case "automatic" if norm is not None:
            return f"automatic: every example's gradient is scaled to norm {norm:.8g} or less"
        case "per-layer" if norm is not None:
            return f"layer by layer; norm C = {norm:.8g} over all of them"
        case "adaptive":
            first = number(run, "initial_max_norm") or math.nan
            return (
                f"adaptive: from norm {first:.8g} on it follows a quantile of the examples' norms, through "
                "noised counts; ε covers gradient and count together"
            )
        case _:
            return str(kind)


def _find(value: object, name: str) -> object:
    if not isinstance(value, dict):
        return None
    if name in value and not isinstance(value[name], dict):
        return value[name]
    found = (_find(part, name) for part in value.values())
    return next((part for part in found if part is not None), None)


def _warnings(run: Run, ledger: LedgerView, segments: Sequence[Segment], report: EpsilonReport) -> list[str]:
    found = []
    replaced = run.about.data.get("fallback_from")
    if replaced:
        found.append(
            f"The data set '{replaced}' could not be reached: this run trained on "
            f"{run.about.data.get('name')} instead, data that come with the library. Its accuracy says "
            "nothing about the data asked for."
        )
    if run.about.settings.get("show_loss"):
        found.append(
            "The training loss was shown and written to not-private.jsonl. It depends on the private data "
            "and ε does not cover it: keep it to yourself."
        )
    noted = ledger.public.get("not_private")
    if run.about.settings.get("show_norms") or (isinstance(noted, list) and "norms" in noted):
        found.append(
            "Norms of the examples' gradients were written to not-private.jsonl. They depend on the private "
            "data and ε does not cover them: keep them to yourself."
        )
    if run.twin is not None or (run.result is not None and run.result.twin):
        found.append(
            "A twin was trained on the same rows without noise. ε covers neither its scores, in result.json, "
            "nor its weights, in the folder twin: keep both to yourself."
        )
    if scored := run.about.data.get("scored"):
        found.append(
            f"Scores were measured on {scored}: rows that were taken out of the private data and not trained "
            "on. ε does not speak of them, and every published score reveals something of them."
        )
    if note := run.about.data.get("model_note"):
        found.append(f"The run began with a pretrained model by name, of which figures should say: {note}.")
    num_examples = public_num_examples(run)
    if num_examples and ledger.delta > 1 / num_examples:
        found.append(
            f"δ = {ledger.delta:g} is larger than one over the number of examples (1/{num_examples:,} ≈ "
            f"{1 / num_examples:.2g}). A mechanism that publishes a random record would satisfy such a δ."
        )
    if report.epsilon > 10 and math.isfinite(report.epsilon):
        found.append("ε is above 10: the bound on what the weights may reveal of one example is weak.")
    if ledger.num_steps < ledger.planned_steps:
        found.append(
            f"The run stopped before its plan: {ledger.num_steps:,} of {ledger.planned_steps:,} steps were "
            "performed. ε is that of the steps performed; going on would spend more."
        )
    if ledger.num_lost:
        found.append(
            f"Steps lost in crashes: {ledger.num_lost:,}. They influence no weights that were kept, but "
            "what they computed may have been seen, so they stay spent."
        )
    planned = planned_noise(run)
    ran = {mechanism.noise_multiplier for mechanism, _ in segments}
    if planned and ran - planned:
        found.append(
            "The ledger's noise multiplier is not the plan's. The ledger is what ran, and what counts here."
        )
    stored = run.result.epsilon if run.result else None
    if stored is not None and not math.isclose(stored, report.epsilon, rel_tol=1e-3):
        found.append(
            f"result.json says ε = {stored:g}; the ledger gives {report.epsilon:.6g}, which is what counts."
        )
    return found


def guess_accuracy(report: EpsilonReport) -> float:
    """How often a guess at even odds whether one example was used can be right, at most.

    (e^eps + delta) / (e^eps + 1): from the total variation that (eps, delta)-DP allows.
    """
    return 1.0 - (1.0 - report.delta) / (math.exp(min(report.epsilon, 700.0)) + 1.0)


def unit_of(relation: NeighbouringRelation, unit: str = "example") -> str:
    """The neighbouring relation in words; `unit` is what the plan names."""
    one = "user, with all of their rows," if unit == "user" else f"training {unit}"
    match relation:
        case NeighbouringRelation.ADD_OR_REMOVE:
            return f"adding or removing one {one}".rstrip(",")
        case NeighbouringRelation.ZERO_OUT:
            return f"replacing one {one} by one that contributes nothing"
        case NeighbouringRelation.REPLACE_ONE:
            return f"replacing one {one} by any other"
