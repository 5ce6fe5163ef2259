"""Synthetic run folders: a real ledger, everything else written by hand as the joint writes it."""

import json
import math
from pathlib import Path

from reticent.account import epsilon
from reticent.account.ledger import Ledger
from reticent.clipping import FlatClipping
from reticent.plan import Plan
from reticent.records import NeighbouringRelation
from reticent.sample import FullBatchSampler, PoissonSampler


def make_run(
    folder: Path,
    *,
    num_steps: int = 40,
    planned_steps: int = 40,
    noise_multiplier: float = 10.0,
    sampling_prob: float = 1.0,
    delta: float = 1e-5,
    num_examples: int | None = 60_000,
    reproducible: bool = False,
    private: bool = True,
    ledger: bool = True,
    lost: int = 0,
    twin: bool = True,
    ema: bool = True,
    recipe: str = "fashion-mnist",
    finished: bool = True,
    run_id: str = "synthetic",
) -> Path:
    """Write a run folder of `num_steps` performed steps, of which `lost` were lost in a crash.

    Full batches by default: their exact epsilon is instantaneous, which twenty points of Poisson are not.
    """
    folder.mkdir(parents=True)
    relation = NeighbouringRelation.ZERO_OUT if num_examples else NeighbouringRelation.ADD_OR_REMOVE
    plan = _plan(num_examples, sampling_prob, planned_steps, noise_multiplier, delta)
    step = plan.mechanism
    if ledger:
        with Ledger.create(
            folder / "ledger.jsonl",
            run_id=run_id,
            relation=relation,
            delta=delta,
            num_steps=planned_steps,
            reproducible=reproducible,
            public={
                "clipping": plan.describe()["clipping"],
                "expected_batch_size": plan.expected_batch_size,
            },
        ) as book:
            for done in range(1, num_steps + 1):
                book.append_step(step)
                if lost and done == num_steps // 2:
                    book.append_resume(checkpoint_step=done - lost)
    _write(
        folder / "run.json",
        {
            "format": 1,
            "run_id": run_id,
            "created": "2026-11-22T10:00:00+00:00",
            "recipe": recipe,
            "config": {"recipe": recipe, "seed": 7, "optimizer": {"name": "sgd", "lr": 2.0}, "twin": twin},
            "plan": plan.describe() if private else None,
            "environment": {"reticent": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "threads": 2},
            "model": {"num_parameters": 25_010, "num_trainable": 25_010},
            "data": {"name": recipe, "source": "a public mirror", "licence": "MIT"},
            "private": private,
        },
    )
    _write_metrics(folder / "metrics.jsonl", ceiling=0.87, steps=num_steps, ema=ema)
    if finished:
        holds = private and ledger and not reproducible and noise_multiplier > 0
        _write(
            folder / "result.json",
            {
                "private": holds,
                "epsilon": epsilon([(step, num_steps)], delta=delta).epsilon if holds else None,
                "test_accuracy": 0.868,
                "weights": "ema" if ema else "last",
                "seconds": 212.4,
                **({"twin": {"test_accuracy": 0.909, "seconds": 90.0, "time_ratio": 2.36}} if twin else {}),
            },
        )
    if twin:
        (folder / "twin").mkdir()
        _write_metrics(folder / "twin" / "metrics.jsonl", ceiling=0.91, steps=num_steps, ema=False)
        _write(folder / "twin" / "result.json", {"private": False, "test_accuracy": 0.909, "seconds": 90.1})
    return folder


def _plan(
    num_examples: int | None, sampling_prob: float, num_steps: int, noise_multiplier: float, delta: float
) -> Plan:
    if num_examples is None:
        sampler = PoissonSampler(sampling_prob=sampling_prob, expected_batch_size=4096)
    elif sampling_prob < 1:
        sampler = PoissonSampler(num_examples=num_examples, expected_batch_size=sampling_prob * num_examples)
    else:
        sampler = FullBatchSampler(num_examples=num_examples)
    return Plan(
        sampler=sampler,
        num_steps=num_steps,
        noise_multiplier=noise_multiplier,
        clipping=FlatClipping(max_norm=0.5),
        delta=delta,
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_metrics(path: Path, *, ceiling: float, steps: int, ema: bool) -> None:
    lines = []
    for step in sorted({steps * k // 8 for k in range(1, 9)} - {0}):
        accuracy = ceiling * (1 - math.exp(-4 * step / steps))
        for weights, bonus in (("last", 0.0), ("ema", 0.008))[: 2 if ema else 1]:
            lines.append(
                {
                    "step": step,
                    "split": "test",
                    "weights": weights,
                    "accuracy": round(accuracy + bonus, 4),
                    "loss": round(1.5 - accuracy, 4),
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
