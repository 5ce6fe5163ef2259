"""Plots as inline SVG: readable in light and dark, with a title and a description for screen readers.

Room: report; matplotlib is imported here and nowhere else, without its global state (no pyplot).
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reticent.report._figures import round_up

Points = Sequence[tuple[int, float]]

# Colours that matplotlib draws with and the page's style sheet replaces (light and dark differ).
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#010a01", "#010a02", "#010a03", "#010a04", "#010a05", "#010a06")
MOST_SERIES = len(_SERIES)
_VARIABLES = {
    _INK: "var(--ink)",
    _GRID: "var(--line)",
    **{color: f"var(--series-{k})" for k, color in enumerate(_SERIES, start=1)},
}
# Series differ without colour too.
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (8, 2, 1, 2)), (0, (3, 1)), (0, (10, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_SIZE = (4.8, 3.1)  # inches: narrow, so that letters can still be read on a telephone
_MOST, _LEAST = "at most, by the claim", "at least, by the claim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a plot."""

    name: str
    points: Points


def epsilon_plot(points: Points, *, delta: float, last: str) -> str:
    """Epsilon against the number of steps performed, as SVG; `last` is its last value, as shown."""
    figure, axes = _axes(x="steps performed", y=f"ε at δ = {delta:g}")
    axes.plot(*zip((0, 0.0), *points, strict=True), color=_SERIES[0], linewidth=2)
    axes.plot(*points[-1], "o", color=_SERIES[0])
    axes.annotate(
        last,
        points[-1],
        textcoords="offset points",
        xytext=(-6, 8),
        ha="right",
        color=_INK,
        weight="bold",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=points[-1][1] * 1.15)
    return _svg(
        figure,
        name="epsilon",
        title="Epsilon against steps",
        description=f"Epsilon rises from 0 to {last} after {points[-1][0]} steps.",
    )


def epsilons_plot(series: Sequence[Series]) -> str:
    """Epsilon against steps of several runs, each at its own delta, as SVG."""
    figure, axes = _axes(x="steps performed", y="ε")
    for line, color, dash in zip(series, _SERIES, _DASHES, strict=False):
        axes.plot(
            *zip((0, 0.0), *line.points, strict=True),
            color=color,
            linestyle=dash,
            linewidth=2,
            label=line.name,
        )
        axes.plot(*line.points[-1], "o", color=color)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(figure, axes)
    ends = "; ".join(f"{line.name} ends at {round_up(line.points[-1][1])}" for line in series)
    return _svg(figure, name="epsilons", title="Epsilon against steps", description=f"{ends}.")


def accuracy_plot(series: Sequence[Series]) -> str:
    """Test accuracy against steps, one line for each kind of weights, as SVG.

    What was measured once only is a level across the plot, not a point at its edge.
    """
    figure, axes = _axes(x="step", y="test accuracy")
    for line, color, dash, marker in zip(series, _SERIES, _DASHES, _MARKERS, strict=False):
        few = len(line.points) <= 30
        if len(line.points) == 1:
            axes.axhline(line.points[0][1], color=color, linestyle=dash, linewidth=2, label=line.name)
            continue
        axes.plot(
            *zip(*line.points, strict=True),
            color=color,
            linestyle=dash,
            linewidth=2,
            marker=marker if few else None,
            markersize=4,
            label=line.name,
        )
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    axes.set_xlim(left=0)
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    _legend(figure, axes)
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.1%}" for line in series)
    return _svg(figure, name="accuracy", title="Test accuracy against steps", description=f"{ends}.")


def classes_plot(accuracies: Sequence[tuple[str, float]], *, mean: float | None) -> str:
    """Accuracy of each class as a bar, the first at the top, and of all test rows as a line, as SVG."""
    figure, axes = _axes(x="test accuracy", y="", whole_numbers=False)
    figure.set_size_inches(_SIZE[0], 0.8 + 0.24 * len(accuracies))
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name, _ in accuracies]
    places = range(len(names))
    axes.barh(places, [accuracy for _, accuracy in accuracies], height=0.7, color=_SERIES[0])
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0, symbol=" %"))
    if mean is not None:
        axes.axvline(mean, color=_SERIES[1], linestyle=_DASHES[1], linewidth=2, label="all test rows")
        _legend(figure, axes)
    (worst, least), (best, most) = accuracies[0], accuracies[-1]
    return _svg(
        figure,
        name="classes",
        title="Test accuracy of each class",
        description=f"From {least:.1%} ({worst}) to {most:.1%} ({best}).",
    )


