"""What the private runs of a sweep cost together, read from their ledgers.

Room: sweep. May import `reticent.{account,records}`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reticent.account import compose_runs
from reticent.account.ledger import LedgerView, read_run_ledger


def ledgers_under(folder: Path) -> list[LedgerView]:
    """Every ledger of a run under `folder`, those of runs that failed included.

    Raises:
        LedgerError: one is damaged. Then nothing can be said.
    """
    return [read_run_ledger(path.parent) for path in sorted(folder.glob("**/ledger.jsonl"))]


def cost_of_everything(ledgers: Sequence[LedgerView]) -> dict[str, Any]:
    """Epsilon of publishing every run's weights and scores, as JSON values.

    Guarantee:
        By composition of every step in every ledger, at the largest of their deltas; None where a
        ledger's noise can be reproduced.
    """
    if not ledgers:
        return {"epsilon_one": None, "epsilon_all": None, "delta": None, "num_ledgers": 0}
    delta = max(ledger.delta for ledger in ledgers)
    total = compose_runs(ledgers, delta=delta)
    ones = [compose_runs([ledger]).epsilon for ledger in ledgers]
    return {
        "epsilon_one": max(ones) if math.isfinite(max(ones)) else None,
        "epsilon_all": total.epsilon if math.isfinite(total.epsilon) else None,
        "delta": delta,
        "neighbouring_relation": str(total.neighbouring_relation),
        "accountant": total.accountant,
        "num_ledgers": len(ledgers),
    }
