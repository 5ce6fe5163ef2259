"""Differentially private training for PyTorch.

The front door: every name below is imported from its room when it is first used (PEP 562), so that
`import reticent`, planning and accounting never wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reticent.account import epsilon
    from reticent.account.ledger import Ledger, read_ledger
    from reticent.clip import ClipEngine, clipped_sum, fix
    from reticent.clipping import (
        AdaptiveClipping,
        AutomaticClipping,
        FlatClipping,
        GroupedClipping,
        PerLayerClipping,
    )
    from reticent.errors import (
        AccountingError,
        AuditError,
        BudgetExhausted,
        CheckpointError,
        ConfigError,
        CoupledExamples,
        DataError,
        LedgerError,
        ReticentError,
        StepError,
        UnsupportedModel,
    )
    from reticent.plan import Plan
    from reticent.records import Budget
    from reticent.sample import FullBatchSampler, PoissonSampler
    from reticent.train import PrivateStep, train

__version__: Final = "0.1.0"

__all__ = [
    "AccountingError",
    "AdaptiveClipping",
    "AuditError",
    "AutomaticClipping",
    "Budget",
    "BudgetExhausted",
    "CheckpointError",
    "ClipEngine",
    "ConfigError",
    "CoupledExamples",
    "DataError",
    "FlatClipping",
    "FullBatchSampler",
    "GroupedClipping",
    "Ledger",
    "LedgerError",
    "PerLayerClipping",
    "Plan",
    "PoissonSampler",
    "PrivateStep",
    "ReticentError",
    "StepError",
    "UnsupportedModel",
    "__version__",
    "clipped_sum",
    "epsilon",
    "fix",
    "read_ledger",
    "train",
]


# Rooms that `reticent.NAME` finds without an import of their own; `train` is the function and the room.
_ROOMS: Final = frozenset(
    (
        *("account", "audit", "clip", "clipping", "cost", "data", "dist", "errors", "noise", "optim"),
        *("plan", "records", "report", "rules", "sample"),
    )
)


def _room_of(name: str) -> str | None:
    match name:
        case "Budget":
            return "records"
        case (
            "AdaptiveClipping" | "AutomaticClipping" | "FlatClipping" | "GroupedClipping" | "PerLayerClipping"
        ):
            return "clipping"
        case "FullBatchSampler" | "PoissonSampler":
            return "sample"
        case "epsilon":
            return "account"
        case "Ledger" | "read_ledger":
            return "account.ledger"
        case "Plan":
            return "plan"
        case "ClipEngine" | "clipped_sum" | "fix":
            return "clip"
        case "PrivateStep" | "train":
            return "train"
        case _:
            return "errors" if name in __all__ else None


def __getattr__(name: str) -> object:
    room = _room_of(name)
    if room is None:
        if name in _ROOMS:
            return import_module(f"reticent.{name}")
        raise AttributeError(f"module 'reticent' has no attribute {name!r}")
    return getattr(import_module(f"reticent.{room}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
