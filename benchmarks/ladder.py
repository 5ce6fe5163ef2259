"""What each technique of private training from scratch brings: a ladder of runs, each one technique more.

    python -m benchmarks.ladder --recipe cifar10 --seeds 1 2 3 --out runs/ladder
    python -m benchmarks.ladder --recipe fashion-mnist --out runs/ladder-fashion
    python -m benchmarks.ladder --out runs/ladder --table-only --plots docs/plots

Every run is a `reticent train` of its own in a folder of its own, at one epsilon and delta: what is
finished is not run again, what was stopped is resumed. Seeds change weights and views; noise and
batches are fresh in every run. The gain of a rung is over the rung before, seed by seed. All rungs take the
same number of steps, so that a large batch sees more images, as in the paper; the last rung has the rate
that `reticent simulate cifar10` found best on training rows held out. The average of weights is scored in
the run of the rung before: it changes no step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from .runs import trained

NUM_STEPS: Final = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One technique more than the rung before.

    Args:
        name: what it adds.
        settings: what it changes; nothing, if only other weights of the same run are scored.
        weights: `last`, or `ema`: which weights are scored.
    """

    name: str
    settings: Mapping[str, Any]
    weights: str = "last"


LADDER: Final = (
    Rung(
        name="DP-SGD",
        settings={
            "model": "wrn-10-1-nonorm-plain", "expected_batch_size": 128, "num_steps": NUM_STEPS,
            "lr": 0.25, "momentum": 0.0, "max_norm": 1.0, "augmult": 0, "ema": 0.95,
        },
    ),
    Rung(name="+ group norm", settings={"model": "wrn-10-1-plain"}),
    Rung(name="+ large batch", settings={"expected_batch_size": 512, "lr": 1.0}),
    Rung(name="+ standardised weights", settings={"model": "wrn-10-1"}),
    Rung(name="+ 2 views", settings={"augmult": 2}),
    Rung(name="+ weight average", settings={}, weights="ema"),
    Rung(name="+ tuned", settings={"lr": 4.0}, weights="ema"),
)  # fmt: skip


def settings_of(index: int) -> dict[str, Any]:
    """All settings of a rung: its own over those of the rungs below."""
    return {name: value for rung in LADDER[: index + 1] for name, value in rung.settings.items()}


def run_of(index: int) -> int:
    """The lowest rung with the same settings: its run is this one's too."""
    return next(i for i in range(index + 1) if settings_of(i) == settings_of(index))


def run_once(recipe: str, index: int, seed: int, epsilon: float, folder: Path) -> dict[str, Any]:
    """The rung's result for one seed: found, gone on with, or run now."""
    return trained(recipe, {**settings_of(index), "seed": seed, "epsilon": epsilon}, folder)


def results(
    recipe: str, rungs: Sequence[int], seeds: Sequence[int], epsilon: float, out: Path, *, new: float
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(rung, seed, result), all rungs of a seed together; at most `new` of them run now."""
    for seed in seeds:
        for index in rungs:
            folder = out / f"rung-{run_of(index)}-seed-{seed}"
            fresh = not (folder / "result.json").exists()
            if fresh and new < 1:
                continue
            new -= fresh
            yield index, seed, run_once(recipe, index, seed, epsilon, folder)


def summary(found: Sequence[tuple[int, int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each rung: accuracies by seed, mean, spread, and the gain over the rung before.

    Seconds are the least of the seeds': what else ran on the machine only adds to them.
    """
    rows: list[dict[str, Any]] = []
    for index in sorted({index for index, _, _ in found}):
        runs = {seed: result for i, seed, result in found if i == index}
        scored = LADDER[index].weights
        accuracy = {seed: result["scores"][scored]["accuracy"] for seed, result in runs.items()}
        below = rows[-1]["accuracy"] if rows and rows[-1]["rung"] == index - 1 else {}
        gains = [accuracy[seed] - below[seed] for seed in accuracy if seed in below]
        rows.append(
            {
                "rung": index,
                "name": LADDER[index].name,
                "settings": settings_of(index),
                "weights": scored,
                "accuracy": accuracy,
                "mean": statistics.mean(accuracy.values()),
                "spread": _spread(list(accuracy.values())),
                "gain": statistics.mean(gains) if gains else None,
                "gain_spread": _spread(gains),
                "epsilon": max(result["epsilon"] for result in runs.values()),
                "seconds": round(min(result["seconds"] for result in runs.values()), 1),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As markdown, in per cent; spreads are standard deviations over seeds."""
    lines = ["| rung | test accuracy | gain | seeds | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        accuracy, gain = _shown(row["mean"], row["spread"]), _shown(row["gain"], row["gain_spread"], sign="+")
        lines.append(
            f"| {row['name']} | {accuracy} | {gain} | {len(row['accuracy'])} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _shown(mean: float | None, spread: float | None, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{100 * mean:{sign}.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def plot(rows: Sequence[Mapping[str, Any]], out: Path, *, recipe: str, epsilon: float) -> Path:
    """Mean accuracy over rungs, with the spread over seeds, as a PNG in the folder `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 4.5), layout="constrained")
    at = [row["rung"] for row in rows]
    means, spreads = ([100 * (row[part] or 0.0) for row in rows] for part in ("mean", "spread"))
    panel.errorbar(at, means, yerr=spreads, marker="o", capsize=4, color="#08519c")
    for x, y in zip(at, means, strict=True):
        panel.annotate(f"{y:.1f}", (x, y), xytext=(6, -12), textcoords="offset points", fontsize=9)
    panel.set_xticks(at, [row["name"] for row in rows], rotation=20, ha="right")
    panel.set(ylabel="test accuracy, %", title=f"{recipe}, ε = {epsilon:g}")
    panel.grid(alpha=0.3)
    path = out / f"ladder-{recipe}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ladder", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10", help="cifar10, fashion-mnist or mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rungs", type=int, nargs="+", default=list(range(len(LADDER))))
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plots", type=Path, help="folder for the plot")
    parser.add_argument(
        "--max-runs", type=float, default=float("inf"), help="runs now; the rest another time"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is there")
    args = parser.parse_args()
    began, new = time.perf_counter(), 0 if args.table_only else args.max_runs
    found = list(results(args.recipe, args.rungs, args.seeds, args.epsilon, args.out, new=new))
    rows = summary(found)
    said = {
        "recipe": args.recipe,
        "epsilon": args.epsilon,
        "rungs": rows,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ladder.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if args.plots and rows:
        print(plot(rows, args.plots, recipe=args.recipe, epsilon=args.epsilon))


if __name__ == "__main__":
    main()
