"""Accuracy and AUC over epsilon, from the files of `benchmarks.tables`.

python -m benchmarks.plot_tables adult.json --out docs/plots
"""

import argparse
import json
from pathlib import Path

from reticent.report import Curve, draw_curves


def draw(path: Path, out: Path) -> list[Path]:
    """One plot for each score."""
    found = json.loads(path.read_text(encoding="utf-8"))
    drawn = []
    for score, shown in (("test_accuracy", "test accuracy"), ("test_auc", "test AUC")):
        curves = []
        for colour, (name, rows) in enumerate((("Reticent", "reticent"), ("diffprivlib", "diffprivlib"))):
            points = [
                (
                    r["settings"]["epsilon"] if "settings" in r else r["epsilon"],
                    r[score],
                    r[f"{score}_spread"],
                )
                for r in found[rows] or ()
            ]
            if points:
                curves.append(Curve(name=name, points=points, private=True, colour=colour))
        plain = [(None, found["without_privacy"][score], 0.0)]
        curves.append(Curve(name="without privacy", points=plain, private=False, colour=7))
        stem = f"{found['features']}-{score.removeprefix('test_')}"
        title = f"Logistic regression on {found['features']} (N = {found['N']:,}, D = {found['D']})"
        drawn += draw_curves(curves, out, stem=stem, x="ε", y=shown, title=title)
    return drawn


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_tables", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.files:
        for drawn in draw(path, args.out):
            print(drawn)


if __name__ == "__main__":
    main()
