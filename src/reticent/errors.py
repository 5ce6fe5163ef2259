"""Every error Reticent raises: one class for each kind of mistake, one code for each mistake.

Room: errors (floor 0). Imports nothing of ours.

A message says what is wrong and where, the value seen, and the way out. Settings and shapes may
appear in it (only the operator reads them); tensor values, labels and records never do. `code` is
a heading in `docs/errors.md`; a test compares the two lists.
"""

from typing import Final


class ReticentError(Exception):
    """Base of all our errors. `code` names the mistake, e.g. `clip-norm`."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code: Final = code

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.code}]"


class ConfigError(ReticentError, ValueError):
    """A setting is missing, misspelt, out of range, or contradicts another one."""


class AccountingError(ReticentError, ValueError):
    """No trustworthy privacy bound exists for what was asked."""


class UnsupportedModel(ReticentError, TypeError):
    """The model does something for which one example's influence cannot be bounded exactly."""


class CoupledExamples(ReticentError, ValueError):
    """One example's loss or gradient depends on other examples of the batch."""


class StepError(ReticentError, RuntimeError):
    """The parts of a private step were used in an order that would break the guarantee."""


class BudgetExhausted(ReticentError, RuntimeError):
    """The ledger already holds every step that the plan allows."""


class LedgerError(ReticentError, RuntimeError):
    """The ledger is missing, damaged, locked, or not the one that belongs to this run."""


class CheckpointError(ReticentError, RuntimeError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class DataError(ReticentError, ValueError):
    """A data set cannot be fetched, read or trusted."""


class AuditError(ReticentError, RuntimeError):
    """An audit could not measure what it was asked to."""
