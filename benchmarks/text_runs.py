"""Private fine-tuning of pretrained language models on real texts: accuracy, time and peak memory in a table.

    python -m benchmarks.text_runs --out runs/text                 # MiniLM on Rotten Tomatoes, two heads
    python -m benchmarks.text_runs --suite prompt --out runs/text   # SmolLM2: next word against a new head
    python -m benchmarks.text_runs --suite imdb --out runs/text     # MiniLM on IMDB, 64 tokens

Every run is `reticent train text-classify` in a process of its own, private or not by epsilon alone, so the
same code makes both. Interrupted, the same command goes on where it stopped, inside a run too. Settings
were chosen by reasoning, not on the test rows; `--set` changes them for all runs of a table.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

# Suite -> settings that all its runs share, and what differs.
SUITES: Final[dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]] = {
    "minilm": (
        {"model": "minilm", "data": "rotten-tomatoes", "max_length": 32},
        [{"adaptation": way, "epsilon": e} for way in ("full", "lora") for e in (3, 8, "inf")],
    ),
    "prompt": (
        {
            "model": "smollm2",
            "data": "rotten-tomatoes",
            "adaptation": "lora",
            "max_length": 32,
            "num_steps": 12,
            "expected_batch_size": 256,
            "physical_batch_size": 32,
        },
        [
            *({"objective": objective, "epsilon": 3} for objective in ("prompt", "head")),
            *({"objective": "prompt", "epsilon": e} for e in (8, "inf")),
        ],
    ),
    "imdb": (
        {"model": "minilm", "data": "imdb", "max_length": 64, "num_steps": 60, "expected_batch_size": 400},
        [{"adaptation": "full", "epsilon": e} for e in (3, 8, "inf")],
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not there yet, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="minilm")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and table; may exist")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", default="", help="runs whose name holds this")
    asked = parser.parse_args(argv)
    shared, cells = SUITES[asked.suite]
    rows = []
    for cell in cells:
        name = "-".join(["text", asked.suite, *(str(value) for value in cell.values())])
        if asked.only not in name:
            continue
        rows.append(done(asked.out / name, {**shared, **cell}, asked.settings))
        report = {"suite": asked.suite, "date": f"{date.today()}", "cores": os.cpu_count(), "rows": rows}
        (asked.out / f"{asked.suite}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


def done(folder: Path, settings: dict[str, Any], more: Sequence[str]) -> dict[str, Any]:
    """One run's row, after it is trained to its end. `seconds` are those of its steps, over all processes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    book = folder.with_suffix(".peak-mib")
    given = [f"{name}={value}" for name, value in settings.items()]
    given = [text for text in given if text.split("=")[0] not in {m.split("=")[0] for m in more}]
    assignments = [*given, "checkpoint_every=5", *more]
    command = ["train", "text-classify", *(part for text in assignments for part in ("--set", text))]
    if not (folder / "result.json").is_file():
        whole = (folder / "run.json").is_file()
        what = ["resume", str(folder)] if whole else [*command, "--out", str(folder)]
        peak = peak_memory([sys.executable, "-m", "reticent", *what])
        with book.open("a") as stream:
            stream.write(f"{peak:.0f}\n")
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((folder / "run.json").read_text())["config"]
    kept = ("objective", "adaptation", "num_steps", "expected_batch_size", "lr", "max_norm", "max_length")
    return {
        "command": f"reticent {' '.join(command)}",
        "epsilon": result["epsilon"],
        "test_accuracy": result["test_accuracy"],
        "test_loss": result.get("test_loss"),
        "seconds": result["seconds"],
        "peak_mib": max(map(float, book.read_text().split())),
        **{name: config[name] for name in kept},
    }


def peak_memory(command: Sequence[str]) -> float:
    """Peak resident MiB of a command that succeeds.

    Raises:
        subprocess.CalledProcessError: it does not.
    """
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return usage.ru_maxrss / 1024  # Linux counts KiB


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As markdown."""
    lines = ["| objective | trained | ε | test accuracy | minutes | peak MiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        spent = "without privacy" if row["epsilon"] is None else f"{row['epsilon']:.3f}"
        lines.append(
            f"| {row['objective']} | {row['adaptation']} | {spent} | {row['test_accuracy']:.4f} | "
            f"{row['seconds'] / 60:.1f} | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
