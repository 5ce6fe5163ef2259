"""DP-SGD, DP-momentum, DP-Adam and DP-LAMB over batch sizes, each beside its twin without privacy.

    python -m benchmarks.optimizers --recipe digits --set model=cnn --batches 64 256 512 1437
        --out runs/optimizers
    python -m benchmarks.optimizers --recipe head --set features=STORE --batches 512 4096 50000 --out ...

A sweep with `reticent.sweep`: at every batch size the same number of epochs, so that a larger batch
has fewer updates; for each optimizer and batch size the best learning rate of its grid, private or
not, by accuracy on the test set (optimistic for all alike). Leaves table, plot and `sweep.json`.
"""

import argparse
import json
import math
from pathlib import Path

from rich.console import Console

from reticent.recipes import parse_settings, recipes
from reticent.recipes._training import TrainingRecipe
from reticent.sweep import Sweep, sweep

# Optimizer -> its settings and learning rates, for gradients clipped to norm 1.
RATES = {
    "sgd": ({"optimizer": "sgd", "momentum": 0.0}, (0.5, 2.0, 8.0)),
    "momentum": ({"optimizer": "sgd", "momentum": 0.9}, (0.1, 0.5, 2.0)),
    "adam": ({"optimizer": "adam"}, (0.003, 0.01, 0.03)),
    "lamb": ({"optimizer": "lamb"}, (0.01, 0.05, 0.2)),
}


def comparison(
    recipe: str, num_examples: int, *, batches: list[int], epochs: float, shared: dict, optimizers: list[str]
) -> Sweep:
    """The sweep: one grid for each optimizer and batch size."""
    grids = []
    for batch in batches:
        steps = max(1, math.ceil(epochs * num_examples / batch))
        for name in optimizers:
            settings, rates = RATES[name]
            fixed = {key: (value,) for key, value in settings.items()}
            size = {"expected_batch_size": (float(batch),), "num_steps": (steps,)}
            grids.append({**fixed, **size, "lr": rates})
    return Sweep(
        recipe=recipe,
        shared=shared,
        grids=tuple(grids),
        x="expected_batch_size",
        series=("optimizer", "momentum"),
        plain_rates=True,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--optimizers", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shared = {"epsilon": args.epsilon, "max_norm": 1.0, "ema": 0.0, "checkpoint_every": 0}
    shared |= parse_settings(args.settings)
    recipe = recipes()[args.recipe]
    if not isinstance(recipe, TrainingRecipe):
        parser.error(f"{args.recipe} does not choose among optimizers")
    num_examples = recipe.num_examples(recipe.config.model_validate(shared))
    asked = comparison(
        args.recipe,
        num_examples,
        batches=args.batches,
        epochs=args.epochs,
        shared=shared,
        optimizers=args.optimizers,
    )
    result = sweep(asked, out=args.out, jobs=args.jobs, console=Console(stderr=True))
    print(json.dumps({key: result[key] for key in ("lines", "privacy", "trials", "plot")}))


if __name__ == "__main__":
    main()
