"""The epsilon we report: the smallest of the valid upper bounds, with everything that gives it meaning.

Room: account. May import `reticent.records`; never torch.
"""

import math
from importlib.metadata import version

from reticent.account._bounds import Bound, gaussian_bound, pld_bound, rdp_accountant
from reticent.account._events import (
    MAX_PHASES,
    MIN_NOISE_MULTIPLIER,
    Phase,
    Segments,
    check_relation,
    check_schemes,
    coarsen,
    merge_phases,
    num_performed,
)
from reticent.account._own_bounds import own_epsilon, own_history, simplified
from reticent.account._replace import replace_one_bounds
from reticent.errors import AccountingError
from reticent.records import EpsilonReport, NeighbouringRelation, check_delta


def epsilon(
    segments: Segments,
    *,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> EpsilonReport:
    """Epsilon of steps that were performed (or are planned), at `delta`.

    The reported number is the smallest of the upper bounds that apply: PLD and RDP where examples
    are sampled, the exact Gaussian curve where every step uses every example.

    Add-or-remove-one and zero-out-one have the same numbers. Zeroing an example out replaces its
    clipped gradient by 0, and an absent example contributes 0 too: both relations compare
    (1-q) N(0, sigma^2) + q N(1, sigma^2) with N(0, sigma^2), in both directions. What differs is
    what the statement protects: under zero-out the number of examples is a public constant. Under
    replace-one the sum moves by up to twice a unit's bound, and epsilon is about twice as large.

    Args:
        segments: (mechanism, number of steps performed) pairs, in any order.
        delta: strictly between 0 and 1.
        relation: the neighbouring relation of the statement.

    Returns:
        The report; its `notes` say which bound was refused and why.

    Guarantee:
        `epsilon` is never below the true epsilon: each bound is, with the margins that
        `_bounds.py` states (the one for PLD is measured, not proved).

        | history | epsilon |
        |---|---|
        | no steps | 0 |
        | any step with noise multiplier 0 (or below 1e-3) | infinity |
        | all steps unsampled | exact Gaussian |
        | delta so small that PLD's rounding could matter | RDP |
        | replace-one, sampled steps | PLD, or refused |
        | a partition: cyclic, shuffled, balls in bins | of the steps that one example takes part in |
        | truncated Poisson, fixed size | as `_own_bounds` says, if there are no other steps |

    Raises:
        AccountingError[no-bound]: replace-one of sampled steps, where PLD cannot be trusted; truncated or
            fixed-size batches beside other steps.
        ConfigError[delta], ConfigError[num-steps], ConfigError[relation], ConfigError[mechanism]:
            an argument that means nothing, before any computation.
    """
    check_delta(delta)
    relation = check_relation(relation)
    check_schemes(segments, relation)
    segments = simplified(segments)
    own = own_history(segments)
    if own is not None:
        return own_epsilon(*own, delta=delta)
    phases = merge_phases(segments)
    replaced = relation is NeighbouringRelation.REPLACE_ONE
    rdp, exact, pld, notes = _replace_bounds(phases, delta) if replaced else _bounds(phases, delta)
    named = (("PLD", pld), ("exact Gaussian", exact), ("RDP", rdp))
    applicable = [(value, name) for name, value in named if value is not None]
    value, name = min(applicable, key=lambda pair: pair[0])
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=rdp,
        epsilon_pld=pld,
        neighbouring_relation=relation,
        accountant=f"{name} (dp-accounting {version('dp-accounting')})",
        num_steps=num_performed(segments),
        notes=tuple(notes),
    )


def rdp_epsilon(segments: Segments, *, delta: float) -> float:
    """The RDP bound alone: loose by some percent, two orders of magnitude cheaper than PLD."""
    return _rdp(merge_phases(segments), delta)


def rough_epsilon(segments: Segments, *, delta: float, relation: NeighbouringRelation) -> float:
    """About the epsilon, at little cost: where a search for the right setting may begin. No bound."""
    segments = simplified(segments)
    own = own_history(segments)
    if own is not None:
        mechanism, num_steps = own
        noise = mechanism.noise_multiplier / (2.0 if relation is NeighbouringRelation.REPLACE_ONE else 1.0)
        return _rdp((Phase(mechanism.sampling_prob, noise, num_steps),), delta)
    phases = merge_phases(segments)
    if relation is NeighbouringRelation.REPLACE_ONE:
        phases = tuple(Phase(p.sampling_prob, p.noise_multiplier / 2.0, p.num_steps) for p in phases)
    return _rdp(phases, delta)


def _rdp(phases: tuple[Phase, ...], delta: float) -> float:
    if not phases:
        return 0.0
    if _without_privacy(phases):
        return math.inf
    return float(rdp_accountant(phases).get_epsilon(delta))


def _bounds(phases: tuple[Phase, ...], delta: float) -> tuple[float, float | None, float | None, list[str]]:
    """RDP, exact Gaussian and PLD bounds of the history, and notes on those that do not apply."""
    if not phases:
        return 0.0, None, 0.0, ["no step was performed."]
    if _without_privacy(phases):
        note = f"a step with a noise multiplier below {MIN_NOISE_MULTIPLIER} gives no privacy."
        return math.inf, None, math.inf, [note]
    notes: list[str] = []
    if len(phases) > MAX_PHASES:
        notes.append(f"{len(phases)} different mechanisms were rounded to 3 digits, on the safe side.")
        phases = coarsen(phases)
    accountant = rdp_accountant(phases)
    rdp = float(accountant.get_epsilon(delta))
    if not any(phase.sampled for phase in phases):
        exact = gaussian_bound(phases, delta=delta)
        notes.append(exact.note or "every step uses every example: the exact curve is known, PLD not needed.")
        return rdp, exact.epsilon, None, notes
    pld = _pld_if_it_can_help(phases, delta, rdp, reach=float(accountant.get_epsilon(1e-15)))
    if pld.note:
        notes.append(pld.note)
    return rdp, None, pld.epsilon, notes


def _replace_bounds(
    phases: tuple[Phase, ...], delta: float
) -> tuple[float | None, float | None, float | None, list[str]]:
    """The same under replace-one, where sampled steps have a PLD only."""
    if not phases or _without_privacy(phases):
        return _bounds(phases, delta)
    if len(phases) > MAX_PHASES:
        phases = coarsen(phases)
    rdp, exact, pld = replace_one_bounds(phases, delta=delta)
    notes = ["the sum moves by up to twice a unit's bound when one is replaced.", exact.note, pld.note]
    if rdp is None and exact.epsilon is None and pld.epsilon is None:
        raise AccountingError(
            f"No trustworthy epsilon is known under replace-one here: {pld.note} Ask for a larger delta, or "
            "for zero-out or add-or-remove, which have a second accountant.",
            code="no-bound",
        )
    return rdp, exact.epsilon, pld.epsilon, [note for note in notes if note]


def _without_privacy(phases: tuple[Phase, ...]) -> bool:
    return any(phase.noise_multiplier < MIN_NOISE_MULTIPLIER for phase in phases)


def _pld_if_it_can_help(phases: tuple[Phase, ...], delta: float, rdp: float, *, reach: float) -> Bound:
    if rdp == 0.0:
        return Bound(None, "RDP already gives 0: PLD not needed.")
    if not math.isfinite(reach) or len(phases) > MAX_PHASES:
        return Bound(None, "PLD skipped: too many mechanisms or too little noise; RDP is reported.")
    return pld_bound(phases, delta=delta, guess=rdp, reach=reach)
