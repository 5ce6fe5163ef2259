"""Accuracy over epsilon from the files of `benchmarks.last_layer_curves`: methods, and ways to take one step.

python -m benchmarks.plot_last_layer cifar10.json --out docs/plots
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reticent.report import Curve, draw_curves

_PLAIN_COLOUR = 7


def draw(path: Path, out: Path) -> list[Path]:
    """One plot of the methods, one of the variants of a single step."""
    found = json.loads(path.read_text(encoding="utf-8"))
    variants = list(found["runs"])
    single = [name for name in variants if name.startswith("one-step")]
    several = ["one-step", *(name for name in variants if name not in single)]
    return [
        *_plot(found, [name for name in several if name in variants], out, "methods", "methods"),
        *_plot(found, single, out, "one-step", "one full-batch step"),
    ]


def _plot(found: Mapping[str, Any], names: list[str], out: Path, stem: str, title: str) -> list[Path]:
    curves = [
        Curve(name=name, points=_points(found["runs"][name]), private=True, colour=colour)
        for colour, name in enumerate(names)
    ]
    plain = [(None, found["without_privacy"]["test_accuracy"], 0.0)]
    curves.append(Curve(name="without privacy", points=plain, private=False, colour=_PLAIN_COLOUR))
    shown = f"{found['features']}, {title} (N = {found['N']:,}, D = {found['D']}, δ = {found['delta']:g})"
    stem = f"last-layer-{found['features']}-{stem}"
    return draw_curves(curves, out, stem=stem, x="ε", y="test accuracy", title=shown)


def _points(runs: Mapping[str, list[dict[str, float]]]) -> list[tuple[float, float, float]]:
    cells = {float(e): [run["test_accuracy"] for run in found] for e, found in runs.items() if found}
    return [
        (e, statistics.fmean(scores), statistics.pstdev(scores))
        for e, scores in cells.items()
        if e != float("inf")
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_last_layer", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.files:
        for drawn in draw(path, args.out):
            print(drawn)


if __name__ == "__main__":
    main()
