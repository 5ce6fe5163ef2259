"""`method=auto` beside the best of a sweep over every method, chosen on the test set.

    python -m benchmarks.defaults --features digits adult --out defaults.json
    python -m benchmarks.defaults --features STORE --epsilons 0.1 1 8 --times 2 --out cifar10.json

The sweep is optimistic: it takes, at each epsilon, the best of its settings by accuracy on the test set.
`auto` has seen nothing but N, D, K, epsilon and delta.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.features_runs import EPSILONS, one_run, read, repeated

SWEPT: list[dict[str, Any]] = [
    *({"method": "fc", "num_steps": t, "lr": lr, "gram_share": g}
      for t, lr, g in itertools.product((10, 40), (0.5, 1.0, 2.0), (0.1, 0.25))),
    *({"method": "least-squares", "gram_share": g} for g in (0.1, 0.3, 0.5)),
    *({"method": "newton", "num_steps": t, "gram_share": 0.3} for t in (1, 2)),
    *({"method": "adam", "num_steps": t, "lr": lr} for t, lr in itertools.product((50, 100), (0.1, 0.3))),
    *({"method": "lamb", "num_steps": 100, "lr": lr} for lr in (0.03, 0.1, 0.3)),
    *({"method": "sgd", "num_steps": 100, "lr": lr, "momentum": 0.9} for lr in (10.0, 40.0)),
    {"method": "one-step"},
]  # fmt: skip


def compare(
    features: str, epsilons: list[float], *, delta: float, times: int, minutes: float
) -> dict[str, Any]:
    """Auto and the sweep on one set of features."""
    data, began, rows = read(features), time.monotonic(), []
    plain = one_run(features, data, {"method": "least-squares", "epsilon": 8.0, "twin": True})["twin"]
    for epsilon in epsilons:
        budget = {"epsilon": epsilon, "delta": delta}
        auto = repeated(features, data, {"method": "auto", **budget}, times=times)
        swept = []
        for settings in SWEPT:
            if time.monotonic() - began > 60 * minutes:
                print(f"stopped after {len(swept)} of {len(SWEPT)} settings at epsilon {epsilon}")
                break
            swept.append(repeated(features, data, {**settings, **budget}, times=times))
        best = max(swept, key=lambda row: row["test_accuracy"], default=None)
        gap = None if best is None else best["test_accuracy"] - auto["test_accuracy"]
        rows.append({"epsilon": epsilon, "auto": auto, "best": best, "gap": gap, "swept": swept})
        print(
            f"{features} epsilon {epsilon:g}: auto {auto['test_accuracy']:.4f}, best "
            + (
                "none" if best is None else f"{best['test_accuracy']:.4f} ({best['settings']}), gap {gap:.4f}"
            ),
            flush=True,
        )
    shape = data.shape
    return {
        "features": Path(features).name,
        "N": shape.num_examples, "D": shape.dim, "K": shape.num_classes,
        "without_privacy": plain,
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    parser.add_argument("--features", nargs="+", default=["digits", "adult"])
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60.0, help="for the sweep of one set of features")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = [
        compare(f, args.epsilons, delta=args.delta, times=args.times, minutes=args.minutes)
        for f in args.features
    ]
    args.out.write_text(json.dumps({"delta": args.delta, "features": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
