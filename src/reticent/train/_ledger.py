"""How the joint makes a plan's ledger, checks that the two belong together, and reads epsilon from it.

Room: train. May import `reticent.{account,plan}` and the floors below.
"""

import dataclasses
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reticent.account import Segments, checked_epsilon, epsilon, first_steps
from reticent.account.ledger import Ledger, LedgerView
from reticent.dist import RanksLedger
from reticent.errors import LedgerError
from reticent.plan import ROW, Plan
from reticent.records import EpsilonReport


def new_run_id() -> str:
    """A name for a run; random, and unrelated to every key."""
    return secrets.token_hex(8)


def create_ledger(
    path: Path, plan: Plan, *, run_id: str, reproducible: bool, not_private: Sequence[str] = ()
) -> Ledger:
    """Make the ledger of a plan; what it says of the data is the plan's public constants.

    `not_private` names what the run shows of its training rows without noise, e.g. "norms".
    """
    return Ledger.create(
        path,
        run_id=run_id,
        relation=plan.relation,
        delta=plan.delta,
        num_steps=plan.num_steps,
        reproducible=reproducible,
        public={**_public(plan), **({"not_private": list(not_private)} if not_private else {})},
    )


def new_ledger(path: Path, plan: Plan, *, reproducible: bool, not_private: Sequence[str] = ()) -> Ledger:
    """Make the ledger of a run without a folder of its own, in a file (`.jsonl`) or a folder.

    Raises:
        LedgerError[ledger-exists]: there is one already.
    """
    path = path if path.suffix == ".jsonl" else path / "ledger.jsonl"
    if path.exists():
        raise LedgerError(
            f"'{path}' exists already. For a new run choose another place; to go on with that one, pass "
            "Ledger.open(path) after append_resume(checkpoint_step=...).",
            code="ledger-exists",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return create_ledger(path, plan, run_id=new_run_id(), reproducible=reproducible, not_private=not_private)


def _public(plan: Plan) -> dict[str, Any]:
    """The plan's public constants that are in no mechanism."""
    public: dict[str, Any] = {
        "clipping": plan.describe()["clipping"],
        "expected_batch_size": plan.of_steps(lambda kind: kind.expected_batch_size),
    }
    if plan.at(0).count_noise_multiplier is not None:
        public["gradient_noise_multiplier"] = plan.of_steps(lambda kind: kind.gradient_noise_multiplier)
        public["count_noise_multiplier"] = plan.of_steps(lambda kind: kind.count_noise_multiplier)
    if plan.stages():
        public["stages"] = plan.stages()
    if plan.unit != ROW:
        public["unit"] = plan.unit
    if plan.sampler.num_examples is not None:
        public["num_examples"] = plan.sampler.num_examples
    return public


def check_ledger(
    ledger: Ledger | RanksLedger | LedgerView,
    plan: Plan,
    *,
    reproducible: bool,
    run_id: str | None = None,
    not_private: Sequence[str] = (),
) -> None:
    """Refuse a ledger in which this plan's steps would be entered under another claim.

    Raises:
        LedgerError[ledger-plan]: planned steps, relation, delta, a noted constant, an entered mechanism or
            the run's name (if given) differ; the noise is reproducible, or the run would show more of its
            training rows without noise (`not_private`), and the ledger does not say so.
    """
    wrong = [
        f"{name} {theirs} (plan: {ours})"
        for name, theirs, ours in (
            ("num_steps", ledger.planned_steps, plan.num_steps),
            ("relation", ledger.relation, plan.relation),
            ("delta", ledger.delta, plan.delta),
            ("run_id", ledger.run_id, ledger.run_id if run_id is None else run_id),
            ("unit", ledger.public.get("unit", ROW), plan.unit),
            *((name, ledger.public.get(name, ours), ours) for name, ours in _public(plan).items()),
        )
        if theirs != ours
    ]
    entered, planned = first_steps(ledger.segments(), ledger.num_steps), plan.segments(ledger.num_steps)
    if entered != planned:
        wrong.append(f"entered {_in_words(entered)} (plan: {_in_words(planned)})")
    if reproducible and not ledger.reproducible:
        wrong.append("claims privacy (this run's noise or sampling is reproducible)")
    noted = ledger.public.get("not_private")
    hidden = [name for name in not_private if not (isinstance(noted, list) and name in noted)]
    if hidden:
        wrong.append(f"does not note that the run shows {', '.join(hidden)} of its training rows")
    if wrong:
        raise LedgerError(
            f"The ledger was not made for this plan: {'; '.join(wrong)}. Use the plan it was made for, or "
            "start a new ledger.",
            code="ledger-plan",
        )


def _in_words(segments: Segments) -> str:
    return ", then ".join(f"{count} of {mechanism}" for mechanism, count in segments) or "nothing"


def ledger_epsilon(ledger: Ledger | RanksLedger | LedgerView, *, final: bool = False) -> EpsilonReport:
    """The epsilon of the steps a ledger holds; infinite if they can be reproduced.

    Raises:
        AccountingError[accountants-disagree]: it is `final`, and its cross-checks do not hold.
    """
    compute = checked_epsilon if final else epsilon
    report = compute(ledger.segments(), delta=ledger.delta, relation=ledger.relation)
    if not ledger.reproducible:
        return report
    note = "Noise and sampling are reproducible from a seed: this run is not private."
    return dataclasses.replace(
        report, epsilon=math.inf, epsilon_rdp=None, epsilon_pld=None, notes=(*report.notes, note)
    )
