"""Reconstruction of Fashion-MNIST pictures: what the informed adversary gets, with and without privacy.

The adversary knows 99 of 100 training examples, the algorithm and every public constant. Without privacy he
has the final weights of a convex model, or every update of a network; with privacy, every noised update.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import reticent as rt
from benchmarks.audit.training import (
    DELTA,
    Rows,
    losses,
    seeded,
    step_plainly,
    step_privately,
    what_it_allows,
)
from reticent.audit import (
    PicturePrior,
    Release,
    candidate_scores,
    clopper_pearson_upper,
    first_layer_input,
    likely_input,
    match_gradient,
    nearer_than_pool,
    releases,
    residual_at_optimum,
    residuals,
)
from reticent.data import load

NUM_ROWS, NUM_STEPS, MAX_NORM, PENALTY = 100, 5, 1.0, 1.0
POOLS = (10, 100)  # candidates: the prior's chance of being right is one in so many


def softmax() -> nn.Module:
    """A convex model: one linear layer."""
    return nn.Sequential(nn.Linear(784, 10))


def hidden() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def convolutions() -> nn.Module:
    """A small smooth network of two convolutions, for pictures of one channel."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 12, 5, 2, 2), nn.Tanh(),
        nn.Conv2d(12, 12, 5, 2, 2), nn.Tanh(),
        nn.Flatten(), nn.Linear(12 * 49, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"softmax": softmax, "hidden": hidden}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Who knows what.

    Args:
        known: 99 training examples.
        targets: examples, each of which is the last one in a training of its own.
        pool: public examples, none of them a target.
    """

    known: Rows
    targets: Rows
    pool: Rows

    def rows(self, i: int) -> Rows:
        """Target i and the known examples."""
        return tuple(torch.cat([t[i : i + 1], k]) for t, k in zip(self.targets, self.known, strict=True))

    def candidates(self, i: int, num: int) -> Rows:
        """Target i and public examples, other ones for each target."""
        others = torch.from_numpy(np.random.default_rng(i).permutation(len(self.pool[0]))[: num - 1])
        return tuple(
            torch.cat([t[i : i + 1], p[others]]) for t, p in zip(self.targets, self.pool, strict=True)
        )

    def prior(self, label: int) -> PicturePrior:
        """What public examples of a label look like."""
        return PicturePrior.of(self.pool[0][self.pool[1] == label])


def world(num_targets: int, num_pool: int = 2000, name: str = "fashion-mnist") -> World:
    """Known examples and targets of the training split, a pool of the test split."""
    data = load(name)
    x = torch.from_numpy(np.asarray(data.train.x[: NUM_ROWS - 1 + num_targets])).float().flatten(1) / 255.0
    y = torch.from_numpy(np.asarray(data.train.y[: len(x)])).long()
    pool = torch.from_numpy(np.asarray(data.test.x[:num_pool])).float().flatten(1) / 255.0
    labels = torch.from_numpy(np.asarray(data.test.y[:num_pool])).long()
    cut = NUM_ROWS - 1
    return World(known=(x[:cut], y[:cut]), targets=(x[cut:], y[cut:]), pool=(pool, labels))


def optimum(rows: Rows, start: nn.Module) -> nn.Module:
    """Train a convex model to the end: the least of summed loss and penalty, in float64."""
    model = seeded(softmax, 0).double()
    model.load_state_dict(start.state_dict())
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, max_eval=3000, history_size=50, tolerance_grad=1e-7,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        total = losses(model, rows).sum() + PENALTY / 2 * squares
        total.backward()
        return total

    optimizer.step(closure)
    return model


def from_final_weights(where: World, targets: Sequence[int]) -> Tensor:
    """Each target read off the final weights of the convex model, trained without privacy."""
    known = (where.known[0].double(), where.known[1])
    without = optimum(known, seeded(softmax, 0).double())  # where training starts, to save time
    found = []
    for i in targets:
        x, y = where.rows(i)
        model = optimum((x.double(), y), without)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        left = residual_at_optimum(weights, model, losses, known, penalty=PENALTY)
        found.append(first_layer_input([left]).float())
    return torch.stack(found)


def from_updates(where: World, targets: Sequence[int], build: Callable[[], nn.Module]) -> Tensor:
    """Each target read off the updates of training without privacy."""
    found = []
    for i in targets:
        model = seeded(build, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with releases(model, optimizer) as seen:
            step_plainly(model, optimizer, where.rows(i), num_steps=NUM_STEPS)
        found.append(first_layer_input(residuals(seen, model, losses, where.known, divisor=NUM_ROWS)))
    return torch.stack(found)


def plan_for(epsilon: float, num_rows: int = NUM_ROWS, num_steps: int = NUM_STEPS) -> rt.Plan:
    """Full batches: the adversary knows who takes part."""
    return rt.Plan.calibrate(
        budget=rt.Budget(epsilon=epsilon, delta=DELTA),
        sampler=rt.FullBatchSampler(num_examples=num_rows),
        num_steps=num_steps,
        clipping=rt.FlatClipping(max_norm=MAX_NORM),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One private training, as the adversary has it."""

    private: rt.PrivateStep
    seen: list[Release]
    left: list[dict[str, Tensor]]
    model: nn.Module


