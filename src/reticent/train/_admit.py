"""Which batch a private step takes: the plan's next one, as its sampler drew it, and no other.

Room: train. May import `reticent.plan` and the floors below.
"""

from typing import Any

import numpy as np

from reticent.errors import BudgetExhausted, StepError
from reticent.plan import ROW, LogicalBatch, Plan

from . import _rows


def refuse_spent(plan: Plan, num_steps: int) -> None:
    """Refuse a step beyond the plan's last.

    Raises:
        BudgetExhausted[budget-exhausted]: the ledger holds every step of the plan.
    """
    if num_steps >= plan.num_steps:
        raise BudgetExhausted(
            f"The plan allows {plan.num_steps} steps and the ledger holds {num_steps}: nothing is left to "
            "spend. Make a new plan with a larger budget, on a new ledger.",
            code="budget-exhausted",
        )


def refuse_foreign(batch: LogicalBatch, plan: Plan, *, num_steps: int, reproducible: bool) -> None:
    """Refuse a batch whose sampling is not the one that the next step is accounted for.

    Args:
        batch: what was given as the next batch.
        plan: whose batches they must be.
        num_steps: steps in the ledger; the number of the next batch.
        reproducible: the ledger says that its steps can be repeated, and claims nothing.

    Raises:
        StepError[foreign-batch]: not a batch of this plan's sampler in that step, or with a row in it twice.
        StepError[privacy-unit]: the data set's items are not the units that the plan names.
        StepError[reproducible-batch]: its draw can be repeated, and the ledger claims privacy.
        StepError[batch-order]: not the batch whose turn it is.
    """
    known = isinstance(batch, LogicalBatch) and 0 <= batch.step < plan.num_steps
    if not known or batch.sampler != plan.at(batch.step).sampler:
        raise StepError(
            "The batch does not come from this plan, so its sampling is not the one accounted for. "
            "Loop over plan.batches(data_set).",
            code="foreign-batch",
        )
    if not _is_draw(batch.indices, _rows.num_rows(batch.dataset)):
        raise StepError(
            "The batch's indices are no draw: a row is named twice, or is not in the data set. An "
            "example that is in a sum twice moves it by twice the bound. Loop over "
            "plan.batches(data_set).",
            code="foreign-batch",
        )
    check_unit(batch.dataset, plan)
    if not (batch.private or reproducible):
        raise StepError(
            "The batch was drawn from a reproducible stream, and the ledger claims privacy: who can tell "
            "which examples took part gains nothing from sampling. Leave `stream` out of plan.batches, "
            "or make a ledger with reproducible=True.",
            code="reproducible-batch",
        )
    if batch.step != num_steps:
        raise StepError(
            f"This is the plan's batch {batch.step}, and batch {num_steps} is next: a batch may be "
            "neither used twice nor skipped. After a resume, or a block left by an exception, go on with "
            "plan.batches(data_set, start=private.num_steps).",
            code="batch-order",
        )


def refuse_late(batch: LogicalBatch, *, num_steps: int) -> None:
    """Refuse to release a batch after the ledger has moved on: that entry would be of a step not its own.

    Raises:
        StepError[batch-order]: something else spent a step of this ledger while the batch's step was open.
    """
    if batch.step != num_steps:
        raise StepError(
            f"While the step of batch {batch.step} was open, something else spent a step of its ledger, "
            f"which holds {num_steps} now: the batch would be entered as another step than its own. "
            "Open one step of a ledger at a time; nothing of this one was released.",
            code="batch-order",
        )


def check_unit(dataset: Any, plan: Plan) -> None:
    """Refuse a data set whose items are not the units that the plan's guarantee speaks of."""
    unit = dataset.unit if isinstance(dataset, _rows.Units) else ROW
    if unit != plan.unit:
        raise StepError(
            f"The plan's privacy unit is '{plan.unit}', and an item of the data set is one '{unit}': the "
            "guarantee would be claimed for the wrong thing. For users, give a UserRows and a plan with "
            "unit='user', whose sampler counts users.",
            code="privacy-unit",
        )


def _is_draw(indices: np.ndarray, num_rows: int) -> bool:
    """Whether these are rows of the data set, each once, in order: what every sampler draws."""
    plain = indices.ndim == 1 and indices.dtype == np.int64
    return plain and (
        not len(indices) or bool(indices[0] >= 0 and indices[-1] < num_rows and (np.diff(indices) > 0).all())
    )
