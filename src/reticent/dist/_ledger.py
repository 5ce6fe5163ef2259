"""One ledger for all ranks: the leader's file, which the others follow.

Room: dist. May import `reticent.account` and the floors below.
"""

from collections.abc import Callable, Mapping
from typing import Any

from reticent.account import Segments, first_steps
from reticent.account.ledger import Ledger, LedgerView
from reticent.errors import LedgerError
from reticent.records import Mechanism, NeighbouringRelation

from ._ranks import Ranks


class RanksLedger:
    """A `Ledger` that every rank reads and appends to together; only the leader has the file.

    All methods that append are collective.

    Args:
        ranks: who shares it.
        opened: the ledger on the leader; None on the others.
        planned: what the steps of the plan do to the data, in order; a ledger that holds anything else is
            refused.

    Guarantee:
        When an `append_...` returns, on any rank, the leader's line is on disk. If it fails there, it fails
        everywhere, and the step must not be taken.
    """

    def __init__(self, ranks: Ranks, opened: Ledger | None, *, planned: Segments) -> None:
        self._ranks, self._opened, self._planned = ranks, opened, tuple(planned)
        ranks.first(lambda: _refuse_others(opened, planned))
        about = None if opened is None else _about(opened)
        self._about: dict[str, Any] = ranks.tell(about)
        self._refresh()

    def append_step(self, mechanism: Mechanism) -> int:
        """Spend one step; see `Ledger.append_step`."""
        *_, (expected, _) = first_steps(self._planned, self.num_steps + 1)
        if mechanism != expected:
            raise LedgerError(
                f"The ranks' ledger is for {expected} here, and the step's mechanism is {mechanism}.",
                code="ledger-plan",
            )
        self._append(lambda ledger: ledger.append_step(mechanism))
        return self.num_steps

    def append_resume(self, *, checkpoint_step: int) -> None:
        """Note that the run goes on from a checkpoint; see `Ledger.append_resume`."""
        self._append(lambda ledger: ledger.append_resume(checkpoint_step=checkpoint_step))

    def _append(self, append: Callable[[Ledger], Any]) -> None:
        opened = self._opened
        self._ranks.first(lambda: None if opened is None else append(opened))
        self._refresh()

    def _refresh(self) -> None:
        opened = self._opened
        now = (
            None if opened is None else [opened.num_steps, opened.num_lost, opened.head, opened.reproducible]
        )
        self._num_steps, self._num_lost, self._head, self._reproducible = self._ranks.tell(now)

    def segments(self) -> tuple[tuple[Mechanism, int], ...]:
        """What was spent."""
        return first_steps(self._planned, self._num_steps)

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self._about["run_id"]

    @property
    def relation(self) -> NeighbouringRelation:
        """Neighbouring relation of the guarantee."""
        return NeighbouringRelation(self._about["relation"])

    @property
    def delta(self) -> float:
        """Delta of the guarantee."""
        return self._about["delta"]

    @property
    def planned_steps(self) -> int:
        """Steps the plan allows."""
        return self._about["planned_steps"]

    @property
    def public(self) -> Mapping[str, Any]:
        """Public settings noted at the start."""
        return self._about["public"]

    @property
    def reproducible(self) -> bool:
        """True if the noise can be regenerated."""
        return self._reproducible

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._head

    @property
    def num_steps(self) -> int:
        """Steps spent, lost ones included."""
        return self._num_steps

    @property
    def num_lost(self) -> int:
        """Steps spent whose effect is not in the weights."""
        return self._num_lost

    def close(self) -> None:
        """Let go of the file, on the leader."""
        if self._opened is not None:
            self._opened.close()

    def __repr__(self) -> str:
        return f"RanksLedger({self._ranks!r}, num_steps={self.num_steps}/{self.planned_steps})"


def _refuse_others(opened: Ledger | None, planned: Segments) -> None:
    """Refuse a ledger with steps that the followers would not hear of."""
    if opened is None:
        return
    entered, expected = (first_steps(s, opened.num_steps) for s in (opened.segments(), planned))
    if entered != expected:
        raise LedgerError(
            f"The ledger holds steps of {_in_words(entered)}, and the plan's are {_in_words(expected)}. Use "
            "the plan it was made for, or start a new ledger.",
            code="ledger-plan",
        )


def _in_words(segments: Segments) -> str:
    return ", then ".join(f"{count} of {mechanism}" for mechanism, count in segments)


def _about(ledger: Ledger | LedgerView) -> dict[str, Any]:
    return {
        "run_id": ledger.run_id,
        "relation": str(ledger.relation),
        "delta": ledger.delta,
        "planned_steps": ledger.planned_steps,
        "public": dict(ledger.public),
    }
