"""Several releases from the same data: runs that add up.

Room: account. May import `reticent.records`; never torch. The best of many trials is `_select`'s.
"""

import dataclasses
import math
from collections.abc import Sequence

from reticent.account._epsilon import epsilon
from reticent.account._ledger_chain import LedgerView
from reticent.errors import LedgerError
from reticent.records import EpsilonReport


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
