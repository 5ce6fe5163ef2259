"""LiRA on digits, with and without privacy, beside the loss threshold and beside what epsilon allows.

Each model is trained on a random half of 500 digits, of which every tenth has a wrong label. Some models are
shadows, which the attacker trained; others, with a fair coin for each example, are attacked.
"""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import reticent as rt
from benchmarks.audit.training import DELTA, Rows, seeded, step_plainly, step_privately, what_it_allows
from reticent.audit import (
    area_under,
    balanced_halves,
    fair_coins,
    lira_offline,
    lira_online,
    one_run_bound,
    roc,
    roc_points,
    scaled_confidence,
    train_shadows,
)
from reticent.data import load

NUM_EXAMPLES, WRONG_EVERY = 500, 10
CONFIDENCE = 0.999


def digits(seed: int = 0) -> Rows:
    """500 of the digits, pixels from 0 to 1; labels of every tenth moved to the next digit."""
    data = load("digits")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(data.train.y))[:NUM_EXAMPLES]
    x = torch.from_numpy(np.asarray(data.train.x)[chosen].reshape(NUM_EXAMPLES, -1)).float() / 16.0
    y = torch.from_numpy(np.asarray(data.train.y)[chosen]).long()
    y[::WRONG_EVERY] = (y[::WRONG_EVERY] + 1) % 10
    return x, y


def network() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def plan_for(epsilon: float, num_steps: int) -> rt.Plan:
    """Poisson sampling by rate alone: the number of rows, which the coins decide, stays secret."""
    return rt.Plan.calibrate(
        budget=rt.Budget(epsilon=epsilon, delta=DELTA),
        sampler=rt.PoissonSampler(sampling_prob=0.2, expected_batch_size=0.1 * NUM_EXAMPLES),
        num_steps=num_steps,
        clipping=rt.FlatClipping(max_norm=1.0),
    )


def train(plan: rt.Plan | None, last: dict[str, Any], rows: Rows) -> nn.Module:
    """A model; `last` keeps the private step, whose ledger says what was spent."""
    model = seeded(network, 0)  # the attacker knows the beginning
    if plan is None:
        step_plainly(model, torch.optim.Adam(model.parameters(), lr=0.01), rows, num_steps=200)
    else:
        last["private"] = step_privately(model, torch.optim.SGD(model.parameters(), lr=1.0), rows, plan=plan)
    return model


def score(rows: Rows, model: nn.Module) -> np.ndarray:
    """Scaled confidence in each example's (perhaps wrong) label."""
    x, y = rows
    with torch.no_grad():
        return scaled_confidence(model(x).double().numpy(), y.numpy())


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of labels predicted."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def measure(
    epsilon: float | None, *, num_shadows: int = 64, num_targets: int = 32, num_steps: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Train shadows and targets, attack, and say how well it went; epsilon None is without privacy."""
    rows, last = digits(), {}
    plan = None if epsilon is None else plan_for(epsilon, num_steps)
    began = time.perf_counter()
    run = partial(train_shadows, partial(train, plan, last), partial(score, rows), rows)
    shadows = run(balanced_halves(num_shadows, NUM_EXAMPLES, seed=seed))
    targets = run(fair_coins(num_targets, NUM_EXAMPLES, seed=seed + 1))
    evidence = {
        "lira_online": lira_online(shadows, targets.scores),
        "lira_offline": lira_offline(shadows, targets.scores),
        "loss_threshold": targets.scores,
    }
    wrong = np.arange(NUM_EXAMPLES) % WRONG_EVERY == 0
    bound = one_run_bound(
        evidence["lira_online"].ravel(), targets.member.ravel(), delta=DELTA, confidence=CONFIDENCE
    )
    found: dict[str, Any] = {
        "epsilon_claimed": None,
        "delta": DELTA,
        "epsilon_lower_bound": bound.epsilon,
        "confidence": CONFIDENCE,
        "method": f"LiRA on-line, {num_shadows} shadows; {num_targets} models attacked: {bound.method}",
        "attacks": {
            name: {
                "area_under_roc": area_under(e, targets.member),
                "area_under_roc_wrong_labels": area_under(e[:, wrong], targets.member[:, wrong]),
                "points": [asdict(p) for p in roc_points(e.ravel(), targets.member.ravel())],
                "curve": thinned(*roc(e, targets.member)),
            }
            for name, e in evidence.items()
        },
        "seconds": round(time.perf_counter() - began, 1),
    }
    if plan is not None:
        private = last["private"]
        found["epsilon_claimed"] = private.epsilon().epsilon
        found["trade_off"] = what_it_allows(private).trade_off
    return found


def thinned(accused: np.ndarray, found: np.ndarray, num: int = 200) -> list[tuple[float, float]]:
    """The curve at false positive rates evenly spaced on a log scale."""
    places = np.searchsorted(accused, np.geomspace(1e-4, 1.0, num), side="right") - 1
    return [(float(accused[i]), float(found[i])) for i in np.unique(places)]
