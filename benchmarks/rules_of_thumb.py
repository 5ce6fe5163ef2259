"""The rules of Li et al. 2022 for private fine-tuning, each as a small sweep: table, plots, JSON.

    python -m benchmarks.rules_of_thumb --work DIR --out FILE.json

Batch size at a fixed number of updates, learning rate, clipping norm, and a smaller against a bigger
pretrained model: a linear layer on frozen features (mean over tokens of MiniLM and of MPNet) of 2,000
film reviews of Rotten Tomatoes cut to 32 tokens, tested on 500 others, at epsilon 3 and delta 1 / (2 N);
three runs with fresh noise for each point. Full fine-tuning (but for word embeddings), LoRA and biases
alone: MiniLM on all training reviews through the recipe `text-classify` at epsilon 3, its own settings, one
run each, about ten minutes.
Everything that is done is kept in DIR, so that the same command goes on where it was stopped.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679, section 3.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from reticent.clipping import FlatClipping
from reticent.data import load
from reticent.plan import Plan
from reticent.recipes import go_on, request, run
from reticent.recipes.text._pretrained import pretrained_folder
from reticent.records import Budget
from reticent.report import Curve, draw_curves
from reticent.sample import PoissonSampler
from reticent.train import Evaluation, train

MODELS: Final = ("minilm", "mpnet")
NUM_TRAIN, NUM_TEST, LENGTH, TIMES = 2000, 500, 32, 3
USUAL: Final = {"expected_batch_size": 512, "lr": 0.01, "max_norm": 0.1}
SWEPT: Final = {
    "expected_batch_size": (32, 128, 512, 2000),
    "lr": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "max_norm": (0.01, 0.1, 1.0, 10.0, 100.0),
}
ADAPTATIONS: Final = ("full", "lora", "bias")


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the linear layer on one model's features."""

    model: str
    expected_batch_size: int
    lr: float
    max_norm: float

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.model} B={self.expected_batch_size} lr={self.lr:g} C={self.max_norm:g}"


def points() -> Iterator[tuple[str, Point]]:
    """(rule, point), the usual setting among the points of every rule."""
    for model in MODELS:
        for name, values in SWEPT.items():
            for value in values:
                yield name, Point(model, **{**USUAL, name: value})


def features(model: str, work: Path) -> Mapping[str, np.ndarray]:
    """Mean over tokens of every review's last hidden states; kept in a file."""
    path = work / f"{model}-{NUM_TRAIN}-{NUM_TEST}.npz"
    if not path.is_file():
        reviews = load("rotten-tomatoes")
        made = {}
        for name, part, size in (("train", reviews.train, NUM_TRAIN), ("test", reviews.test, NUM_TEST)):
            chosen = np.random.default_rng(0).permutation(len(part.x))[:size]
            made[f"{name}_x"] = _embedded(model, [str(part.x[k]) for k in chosen])
            made[f"{name}_y"] = np.asarray(part.y)[chosen]
        part = path.with_suffix(".part.npz")
        np.savez(part, **made)
        part.rename(path)
    return dict(np.load(path))


