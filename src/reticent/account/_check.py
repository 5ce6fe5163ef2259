"""One comparison of an epsilon with another opinion.

Room: account.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: whether it holds (None if it does not apply here), and the numbers."""

    name: str
    holds: bool | None
    detail: str
