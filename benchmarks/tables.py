"""Private logistic regression on tables of people: ours, diffprivlib's, and without privacy.

    python -m benchmarks.tables --features adult --out adult.json
    python -m benchmarks.tables --features kdd-census --times 2 --out kdd-census.json

Accuracy and area under the ROC curve on the test set, over epsilon. Ours is `last-layer` with `method=auto`:
no setting was chosen on the data. diffprivlib has its defaults on the very same rows, scaled to norm 1 (its
epsilon is pure, delta 0; see `benchmarks/peers/ibm_diffprivlib.py` for how to install it). Without privacy:
the recipe's twin, logistic regression to convergence.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.features_runs import EPSILONS, one_run, read, repeated
from benchmarks.peers.ibm_diffprivlib import VARIABLE, logistic_regression
from reticent.recipes.features._store import Split


def unit_rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Rows of norm 1, as `last-layer` scales them by default."""
    x = np.asarray(split.x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.asarray(split.y)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--features", default="adult")
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = read(args.features)
    plain = one_run(args.features, data, {"method": "least-squares", "epsilon": 8.0, "twin": True})["twin"]
    budgets = [{"epsilon": epsilon, "delta": args.delta} for epsilon in args.epsilons]
    ours = [repeated(args.features, data, {"method": "auto", **b}, times=args.times) for b in budgets]
    theirs = logistic_regression(
        unit_rows(data.train), unit_rows(data.test), epsilons=args.epsilons, times=args.times
    )
    majority = float(np.bincount(np.asarray(data.test.y)).max() / len(data.test.y))
    found = {
        "features": Path(args.features).name,
        "N": data.shape.num_examples,
        "D": data.shape.dim,
        "majority": majority,
        "without_privacy": plain,
        "reticent": ours,
        "diffprivlib": theirs,
        "skipped": None if theirs else f"diffprivlib: {VARIABLE} names no interpreter",
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"without privacy {plain['test_accuracy']:.4f} auc {plain['test_auc']:.4f}; majority {majority:.4f}"
    )
    for ours_row, their_row in zip(ours, theirs or [None] * len(ours), strict=True):
        print(
            f"epsilon {ours_row['settings']['epsilon']:g}: reticent {ours_row['test_accuracy']:.4f} auc "
            f"{ours_row['test_auc']:.4f}"
            + ("" if their_row is None else
               f"; diffprivlib {their_row['test_accuracy']:.4f} auc {their_row['test_auc']:.4f}")
        )  # fmt: skip


if __name__ == "__main__":
    main()
