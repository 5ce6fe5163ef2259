"""Attack models, with and without privacy, and draw what the attacker gets.

    python -m benchmarks.audit --out audit                # everything whose libraries are installed
    python -m benchmarks.audit --out audit --only membership reconstruction

FOLDER/audit.json keeps every figure, and an interrupted command goes on from it; roc.png, success.png,
reconstruction.png and one-step.png are drawn from it and from the pictures beside it. The part `outside`
needs Opacus. With --run RUN the figures are also laid beside RUN/audit.json (`reticent audit RUN` makes it),
from which `reticent report RUN` takes them.
"""

import argparse
import json
import platform
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.audit import drawing, membership, opacus_canaries, opacus_rows, reconstruction

PARTS = ("membership", "reconstruction", "one-step", "outside")
EPSILONS = (1.0, 8.0, 100.0, 1000.0)
NUM_PICTURES = 8
NON_PRIVATE = {"softmax, final weights": "softmax", "hidden, updates": "hidden"}


class Kept:
    """Results in a folder: what is there is not computed again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "audit.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result by name; an entry `pictures` goes to a file of its own."""
        if name not in self.found:
            made = make()
            if "pictures" in made:
                np.save(self._pictures(name), made.pop("pictures").numpy())
            self.found[name] = made
            self.keep()
            print(f"{name}: {json.dumps({k: v for k, v in made.items() if k != 'attacks'})}", flush=True)
        return self.found[name]

    def pictures(self, name: str) -> np.ndarray:
        """The pictures of a result."""
        return np.load(self._pictures(name))

    def _pictures(self, name: str) -> Path:
        plain = name.replace("ε = ", "epsilon ").replace(",", "").replace(" ", "-")
        return self.folder / f"{plain}.npy"

    def keep(self) -> None:
        """Write what there is, with where it was measured."""
        self.found["environment"] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "opacus", "scipy", "torch")},
        }
        self.path.write_text(json.dumps(self.found, indent=1))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def do_membership(kept: Kept, asked: argparse.Namespace) -> None:
    """LiRA and its baseline."""
    shown = {}
    for epsilon in (None, 8.0, 1.0):
        name = "membership, no privacy" if epsilon is None else f"membership, ε = {epsilon:g}"
        shown[name.removeprefix("membership, ")] = kept.get(
            name,
            lambda e=epsilon: membership.measure(e, num_shadows=asked.shadows, num_targets=asked.targets),
        )
    drawing.curves(shown, kept.folder / "roc.png")


def do_reconstruction(kept: Kept, asked: argparse.Namespace) -> None:
    """The informed adversary."""
    where = reconstruction.world(asked.trainings)
    some = range(min(asked.non_private, asked.trainings))
    for name, model in NON_PRIVATE.items():

        def read_off(model: str = model) -> dict[str, Any]:
            found = (
                reconstruction.from_final_weights(where, some)
                if model == "softmax"
                else reconstruction.from_updates(where, some, reconstruction.hidden)
            )
            return {**reconstruction.quality(where, found), "pictures": found[:NUM_PICTURES]}

        kept.get(f"no privacy, {name}", read_off)
    runs = []
    for model in ("softmax", "hidden"):
        for epsilon in asked.epsilons:
            runs.append(
                kept.get(
                    f"{model}, ε = {epsilon:g}",
                    lambda m=model, e=epsilon: reconstruction.private(where, e, m),
                )
            )
    drawing.success(runs, kept.folder / "success.png")
    for epsilon in asked.epsilons:
        kept.get(
            f"pictures, ε = {epsilon:g}",
            lambda e=epsilon: reconstruction.drawn(where, e, "softmax", NUM_PICTURES),
        )
    rows = {
        "original": where.targets[0][:NUM_PICTURES].numpy(),
        **{f"no privacy,\n{name}": kept.pictures(f"no privacy, {name}") for name in NON_PRIVATE},
        **{
            f"ε = {e:g}" + ",\nevery update": kept.pictures(f"pictures, ε = {e:g}")
            for e in reversed(asked.epsilons)
        },
        "the prior\n(public mean)": [
            where.prior(int(y)).mean.numpy() for y in where.targets[1][:NUM_PICTURES]
        ],
    }
    drawing.side_by_side(rows, kept.folder / "reconstruction.png")


