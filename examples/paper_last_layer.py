"""Mehta et al. 2022 (arXiv:2205.02973, 2211.13403) in small: ways to find a private last layer, over
epsilon.

python examples/paper_last_layer.py --features digits --epsilon 0.5 1 4 8

`--features` is `digits`, or a store that `reticent features extract` made. The paper's point: one full-
batch step is nearly as good at epsilon 4 as at 10, and second-order methods are better than it at every
epsilon.
"""

import argparse
from pathlib import Path

from reticent.recipes import request, run

METHODS = ("one-step", "least-squares", "fc")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", default="digits")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--out", type=Path, default=Path("runs/last-layer"))
    asked = parser.parse_args()
    print("method".ljust(14), *(f"epsilon {epsilon:<6g}" for epsilon in asked.epsilon))
    for method in METHODS:
        cells = []
        for epsilon in asked.epsilon:
            settings = [f"features={asked.features}", f"method={method}", f"epsilon={epsilon}"]
            result = run(request("last-layer", settings), out=asked.out / f"{method}-{epsilon:g}")
            cells.append(f"{result['test_accuracy']:<14.3f}")
        print(method.ljust(14), *cells)


if __name__ == "__main__":
    main()
