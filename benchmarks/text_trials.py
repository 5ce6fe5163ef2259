"""Settings of `text-classify` compared at a fraction of a run's work, on training rows held out: NOT private.

    python -m benchmarks.text_trials --out runs/trials

Each trial is `reticent simulate text-classify`: MiniLM on Rotten Tomatoes, batches of 64 in place of the
run's, with the run's noise in every mean gradient (Sander et al. 2022). The file is the training part alone,
of which a third is held out and scored; the test part is never read. The recipe's defaults for `minilm` were
found so. What is finished is not run again.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from reticent.data import load

BATCH: Final = 64
COMMON: Final[dict[str, Any]] = {
    "model": "minilm", "labels": "negative,positive", "test_fraction": 0.333, "max_length": 32, "epsilon": 8,
}  # fmt: skip
TRIALS: Final[dict[str, dict[str, Any]]] = {
    "60 steps, embeddings trained": {
        "num_steps": 60, "expected_batch_size": 1000, "lr": 2e-3, "freeze_embeddings": "false",
    },
    "60 steps, lr 1e-3": {"num_steps": 60, "expected_batch_size": 1000, "lr": 1e-3},
    "60 steps, lr 2e-3": {"num_steps": 60, "expected_batch_size": 1000, "lr": 2e-3},
    "60 steps, lr 3e-3": {"num_steps": 60, "expected_batch_size": 1000, "lr": 3e-3},
    "120 steps, lr 1.5e-3": {"num_steps": 120, "expected_batch_size": 500, "lr": 1.5e-3},
    "240 steps, lr 1e-3": {"num_steps": 240, "expected_batch_size": 250, "lr": 1e-3},
    "lora, 60 steps, lr 2.5e-3": {
        "adaptation": "lora", "num_steps": 60, "expected_batch_size": 1000, "lr": 2.5e-3,
    },
    "lora, 60 steps, lr 5e-3": {
        "adaptation": "lora", "num_steps": 60, "expected_batch_size": 1000, "lr": 5e-3,
    },
    "lora, 120 steps, lr 4e-3": {
        "adaptation": "lora", "num_steps": 120, "expected_batch_size": 500, "lr": 4e-3,
    },
    "bias, 120 steps, lr 1e-2": {
        "adaptation": "bias", "num_steps": 120, "expected_batch_size": 500, "lr": 1e-2,
    },
}  # fmt: skip


def write_training_rows(path: Path) -> Path:
    """The training part of Rotten Tomatoes as a CSV file, once."""
    if not path.exists():
        found = load("rotten-tomatoes")
        part = path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows(
                [str(x), found.class_names[int(y)]] for x, y in zip(found.train.x, found.train.y, strict=True)
            )
        part.rename(path)
    return path


def trial(name: str, data: Path, out: Path) -> dict[str, Any]:
    """One row of the table: found, or run now."""
    folder = out / "".join(c if c.isalnum() or c in "-." else "-" for c in name)
    kept = folder / "simulation.json"
    if not kept.exists():
        settings = {**COMMON, "data": data, **TRIALS[name]}
        sets = [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
        command = ["simulate", "text-classify", "--batch-size", str(BATCH), *sets, "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "reticent", *command, "--json"], check=True, stdout=sys.stderr)
    result = json.loads(kept.read_text(encoding="utf-8"))["result"]
    return {"trial": name, "accuracy": result["test_accuracy"], "loss": result["test_loss"], **TRIALS[name]}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not there yet, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of trials and table; may exist")
    parser.add_argument("--only", default="", help="trials whose name holds this")
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    data = write_training_rows(asked.out / "train.csv")
    rows = [trial(name, data, asked.out) for name in TRIALS if asked.only in name]
    (asked.out / "trials.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("| trial | accuracy on rows held out | loss |\n|---|---|---|")
    for row in rows:
        print(f"| {row['trial']} | {row['accuracy']:.4f} | {row['loss']:.3f} |")


if __name__ == "__main__":
    main()