def do_one_step(kept: Kept, asked: argparse.Namespace) -> None:
    """Gradient inversion."""
    where = reconstruction.world(max(asked.trainings, NUM_PICTURES))
    rows: dict[str, Any] = {"original": where.targets[0][:NUM_PICTURES].numpy()}
    for epsilon in (None, *reversed(asked.epsilons)):
        name = "one step, no privacy" if epsilon is None else f"one step, ε = {epsilon:g}"

        def invert(epsilon: float | None = epsilon) -> dict[str, Any]:
            found = reconstruction.one_step(where, range(NUM_PICTURES), epsilon)
            return {**reconstruction.quality(where, found), "pictures": found}

        kept.get(name, invert)
        rows[name.removeprefix("one step, ")] = kept.pictures(name)
    drawing.side_by_side(rows, kept.folder / "one-step.png")


def do_outside(kept: Kept, asked: argparse.Namespace) -> None:
    """Opacus."""
    if _version("opacus") is None:
        print("outside: Opacus is not installed (the extra `bench` brings it)")
        return
    for library, train in (
        ("opacus", opacus_rows.one_step_of_opacus),
        ("reticent", opacus_rows.one_step_of_ours),
    ):
        kept.get(f"{library}, number of rows", lambda t=train: opacus_rows.count_of_rows(t, asked.runs))
    kept.get("opacus, number of rows, claim", opacus_rows.claims)
    for trainer in (opacus_canaries.used_well, opacus_canaries.shuffled):
        name = f"opacus, {trainer.__name__.replace('_', ' ')}"
        kept.get(name, lambda t=trainer: opacus_canaries.gradient_canaries(t)[1])


CAPTIONS = {
    "reconstruction.png": "Another training, of a small model on Fashion-MNIST: what somebody who knows all "
    "but one example reads off it, without privacy and at several ε.",
    "success.png": "The same attacker chooses among candidates: how often he is right.",
    "one-step.png": "A picture recovered from the gradient of one step, without privacy and at several ε.",
    "roc.png": "Membership in small models of digits, by likelihood ratios.",
}


def attach(figures: Path, run: Path) -> None:
    """Lay figures beside a run's `audit.json`, and name them in it."""
    path = run / "audit.json"
    record = json.loads(path.read_text())
    here = [name for name in CAPTIONS if (figures / name).exists()]
    for name in here:
        shutil.copyfile(figures / name, run / f"audit-{name}")
    others = [p for p in record["pictures"] if p["file"].removeprefix("audit-") not in here]
    record["pictures"] = [*others, *({"file": f"audit-{n}", "caption": CAPTIONS[n]} for n in here)]
    path.write_text(json.dumps(record, indent=2))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--run", type=Path, help="a run with an audit.json, whose report shall show the figures"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shadows", type=int, default=32, help="models that the attacker trains, a setting")
    parser.add_argument("--targets", type=int, default=16, help="models under attack, a setting")
    parser.add_argument("--trainings", type=int, default=100, help="private trainings, a model and epsilon")
    parser.add_argument("--non-private", type=int, default=20, help="trainings without privacy, a model")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--runs", type=int, default=1000, help="runs to tell 1000 rows from 1001 by")
    asked = parser.parse_args()
    if asked.run is not None and not (asked.run / "audit.json").exists():
        parser.error(f"{asked.run} has no audit.json: run `reticent audit {asked.run}` first")
    warnings.filterwarnings("ignore", module="opacus")
    torch.manual_seed(0)  # of loaders and noise outside; ours come from the operating system
    kept = Kept(asked.out)
    do = {
        "membership": do_membership,
        "reconstruction": do_reconstruction,
        "one-step": do_one_step,
        "outside": do_outside,
    }
    for part in asked.only:
        do[part](kept, asked)
    if asked.run is not None:
        attach(asked.out, asked.run)


if __name__ == "__main__":
    main()
