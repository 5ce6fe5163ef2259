"""Time of a private step on K views of each image against a plain step on the same views.

    python -m benchmarks.augmult --model wrn-16-4 --batch 16 --views 1 4 16 --rounds 5 --json

Both steps see the same bytes and the same views, drawn anew each round. The plain step is forward,
mean loss, backward; the private one is the clipped sum with views averaged inside each image before
clipping. Steps take turns in alternating order after one round that is not counted; ratios are taken within a
round, and medians reported. Time is this process's processor time, so that others on the machine disturb
little; give it one thread (OMP_NUM_THREADS=1). `augmentation_share` is the time that drawing the views takes,
over the private step's with them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.nn import functional as F

from reticent.clip import ClipEngine
from reticent.recipes.vision._augment import Views, mean_over_views
from reticent.recipes.vision._networks import network

SETTINGS: Final = ("batch", "side", "rounds", "colour", "hue")


def measure(
    model_name: str, *, batch: int, side: int, views: int, rounds: int, colour: float, hue: float
) -> dict[str, Any]:
    """Medians over rounds for one number of views."""
    torch.manual_seed(0)
    model = network(model_name, shape=(3, side, side), num_classes=10)
    x = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    y = torch.randint(0, 10, (batch,))
    transform, generator = Views(multiplicity=views, colour=colour, hue=hue), torch.Generator().manual_seed(0)
    losses = mean_over_views(lambda m, rows: F.cross_entropy(m(rows[0]), rows[1], reduction="none"))
    engine = ClipEngine(model, max_norm=1.0)

    def private(rows: Any) -> None:
        engine.clipped_sum(lambda given: losses(model, given), rows)

    def plain(rows: Any) -> None:
        model.zero_grad()
        losses(model, rows).mean().backward()

    engine.check(lambda given: losses(model, given), transform((x[:4], y[:4]), generator))
    rows = transform((x, y), generator)
    private(rows)
    plain(rows)
    shares, ratios, times = [], [], {"augmentation": [], "private": [], "plain": []}
    for turn in range(rounds):
        took = {"augmentation": _timed(lambda: transform((x, y), generator))}
        rows = transform((x, y), generator)
        order = (("private", private), ("plain", plain))
        for name, step in order if turn % 2 else reversed(order):
            took[name] = _timed(lambda step=step, rows=rows: step(rows))
        model.zero_grad()
        ratios.append(took["private"] / took["plain"])
        shares.append(took["augmentation"] / (took["augmentation"] + took["private"]))
        for name, seconds in took.items():
            times[name].append(seconds)
    return {
        "views": views,
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "augmentation_share": statistics.median(shares),
        "seconds": {name: statistics.median(values) for name, values in times.items()},
    }


def _timed(step: Callable[[], Any]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augmult",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--model", default="wrn-16-4")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--colour", type=float, default=0.0)
    parser.add_argument("--hue", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    rows = [
        measure(args.model, views=k, **{name: getattr(args, name) for name in SETTINGS}) for k in args.views
    ]
    if args.json:
        settings = {"model": args.model, **{name: getattr(args, name) for name in SETTINGS}}
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps({**settings, "rows": rows, **machine}))
        return
    print("| views | private / plain | augmentation of a private step |\n|---|---|---|")
    for row in rows:
        print(f"| {row['views']} | {row['time_ratio']:.2f} | {row['augmentation_share']:.1%} |")


if __name__ == "__main__":
    main()
