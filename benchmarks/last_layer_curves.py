"""Accuracy of every method of `last-layer` over epsilon, each at its defaults: a markdown table.

    python -m benchmarks.last_layer_curves --features digits --times 5 --epsilons 0.5,1,4,8,10

Every cell is a mean over `--times` runs. Nothing is tuned; scores are on the public test rows.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from reticent.recipes import request, run
from reticent.recipes.features.last_layer import load_features

SIGMOID: Final = ("loss=sigmoid", "bias=-10.0")
CENTRED: Final = ("centre=private", "centre_share=0.2")
VARIANTS: Final = MappingProxyType(
    {
        "one-step": ("method=one-step",),
        "one-step, centred": ("method=one-step", *CENTRED),
        "one-step, whitened": ("method=one-step", "whiten=private"),
        "one-step, sigmoid": ("method=one-step", *SIGMOID),
        "one-step, sigmoid, centred": ("method=one-step", *SIGMOID, *CENTRED),
        "sgd": ("method=sgd",),
        "adam": ("method=adam",),
        "lamb": ("method=lamb",),
        "least-squares": ("method=least-squares",),
        "newton": ("method=newton",),
        "fc": ("method=fc",),
        "auto": ("method=auto",),
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", default="digits")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--epsilons", default="0.5,1,4,8,10,inf")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, with semicolons")
    given = parser.parse_args(arguments)
    data = load_features(given.features, report=lambda text: None, progress=False)
    epsilons = given.epsilons.split(",")
    print("| method | " + " | ".join(f"ε {e}" for e in epsilons) + " |")
    print("|---" * (len(epsilons) + 1) + "|")
    for variant in given.variants.split(";"):
        cells = []
        for epsilon in epsilons:
            settings = [*VARIANTS[variant], f"features={given.features}", f"epsilon={float(epsilon)}"]
            if epsilon == "inf":
                settings = [s for s in settings if not s.startswith("centre_share")]
            scores = []
            for _ in range(given.times):
                with tempfile.TemporaryDirectory() as where:
                    asked = request("last-layer", settings)
                    scores.append(run(asked, out=Path(where) / "run", data=data)["test_accuracy"])
            cells.append(f"{100 * statistics.mean(scores):.1f}")
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