@torch.no_grad()
def _embedded(name: str, texts: list[str]) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained_folder(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    found = []
    for start in range(0, len(texts), 50):
        rows = tokenizer(
            texts[start : start + 50], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        hidden_BTD = model(**rows).last_hidden_state
        mask_BT1 = rows["attention_mask"].unsqueeze(-1)
        found.append((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1))
    return F.normalize(torch.cat(found)).mul(torch.cat(found).shape[1] ** 0.5).numpy()


@cache
def _plan(expected_batch_size: int, max_norm: float) -> Plan:
    return Plan.calibrate(
        budget=Budget(epsilon=3.0, delta=1 / (2 * NUM_TRAIN)),
        sampler=PoissonSampler(num_examples=NUM_TRAIN, expected_batch_size=float(expected_batch_size)),
        num_steps=60,
        clipping=FlatClipping(max_norm=max_norm),
    )


def _loss(model: nn.Module, rows: Any) -> Tensor:
    return F.cross_entropy(model(rows[0]), rows[1], reduction="none")


def _scores(model: nn.Module, rows: Any) -> dict[str, Tensor]:
    return {"accuracy": (model(rows[0]).argmax(1) == rows[1]).double()}


def measured(point: Point, data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean and spread of the test accuracy over runs with fresh noise, and the largest epsilon."""
    rows = {
        name: TensorDataset(
            torch.from_numpy(data[f"{name}_x"]).float(), torch.from_numpy(data[f"{name}_y"]).long()
        )
        for name in ("train", "test")
    }
    found, spent = [], []
    for _ in range(TIMES):
        model = nn.Linear(rows["train"].tensors[0].shape[1], 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        with tempfile.TemporaryDirectory() as scratch:
            result = train(
                model,
                torch.optim.Adam(model.parameters(), lr=point.lr),
                plan=_plan(point.expected_batch_size, point.max_norm),
                dataset=rows["train"],
                loss_per_example=_loss,
                out=Path(scratch) / "run",
                evaluation=Evaluation(dataset=rows["test"], scores=_scores),
                physical_batch_size=2500,
            )
        found.append(result.scores["last"]["accuracy"])
        spent.append(result.epsilon.epsilon)
    return {
        "accuracy": round(statistics.fmean(found), 4),
        "spread": round(statistics.pstdev(found), 4),
        "epsilon": round(max(spent), 4),
    }


def fine_tuned(adaptation: str, work: Path) -> dict[str, Any]:
    """MiniLM through `text-classify`, at epsilon 3."""
    out = work / f"adaptation-{adaptation}"
    settings = (
        "model=minilm", "data=rotten-tomatoes", "epsilon=3", "max_length=32", f"adaptation={adaptation}",
        "checkpoint_every=5",
    )  # fmt: skip
    result = go_on(out) if (out / "run.json").is_file() else run(request("text-classify", settings), out=out)
    begun = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {
        "accuracy": round(result["test_accuracy"], 4),
        "epsilon": result["epsilon"],
        "num_trainable": begun["model"]["num_trainable"],
        "lr": begun["config"]["lr"],
        "seconds": result["seconds"],
    }


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """One plot for each rule."""
    shown = {"expected_batch_size": "expected batch size", "lr": "learning rate", "max_norm": "clipping norm"}
    drawn = []
    for rule, label in shown.items():
        curves = []
        for colour, model in enumerate(MODELS):
            mine = [p for name, p in points() if name == rule and p.model == model]
            line = [
                (float(getattr(p, rule)), results[p.key]["accuracy"], results[p.key]["spread"]) for p in mine
            ]
            curves.append(Curve(name=model, points=line, private=True, colour=colour))
        title = "Linear layer on frozen features, 2,000 reviews, ε = 3"
        drawn += draw_curves(curves, folder, stem=f"rules-{rule}", x=label, y="test accuracy", title=title)
    ways = []
    for colour, name in enumerate(ADAPTATIONS):
        found = results[f"minilm {name}"]
        point = (float(found["num_trainable"]), found["accuracy"], 0.0)
        ways.append(Curve(name=name, points=[point], private=True, colour=colour))
    title = "MiniLM by text-classify, 7,464 reviews, ε = 3"
    return drawn + draw_curves(
        ways, folder, stem="rules-adaptation", x="trained weights", y="test accuracy", title=title
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what is done is kept here")
    parser.add_argument("--out", type=Path, help="the results, with date and versions")
    parser.add_argument("--plots", type=Path, help="draw into this folder")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    done = asked.work / "results.json"
    results: dict[str, Any] = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}

    def once(key: str, make: Callable[[], dict[str, Any]]) -> None:
        if key not in results:
            results[key] = make()
            done.with_suffix(".part").write_text(json.dumps(results, indent=1), encoding="utf-8")
            done.with_suffix(".part").replace(done)
            print(key, results[key], flush=True)

    for model in MODELS:
        wanted = {p.key: p for _, p in points() if p.model == model}
        if not wanted.keys() <= results.keys():
            data = features(model, asked.work)
            for key, point in wanted.items():
                once(key, lambda point=point, data=data: measured(point, data))
    for adaptation in ADAPTATIONS:
        once(f"minilm {adaptation}", lambda adaptation=adaptation: fine_tuned(adaptation, asked.work))
    if asked.out:
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "hardware": "2 CPU cores, shared with other work",
            "command": "python -m benchmarks.rules_of_thumb --work DIR --out FILE.json --plots docs/plots",
            "versions": {name: version(name) for name in ("torch", "transformers", "reticent")},
            "num_train": NUM_TRAIN,
            "num_test": NUM_TEST,
            "usual": USUAL,
        }
        asked.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")
    if asked.plots:
        asked.plots.mkdir(parents=True, exist_ok=True)
        for path in draw(results, asked.plots):
            print(path)


if __name__ == "__main__":
    main()
