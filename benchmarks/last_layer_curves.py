"""Accuracy of every method of `last-layer` over epsilon, each at its defaults: a markdown table and a file.

    python -m benchmarks.last_layer_curves --features digits --times 5 --epsilons 0.5,1,4,8,10
        --out digits.json
    python -m benchmarks.plot_last_layer digits.json --out docs/plots

Every cell is a mean over `--times` runs with fresh noise; its spread is in the file. Nothing is tuned; scores
are on the public test rows. The file is written after every run: the same command again runs what is missing.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from benchmarks.features_runs import one_run, read
from reticent.recipes.features._sources import Features

_SIGMOID: Final = {"loss": "sigmoid", "bias": -10.0}
_CENTRED: Final = {"centre": "private", "centre_share": 0.2}
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "one-step": {"method": "one-step"},
        "one-step, centred": {"method": "one-step", **_CENTRED},
        "one-step, whitened": {"method": "one-step", "whiten": "private"},
        "one-step, sigmoid": {"method": "one-step", **_SIGMOID},
        "one-step, sigmoid, centred": {"method": "one-step", **_SIGMOID, **_CENTRED},
        "sgd": {"method": "sgd"},
        "adam": {"method": "adam"},
        "lamb": {"method": "lamb"},
        "least-squares": {"method": "least-squares"},
        "newton": {"method": "newton"},
        "fc": {"method": "fc"},
        "auto": {"method": "auto"},
    }
)


def settings_of(variant: str, epsilon: float, delta: float) -> dict[str, Any]:
    """Settings of one run. Without privacy, what shares a budget out is read by nobody and left out."""
    settings = {**VARIANTS[variant], "epsilon": epsilon, "delta": delta}
    if epsilon == float("inf"):
        settings = {name: value for name, value in settings.items() if not name.endswith("_share")}
    return settings


def begun(features: str, data: Features, delta: float, out: Path | None) -> dict[str, Any]:
    """The figures so far, or none yet.

    Raises:
        SystemExit: the file is of other features or another delta.
    """
    shape = data.shape
    about = {"features": Path(features).name, "N": shape.num_examples, "D": shape.dim, "K": shape.num_classes}
    about = {**about, "delta": delta}
    if out is None or not out.exists():
        return {**about, "without_privacy": None, "runs": {}}
    found = json.loads(out.read_text(encoding="utf-8"))
    if {name: found.get(name) for name in about} != about:
        raise SystemExit(
            f"{out} holds figures of something else: {about} was asked for. Choose another --out."
        )
    return found


def fill(
    found: dict[str, Any],
    data: Features,
    features: str,
    *,
    variants: Sequence[str],
    epsilons: Sequence[str],
    times: int,
    out: Path | None,
) -> None:
    """Run what is missing, the slow run without privacy last, and keep each figure at once."""

    def keep() -> None:
        found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        found["torch"], found["machine"] = torch.__version__, platform.processor() or platform.machine()
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for epsilon in epsilons:
        for variant in variants:
            runs = found["runs"].setdefault(variant, {}).setdefault(epsilon, [])
            while len(runs) < times:
                result = one_run(features, data, settings_of(variant, float(epsilon), found["delta"]))
                names = ("test_accuracy", "test_auc", "test_loss", "epsilon", "seconds")
                runs.append({name: result[name] for name in names if name in result})
                keep()
                print(f"{variant}, epsilon {epsilon}: {runs[-1]}", file=sys.stderr, flush=True)
    if found["without_privacy"] is None:
        settings = {"method": "one-step", "epsilon": 8.0, "twin": True}
        found["without_privacy"] = one_run(features, data, settings)["twin"]
        keep()


def table(found: Mapping[str, Any], *, variants: Sequence[str], epsilons: Sequence[str]) -> str:
    """Markdown: a row for each variant, accuracy in per cent."""
    lines = [
        "| method | " + " | ".join(f"ε {e}" for e in epsilons) + " |",
        "|---" * (len(epsilons) + 1) + "|",
    ]
    for variant in variants:
        cells = [[r["test_accuracy"] for r in found["runs"][variant][epsilon]] for epsilon in epsilons]
        shown = " | ".join(f"{100 * statistics.fmean(scores):.1f}" for scores in cells)
        lines.append(f"| {variant} | {shown} |")
    plain = 100 * found["without_privacy"]["test_accuracy"]
    return "\n".join([*lines, "", f"Logistic regression without privacy: {plain:.1f}."])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", default="digits")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--epsilons", default="0.5,1,4,8,10")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, with semicolons")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    data = read(given.features)
    chosen: dict[str, Any] = {"variants": given.variants.split(";"), "epsilons": given.epsilons.split(",")}
    found = begun(given.features, data, given.delta, given.out)
    fill(found, data, given.features, **chosen, times=given.times, out=given.out)
    print(table(found, **chosen))


if __name__ == "__main__":
    main()