def watch(where: World, i: int, plan: rt.Plan, build: Callable[[], nn.Module]) -> Watched:
    """Train privately on target i and the known examples, and take those away."""
    model = seeded(build, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with releases(model, optimizer) as seen:
        private = step_privately(model, optimizer, where.rows(i), plan=plan)
    left = residuals(seen, model, losses, where.known, divisor=plan.expected_batch_size, max_norm=MAX_NORM)
    return Watched(private=private, seen=seen, left=left, model=model)


def guess(where: World, i: int, attacked: Watched, plan: rt.Plan) -> Tensor:
    """The adversary's best picture of target i, whose label he knows."""
    label = where.targets[1][i : i + 1]
    return likely_input(
        attacked.seen, attacked.left, attacked.model, losses, label, where.prior(int(label)),
        noise_std=plan.noise_multiplier * MAX_NORM, max_norm=MAX_NORM,
    )  # fmt: skip


def private(where: World, epsilon: float, name: str) -> dict[str, Any]:
    """Attack one training for each target: guess it among candidates."""
    plan, began = plan_for(epsilon), time.perf_counter()
    right = dict.fromkeys(POOLS, 0)
    num = len(where.targets[0])
    attacked = None
    for i in range(num):
        attacked = watch(where, i, plan, MODELS[name])
        scores = candidate_scores(
            attacked.seen, attacked.left, attacked.model, losses, where.candidates(i, max(POOLS)),
            max_norm=MAX_NORM,
        )  # fmt: skip
        for size in POOLS:
            right[size] += bool(scores[0] > scores[1:size].max())
    assert attacked is not None
    bounds = dict(what_it_allows(attacked.private).reconstruction)
    return {
        "model": name,
        "epsilon": attacked.private.epsilon().epsilon,
        "num_trainings": num,
        "guesses": [
            {
                "candidates": size,
                "prior": 1 / size,
                "right": right[size],
                "success": right[size] / num,
                "lower_95": 1.0 - clopper_pearson_upper(num - right[size], num, chance=0.025),
                "upper_95": clopper_pearson_upper(right[size], num, chance=0.025),
                "bound": bounds[1 / size],
            }
            for size in POOLS
        ],
        "seconds": round(time.perf_counter() - began, 1),
    }


def drawn(where: World, epsilon: float, name: str, num_pictures: int) -> dict[str, Any]:
    """The adversary's best pictures of the first targets, from one private training for each."""
    plan = plan_for(epsilon)
    found = torch.stack(
        [guess(where, i, watch(where, i, plan, MODELS[name]), plan) for i in range(num_pictures)]
    )
    return {**quality(where, found), "pictures": found}


def quality(where: World, found: Tensor) -> dict[str, Any]:
    """How near pictures of the first targets are: to the truth, beside the prior's mean."""
    targets = where.targets[0][: len(found)]
    labels = where.targets[1][: len(found)].tolist()
    means = torch.stack([where.prior(label).mean for label in labels])
    off, off_prior = (found - targets).square().mean(1), (means - targets).square().mean(1)
    return {
        "num_pictures": len(found),
        "nearer_than_any_public": sum(nearer_than_pool(found, targets, where.pool[0])),
        "mean_squared_error": float(off.mean()),
        "mean_squared_error_of_prior": float(off_prior.mean()),
        "nearer_than_prior": int((off < off_prior).sum()),
    }


def one_step(where: World, targets: Sequence[int], epsilon: float | None) -> Tensor:
    """Gradient inversion: one step on the target alone, released with noise or (None) as it is."""
    found = []
    for i in targets:
        rows = tuple(part[i : i + 1] for part in where.targets)
        model = seeded(convolutions, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with releases(model, optimizer) as seen:
            if epsilon is None:
                step_plainly(model, optimizer, rows, num_steps=1)
            else:
                step_privately(model, optimizer, rows, plan=plan_for(epsilon, 1, 1))
        start = where.pool[0].mean(0)[None].unflatten(1, (28, 28))

        def on_pictures(model: nn.Module, rows: Any) -> Tensor:
            return losses(model, (rows[0].flatten(1), rows[1]))

        found.append(match_gradient(model, on_pictures, seen[0].gradient, start, rows[1]).flatten())
    return torch.stack(found)
