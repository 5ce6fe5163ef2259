"""Fine-tuning: a network from public images of some classes, trained privately on images of the others.

    python -m benchmarks.finetune --out runs/finetune --epsilon 3 --seeds 1 2 3
    python -m benchmarks.finetune --out runs/finetune --table-only

CIFAR-10's even classes (airplane, bird, deer, frog, ship) are the public half, its odd ones (automobile, cat,
dog, horse, truck) the private half; each becomes a folder of class folders. `reticent train vision-scratch`
trains a small network on the public half without privacy, and `vision-finetune` goes on from its weights at
one epsilon and delta: with a new head alone, or with all layers. A third arm trains the same network from
random weights, so that what the public half brings can be told. Every run is a folder of its own: what is
finished is not run again, what was stopped goes on. Seeds change weights (and the pretraining's views); noise
and batches are fresh in every run. Settings are from the literature: nothing was tuned on the private half.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from reticent.data import Dataset, load

from .runs import trained

PUBLIC: Final = (0, 2, 4, 6, 8)
PRIVATE: Final = (1, 3, 5, 7, 9)
PRETRAINING: Final[dict[str, Any]] = {
    "epsilon": "inf", "num_steps": 800, "expected_batch_size": 256, "lr": 0.1, "momentum": 0.9,
    "lr_decay": "cosine", "ema": 0, "augmult": 1,
}  # fmt: skip
_PRIVATE: Final[dict[str, Any]] = {"momentum": 0.0, "max_norm": 1.0, "ema": 0.9, "num_steps": 100}
ARMS: Final[dict[str, dict[str, Any]]] = {
    "head": {**_PRIVATE, "expected_batch_size": 2048, "lr": 2.0, "train_only": "head"},
    "all": {**_PRIVATE, "expected_batch_size": 1024, "lr": 1.0, "train_only": "*"},
    "scratch": {**_PRIVATE, "expected_batch_size": 1024, "lr": 2.0},
}
NAMES: Final = {"head": "the head alone", "all": "all layers", "scratch": "all layers, from random weights"}


def write_half(found: Dataset, classes: Sequence[int], folder: Path) -> Path:
    """Images of some classes as `folder`/train/CLASS/N.png and `folder`/test/CLASS/N.png, once."""
    done = folder.with_suffix(".done")
    if not done.exists():
        for split, pair in (("train", found.train), ("test", found.test)):
            for label in classes:
                place = folder / split / found.class_names[label]
                place.mkdir(parents=True, exist_ok=True)
                for k in np.flatnonzero(np.asarray(pair.y) == label):
                    Image.fromarray(pair.x[k]).save(place / f"{k:05}.png", compress_level=1)
        done.touch()
    return folder


def one_seed(
    seed: int,
    arms: Sequence[str],
    halves: tuple[Path, Path],
    out: Path,
    common: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Any]],
    *,
    kept_only: bool = False,
) -> dict[str, dict[str, Any]]:
    """Arm -> its result, and of "pretraining".

    Args:
        seed: of weights and views.
        arms: of `ARMS`.
        halves: folders of the public and of the private images.
        out: folder of the runs.
        common: settings of the private runs, over their own.
        more: arm, or "pretraining" -> settings over all others; "model" and "image_size" of "all runs".
        kept_only: run nothing; arms that have not ended are left out.

    Raises:
        ConfigError[other-run]: a folder holds a run with other settings.
    """
    found: dict[str, dict[str, Any]] = {}

    def take(arm: str, recipe: str, data: Path, settings: Mapping[str, Any]) -> Path:
        folder = out / f"{arm}-seed-{seed}"
        if not kept_only or (folder / "result.json").exists():
            found[arm] = trained(recipe, {"data": data, **settings}, folder)
        return folder

    every = {"seed": seed, "image_size": 32, "model": "small-cnn", **more.get("every", {})}
    settings = {**every, **PRETRAINING, **more.get("pretraining", {})}
    first = take("pretraining", "vision-scratch", halves[0], settings)
    for arm in arms:
        settings = {**every, **ARMS[arm], **common, **more.get(arm, {})}
        recipe = "vision-scratch" if arm == "scratch" else "vision-finetune"
        if arm != "scratch":
            settings["start_from"] = first / "weights.safetensors"
        take(arm, recipe, halves[1], settings)
    return found


def summary(found: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each arm: accuracies by seed, mean, spread over seeds, epsilon, seconds."""
    rows = []
    for arm in dict.fromkeys(arm for runs in found.values() for arm in runs):
        runs = {seed: results[arm] for seed, results in found.items() if arm in results}
        accuracy = {seed: run["test_accuracy"] for seed, run in runs.items()}
        epsilons = [run.get("epsilon") for run in runs.values()]
        rows.append(
            {
                "arm": arm,
                "accuracy": accuracy,
                "mean": statistics.mean(accuracy.values()),
                "spread": statistics.stdev(accuracy.values()) if len(accuracy) > 1 else None,
                "epsilon": None if None in epsilons else max(epsilons),
                "seconds": round(statistics.mean(run["seconds"] for run in runs.values()), 1),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As markdown, in per cent; spreads are standard deviations over seeds."""
    lines = ["| private training of | epsilon | test accuracy | seeds | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        name = NAMES.get(row["arm"], "(none: the public half, for its own classes)")
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.3f}"
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        lines.append(
            f"| {name} | {epsilon} | {100 * row['mean']:.1f}{spread} | {len(row['accuracy'])} | "
            f"{row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _settings(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """ARM:NAME=VALUE, several -> arm -> name -> value."""
    more: dict[str, dict[str, str]] = {}
    for text in given:
        arm, _, setting = text.partition(":")
        name, _, value = setting.partition("=")
        if arm not in ("every", "pretraining", *ARMS) or not name or not value:
            raise SystemExit(
                f"--set wants ARM:NAME=VALUE with an arm of every, pretraining, {', '.join(ARMS)}"
            )
        more.setdefault(arm, {})[name] = value
    return more


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument(
        "--set", nargs="+", default=[], help="ARM:NAME=VALUE, e.g. all:lr=2 every:model=wrn-10-1"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table-only", action="store_true", help="run nothing, show what is there")
    args = parser.parse_args()
    halves = args.out / "images" / "public", args.out / "images" / "private"
    if not args.table_only:
        images = load("cifar10")
        for classes, folder in zip((PUBLIC, PRIVATE), halves, strict=True):
            write_half(images, classes, folder)
    common, more = {"epsilon": args.epsilon, "delta": args.delta}, _settings(args.set)
    found = {
        seed: one_seed(seed, args.arms, halves, args.out, common, more, kept_only=args.table_only)
        for seed in args.seeds
    }
    rows = summary(found)
    said = {
        "data": "cifar10, even classes public, odd classes private",
        "settings": {"pretraining": PRETRAINING, **ARMS, "set": args.set},
        "rows": rows,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "finetune.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
