"""Accuracy and time of the default recipe's longer run, over several seeds.

    python -m benchmarks.fashion_mnist --seeds 1 2 3 --num-steps 1000 --out runs/fashion-mnist

Runs `reticent train fashion-mnist` once for each seed, one after the other, and prints mean and
spread of the test accuracy (of the averaged weights, which the recipe names) and each run's time.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch


def one_run(seed: int, num_steps: int, epsilon: float, out: Path) -> dict[str, Any]:
    """The run's result, and its wall time from start to end."""
    settings = [f"seed={seed}", f"num_steps={num_steps}", f"epsilon={epsilon}"]
    command = [sys.executable, "-m", "reticent", "train", "fashion-mnist", "--json", "--out", str(out)]
    for setting in settings:
        command += ["--set", setting]
    start = time.perf_counter()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(printed.splitlines()[-1]), "wall_seconds": time.perf_counter() - start}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion_mnist", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = [one_run(s, args.num_steps, args.epsilon, args.out / f"seed-{s}") for s in args.seeds]
    accuracies = [run["test_accuracy"] for run in runs]
    summary = {
        "seeds": args.seeds,
        "num_steps": args.num_steps,
        "epsilon": max(run["epsilon"] for run in runs),
        "delta": runs[0]["delta"],
        "test_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "wall_seconds": [round(run["wall_seconds"], 1) for run in runs],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
