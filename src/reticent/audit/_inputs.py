"""Input-space canaries: strange rows put into the data by fair coins, and told apart by their loss.

Room: audit. May import NumPy, `reticent.{records,errors}` and the room's own files; never torch, so that any
trainer can be audited that takes arrays and says how well its model fits a row.

Shape letters (this file): N row, M canary.

Sources:
    [1] Steinke, Nasr, Jagielski 2023, arXiv:2305.08846 (one run, "blank" and mislabelled inputs).
    [2] Yeom et al. 2018, arXiv:1709.01604 (members have lower loss).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from reticent.errors import AuditError, ConfigError
from reticent.records import Mechanism

from ._recording import LowerBound, one_run_bound, require_both


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Labelled rows.

    Args:
        x: inputs, shape (N, ...).
        y: labels, shape (N,).

    Raises:
        ConfigError[audit-counts]: not one label for each input.
    """

    x: npt.NDArray[Any] = field(repr=False)
    y: npt.NDArray[Any] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ConfigError(
                f"Labelled rows need one label for each input; got {len(self.x)} inputs and {len(self.y)} "
                "labels.",
                code="audit-counts",
            )

    def __len__(self) -> int:
        return len(self.y)

    def where(self, chosen: npt.NDArray[Any]) -> "Examples":
        """The rows that a mask or indices choose."""
        return Examples(x=self.x[chosen], y=self.y[chosen])

    def and_(self, other: "Examples") -> "Examples":
        """These rows, then the others."""
        return Examples(x=np.concatenate([self.x, other.x]), y=np.concatenate([self.y, other.y]))


class SomeRows(Protocol):
    """Rows of any kind that can be chosen from and put together, as `Examples` can."""

    def __len__(self) -> int: ...

    def where(self, chosen: npt.NDArray[Any]) -> Self: ...

    def and_(self, other: Self) -> Self: ...


_Any = TypeVar("_Any", bound=SomeRows)
Losses: TypeAlias = Callable[[Examples], npt.NDArray[np.float64]]
InputTrainer: TypeAlias = Callable[[Examples], Losses]
Inputs: TypeAlias = Literal["mislabelled", "out of distribution", "random tokens"]  # kinds of canaries


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneRun:
    """What one run with canaries by fair coins showed.

    Args:
        bound: the lower bound on epsilon.
        evidence: for each canary, how much speaks for "in", shape (M,): less its loss.
        member: the coins, shape (M,).
    """

    bound: LowerBound
    evidence: npt.NDArray[np.float64] = field(repr=False)
    member: npt.NDArray[np.bool_] = field(repr=False)


def mislabelled(rows: Examples, *, num_classes: int, seed: int) -> Examples:
    """The same inputs, each with a label drawn from all others: what only memory can fit."""
    rng = np.random.default_rng(seed)
    shift = rng.integers(1, num_classes, size=len(rows))
    return Examples(x=rows.x, y=((rows.y + shift) % num_classes).astype(rows.y.dtype))


def out_of_distribution(rows: Examples, *, num: int, num_classes: int, seed: int) -> Examples:
    """Inputs of independent uniform noise over each coordinate's public range, with labels at random.

    Args:
        rows: give shape, kind and range of the inputs; nothing else of them is used.
        num: how many to make.
        num_classes: labels are 0 to `num_classes` - 1.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    low, high = float(rows.x.min()), float(rows.x.max())
    x = rng.uniform(low, high, size=(num, *rows.x.shape[1:])).astype(rows.x.dtype)
    return Examples(x=x, y=rng.integers(num_classes, size=num).astype(rows.y.dtype))


def one_run_inputs(
    train: Callable[[_Any], Callable[[_Any], npt.NDArray[np.float64]]],
    rows: _Any,
    canaries: _Any,
    *,
    delta: float,
    confidence: float,
    mechanism: Mechanism | None = None,
    num_steps: int = 1,
    seed: int | None = None,
) -> OneRun:
    """Train once on `rows` and a random half of the canaries; bound epsilon by telling the halves apart [1].

    A canary's score is its loss, lower for members [2]; nothing of the training is seen.

    Args:
        train: labelled rows -> a function that gives each of other labelled rows its loss, shape (N,), or
            what else is lower for rows that it has seen. Rows come in random order.
        rows: ordinary rows, always in the data; may be none.
        canaries: each in the data by its own fair coin.
        delta: of the claim.
        confidence: one minus the chance of a false alarm.
        mechanism: the claimed kind of step, for the tighter bound; see `one_run_bound`.
        num_steps: steps of the claim; only with `mechanism`.
        seed: of coins and order; by default from the operating system.

    Guarantee:
        Above the trainer's true epsilon with probability at most 1 - confidence, whatever the canaries.

    Raises:
        AuditError[audit-scores]: a loss is NaN, or there is not one for each canary.
        AuditError[audit-saw-nothing]: all coins fell alike, as they always do of fewer than 2 canaries, or
            all losses are the same.
    """
    rng = np.random.default_rng(seed)
    member = rng.random(len(canaries)) < 0.5
    require_both(member, "were put into the data by their coins")
    given = rows.and_(canaries.where(member))
    losses = train(given.where(rng.permutation(len(given))))
    if not callable(losses):
        raise AuditError(
            "A trainer under input-space audit returns a function from labelled rows to their losses; this "
            f"one returned a {type(losses).__name__}.",
            code="audit-function",
        )
    evidence = -np.asarray(losses(canaries), dtype=np.float64)
    if evidence.shape != member.shape or np.isnan(evidence).any():
        raise AuditError(
            f"An audit of {len(canaries)} canaries needs one loss for each, and none NaN; got shape "
            f"{evidence.shape}.",
            code="audit-scores",
        )
    if np.unique(evidence).size == 1:
        raise AuditError(
            f"All {len(canaries)} canaries have the same score ({evidence[0]:.3g}), so nothing can be told "
            "from them: the trainer did not train what is scored, training has diverged, or the score is "
            "too coarse.",
            code="audit-saw-nothing",
        )
    bound = one_run_bound(
        evidence, member, delta=delta, confidence=confidence, mechanism=mechanism, num_steps=num_steps
    )
    return OneRun(bound=bound, evidence=evidence, member=member)
