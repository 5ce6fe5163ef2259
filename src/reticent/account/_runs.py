"""Several releases from the same data: runs that add up, and the best of many trials.

Room: account. May import `reticent.records` and dp-accounting; never torch.

Sources:
    [1] Papernot, Steinke 2021, arXiv:2110.03620 (private selection among a random number of trials).
"""

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version

from dp_accounting import dp_event

from reticent.account._bounds import rdp_accountant, rdp_accountant_of
from reticent.account._epsilon import epsilon
from reticent.account._events import MIN_NOISE_MULTIPLIER, Segments, check_relation, merge_phases, to_event
from reticent.account._ledger_chain import LedgerView
from reticent.errors import ConfigError, LedgerError
from reticent.records import EpsilonReport, NeighbouringRelation, check_delta


def compose_runs(ledgers: Sequence[LedgerView], *, delta: float | None = None) -> EpsilonReport:
    """Epsilon of several runs on the same data, together: against whoever sees all their results.

    Args:
        ledgers: what each run's ledger says; at least one.
        delta: of the whole statement. Without it, the ledgers' own, which must then be equal.

    Returns:
        The report; infinite if one of the runs can be reproduced.

    Guarantee:
        Not below the true epsilon of all steps in all ledgers, also when later runs were chosen by what
        earlier ones gave, as long as each run's plan was fixed before it began.

    Raises:
        LedgerError[ledgers-differ]: the ledgers state different relations or privacy units, or different
            deltas and none is given, or one run is given twice, or none at all.
    """
    if not ledgers:
        raise _differ("none was given")
    names = [ledger.run_id for ledger in ledgers]
    twice = sorted({name for name in names if names.count(name) > 1})
    relations = sorted({ledger.relation.value for ledger in ledgers})
    deltas = sorted({ledger.delta for ledger in ledgers})
    units = sorted({str(ledger.public.get("unit", "example")) for ledger in ledgers})
    if twice:
        raise _differ(f"run {', '.join(twice)} is given twice")
    if len(relations) > 1:
        raise _differ(f"they speak of different neighbours ({', '.join(relations)})")
    if len(units) > 1:
        raise _differ(f"their privacy units differ ({', '.join(units)})")
    if delta is None and len(deltas) > 1:
        raise _differ(f"they have different deltas ({', '.join(f'{d:g}' for d in deltas)}): name one")
    segments = [segment for ledger in ledgers for segment in ledger.segments()]
    report = epsilon(segments, delta=deltas[0] if delta is None else delta, relation=ledgers[0].relation)
    open_ones = [ledger.run_id for ledger in ledgers if ledger.reproducible]
    if not open_ones:
        return report
    note = f"noise of run {', '.join(open_ones)} is reproducible from a seed: together they are not private."
    return dataclasses.replace(
        report, epsilon=math.inf, epsilon_rdp=None, epsilon_pld=None, notes=(*report.notes, note)
    )


def _differ(problem: str) -> LedgerError:
    return LedgerError(
        f"These ledgers have no epsilon together: {problem}. Give each run on the data once, all with one "
        "neighbouring relation.",
        code="ledgers-differ",
    )


def selection_epsilon(
    segments: Segments,
    *,
    mean: float,
    shape: float,
    delta: float,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE,
) -> EpsilonReport:
    """Epsilon of the best of a random number of runs, where only that run and its score are released [1].

    The number of runs must be *drawn* from the law named here, in secret; a number that was chosen costs
    the composition of all runs.

    Args:
        segments: what the largest single trial does to the data.
        mean: mean number of trials; finite, > 1.
        shape: 1 for the geometric law, 0 for the logarithmic one, in between or above for the truncated
            negative binomial, infinity for Poisson.
        delta: strictly between 0 and 1.
        relation: the neighbouring relation of the statement; not replace-one.

    Returns:
        The report, by RDP; no PLD of a selection is known.

    Raises:
        ConfigError[selection]: `mean` or `shape` mean nothing.
        ConfigError: as `epsilon`.
    """
    check_delta(delta)
    relation = check_relation(relation)
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise ConfigError("No bound is known for a selection under replace-one.", code="relation")
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (mean, shape))
    if not numbers or not (math.isfinite(mean) and mean > 1.0) or not shape >= 0.0:
        raise ConfigError(
            f"A selection needs a finite mean number of trials > 1 and a shape >= 0, got mean={mean!r} and "
            f"shape={shape!r}.",
            code="selection",
        )
    phases = merge_phases(segments)
    num_steps = sum(phase.num_steps for phase in phases)
    if any(phase.noise_multiplier < MIN_NOISE_MULTIPLIER for phase in phases):
        value = math.inf
    elif not phases:
        value = 0.0
    else:
        rdp_accountant(phases)  # refuses what cannot be composed before it is hidden in a selection
        event = dp_event.RepeatAndSelectDpEvent(to_event(phases), float(mean), float(shape))
        value = float(rdp_accountant_of(event, num_steps=num_steps).get_epsilon(delta))
    return EpsilonReport(
        epsilon=value,
        delta=delta,
        epsilon_rdp=value,
        epsilon_pld=None,
        neighbouring_relation=relation,
        accountant=f"RDP of a selection (dp-accounting {version('dp-accounting')})",
        num_steps=num_steps,
        notes=(f"of the best of a random number of trials, {mean:g} on average, shape {shape:g}.",),
    )