def attack_plot(
    steps: Sequence[tuple[float, float]],
    alone: Sequence[tuple[float, float]],
    *,
    epsilon: float,
    delta: float,
) -> str:
    """Least misses against false alarms of every test: by the steps, by epsilon and delta, by a coin."""
    figure, axes = _axes(x="false alarms", y="misses", whole_numbers=False)
    axes.plot([0.0, 1.0], [1.0, 0.0], color=_INK, linewidth=1, linestyle=_DASHES[2], label="a coin")
    axes.plot(*zip(*steps, strict=True), color=_SERIES[0], linewidth=2, label="the steps in the ledger")
    axes.plot(
        *zip(*alone, strict=True),
        color=_SERIES[1],
        linewidth=2,
        linestyle=_DASHES[1],
        label="(ε, δ) alone",
    )
    axes.set_xlim(-0.01, 1.0)
    axes.set_ylim(-0.01, 1.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0, symbol=" %"))
    _legend(figure, axes)
    total, by_numbers = (min(a + b for a, b in points) for points in (steps, alone))
    return _svg(
        figure,
        name="attack",
        title="Misses against false alarms of any attacker, at least",
        description=f"No attacker's two error rates add up to less than {total:.0%}; guessing makes 100 %. "
        f"By epsilon {epsilon:.3g} and delta {delta:g} alone, to less than {by_numbers:.0%}.",
    )


def roc_plot(
    claimed: Sequence[tuple[float, float]],
    measured: Sequence[tuple[float, float, float, float]],
    *,
    about: str,
) -> str:
    """True against false positives, both on a log scale: the rare, sure guesses are what matters."""
    figure, axes = _axes(x="false positive rate", y="true positive rate", whole_numbers=False)
    lowest = min(p[0] for p in measured)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot([lowest, 1.0], [lowest, 1.0], color=_INK, linewidth=1, linestyle=_DASHES[2], label="guessing")
    axes.plot(*zip(*claimed, strict=True), color=_SERIES[1], linewidth=2, linestyle=_DASHES[1], label=_MOST)
    fpr, _, low, high = zip(*measured, strict=True)
    axes.fill_between(fpr, [max(v, lowest) for v in low], high, color=_SERIES[0], alpha=0.2, linewidth=0)
    shown = [point[:2] for point in measured if point[1] > 0.0] or [(1.0, 1.0)]
    axes.plot(*zip(*shown, strict=True), color=_SERIES[0], linewidth=2, label="measured, 95 % bounds")
    axes.set_xlim(lowest, 1.0)
    axes.set_ylim(lowest, 1.1)
    _legend(figure, axes)
    at = min(measured, key=lambda p: abs(p[0] - 1e-2))
    return _svg(
        figure,
        name="audit-roc",
        title=f"True against false positives, {about}",
        description=f"At a false positive rate of {at[0]:.2g} the true positive rate is {at[1]:.2g}.",
    )


def trade_off_plot(
    claimed: Sequence[tuple[float, float]],
    measured: Sequence[tuple[float, float, float, float]],
    *,
    about: str,
) -> str:
    """Misses against false alarms: a test below the claimed curve would refute the claim."""
    figure, axes = _axes(x="false positive rate", y="false negative rate", whole_numbers=False)
    axes.plot([0.0, 1.0], [1.0, 0.0], color=_INK, linewidth=1, linestyle=_DASHES[2], label="guessing")
    x, y = zip(*claimed, strict=True)
    axes.plot(x, [1.0 - v for v in y], color=_SERIES[1], linewidth=2, linestyle=_DASHES[1], label=_LEAST)
    fpr, tpr, low, high = zip(*measured, strict=True)
    misses = [[1.0 - v for v in part] for part in (tpr, low, high)]
    axes.fill_between(fpr, misses[2], misses[1], color=_SERIES[0], alpha=0.2, linewidth=0)
    axes.plot(fpr, misses[0], color=_SERIES[0], linewidth=2, label="measured, 95 % bounds")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    _legend(figure, axes)
    total = min(a + b for a, b in zip(fpr, misses[0], strict=True))
    return _svg(
        figure,
        name="audit-trade-off",
        title=f"Misses against false alarms, {about}",
        description=f"Both error rates together are {total:.2f} at least; guessing makes 1.",
    )


def _axes(*, x: str, y: str, whole_numbers: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    if whole_numbers:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=_GRID, labelcolor=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, in as many columns as its letters have room for."""
    names = axes.get_legend_handles_labels()[1]
    ncols = len(names) if sum(map(len, names)) <= 36 else 2
    figure.legend(
        frameon=False,
        labelcolor=_INK,
        loc="outside upper center",
        ncols=ncols,
        handlelength=1.8,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def _svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element: no date, no prologue, no identifiers that two plots could share."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # Letters stay letters, which the reader's browser has fonts for; only their widths are guessed.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-description" data-plot="{name}" '
    svg = svg.replace("<svg ", head, 1)
    told = f'<title id="{name}-title">{escape(title)}</title>'
    told += f'<desc id="{name}-description">{escape(description)}</desc>'
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + told, svg, count=1)
