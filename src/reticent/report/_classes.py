"""What a run's result says of each class: which are known well, and which the mean hides.

Room: report.
"""

from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from reticent.report._plots import classes_plot
from reticent.report._run import Run

_MOST_BARS: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ByClass:
    """Classes, the worst known first.

    Args:
        rows: (name, accuracy, area under the ROC curve or None).
        num_without: classes that no test row has.
        plot: of all classes, or of the worst and the best if they are many.
        num_left_out: classes between those, which the plot does not show.
    """

    rows: tuple[tuple[str, float, float | None], ...]
    num_without: int
    plot: Markup
    num_left_out: int


def by_class(run: Run) -> ByClass | None:
    """The classes of a run that says how well it knows each, at least two of them; else None."""
    if run.result is None:
        return None
    accuracies = run.result.test_class_accuracy
    areas = run.result.test_auc_by_class
    areas = areas if len(areas) == len(accuracies) else [None] * len(accuracies)
    names = run.about.data.get("classes")
    if not isinstance(names, list) or len(names) != len(accuracies):
        names = [f"class {k}" for k in range(len(accuracies))]
    known = [
        (str(name), accuracy, area)
        for name, accuracy, area in zip(names, accuracies, areas, strict=True)
        if accuracy is not None
    ]
    if len(known) < 2:
        return None
    rows = tuple(sorted(known, key=lambda row: row[1]))
    shown = rows if len(rows) <= _MOST_BARS else (*rows[: _MOST_BARS // 2], *rows[-(_MOST_BARS // 2) :])
    plot = classes_plot([(name, accuracy) for name, accuracy, _ in shown], mean=run.result.test_accuracy)
    return ByClass(
        rows=rows,
        num_without=len(accuracies) - len(known),
        plot=Markup(plot),
        num_left_out=len(rows) - len(shown),
    )
