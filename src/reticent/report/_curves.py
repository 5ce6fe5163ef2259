"""Curves of a score over a setting, private ones beside those without privacy, as files.

Room: report; matplotlib without its global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

_COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#b91c1c", "#0f766e", "#a16207", "#475569")
_MARKERS = "os^Dvp*X"
_WIDE = 8.0  # largest x over smallest: beyond, the axis is logarithmic


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line.

    Args:
        name: as the legend has it.
        points: (x, score, spread or 0); without any x, the score of a horizontal line.
        private: solid; without privacy, dashed.
        colour: lines of one colour belong together.
    """

    name: str
    points: Sequence[tuple[float | None, float, float]]
    private: bool
    colour: int


def draw_curves(
    curves: Sequence[Curve], folder: Path, *, stem: str, x: str, y: str, title: str
) -> list[Path]:
    """Draw the curves into `folder/stem.svg` and `folder/stem.png`, and return both paths."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        _draw(axes, curve)
    places = sorted({p[0] for curve in curves for p in curve.points if p[0] is not None})
    if places and places[0] > 0 and places[-1] / places[0] >= _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{place:g}" for place in places])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False)
    svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    FigureCanvasAgg(figure).print_png(png)
    return [svg, png]


def _draw(axes, curve: Curve) -> None:
    colour = _COLOURS[curve.colour % len(_COLOURS)]
    style = "-" if curve.private else "--"
    if any(point[0] is None for point in curve.points):
        axes.axhline(max(p[1] for p in curve.points), color=colour, linestyle=style, label=curve.name)
        return
    xs, ys, spreads = zip(*sorted(curve.points), strict=True)
    axes.errorbar(
        xs,
        ys,
        yerr=spreads if any(spreads) else None,
        color=colour,
        linestyle=style,
        marker=_MARKERS[curve.colour % len(_MARKERS)],
        markersize=5,
        capsize=3,
        label=curve.name,
    )
