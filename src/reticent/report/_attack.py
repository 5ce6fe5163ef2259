"""What the ledger's steps leave to an attacker: the trade-off of the two errors, drawn and as a table.

Room: report.
"""

import math
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from reticent.account import risk
from reticent.report._plots import attack_plot
from reticent.report._run import Run
from reticent.report._statement import Statement

Points = tuple[tuple[float, float], ...]

_SHOWN: Final = (1e-3, 1e-2, 0.05, 0.1, 0.5)  # false alarm rates of the table
_DRAWN: Final = tuple(sorted({*_SHOWN, 1e-6, 1e-4, *(k / 400 for k in range(1, 200))}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Bounds on every test of whether one example took part.

    Args:
        rows: (false alarm rate; hit rate at most, from the steps; the same from epsilon and delta alone).
        accuracy: at most so many guesses at even odds are right.
        source: where the bounds come from.
        plot: least misses against false alarms, as SVG.
    """

    rows: tuple[tuple[float, float, float], ...]
    accuracy: float
    source: str
    plot: Markup


def attack(run: Run, statement: Statement) -> Attack | None:
    """The trade-off that the ledger's steps leave; None where nothing is promised.

    Guarantee:
        No curve is below what is true of the steps: the misses shown are those that no test undercuts. Of
        a run that was kept as the best of several only epsilon and delta are known, and used.
    """
    report = statement.report
    if run.ledger is None or report is None or not statement.private:
        return None
    alone = tuple((a, _misses(a, report.epsilon, report.delta)) for a in _DRAWN)
    advantage = 1.0 - 2.0 * (1.0 - report.delta) / (1.0 + math.exp(min(report.epsilon, 700.0)))
    steps, source = alone, "ε and δ alone"
    if run.selection is None:
        found = risk(report, tuple(run.ledger.segments()), alphas=_DRAWN)
        steps = tuple((a, max(b, c)) for (a, b), (_, c) in zip(found.trade_off, alone, strict=True))
        advantage, source = min(advantage, found.advantage), found.source
    hits = {a: (1.0 - b, 1.0 - c) for (a, b), (_, c) in zip(steps, alone, strict=True)}
    return Attack(
        rows=tuple((a, *hits[a]) for a in _SHOWN),
        accuracy=(1.0 + advantage) / 2.0,
        source=source,
        plot=Markup(attack_plot(_whole(steps), _whole(alone), epsilon=report.epsilon, delta=report.delta)),
    )


def _misses(alpha: float, epsilon: float, delta: float) -> float:
    """Least false negative rate of a test of an (epsilon, delta)-DP release at false positive rate alpha."""
    grown = math.exp(min(epsilon, 700.0))
    return max(0.0, 1.0 - delta - grown * alpha, (1.0 - delta - alpha) / grown)


def _whole(points: Points) -> Points:
    """The curve on both sides of its diagonal: what bounds misses bounds false alarms alike."""
    return tuple(sorted({p for a, b in points for p in ((a, b), (b, a))}, key=lambda p: (p[0], -p[1])))
