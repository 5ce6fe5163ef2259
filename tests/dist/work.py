"""What each rank of the tests' jobs does: `python work.py TASK+TASK RANK SIZE FOLDER`; see `ranks.py`."""

import dataclasses
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from reticent.bounded import BoundedSum
from reticent.clip import ClipEngine, SumsOnDemand
from reticent.clipping import AdaptiveClipping, FlatClipping, PerLayerClipping
from reticent.dist import Replicas
from reticent.errors import ReticentError
from reticent.noise import CipherNoise, NoiseSource
from reticent.plan import Plan
from reticent.sample import PoissonSampler, SampleStream
from reticent.train import PrivateStep
from tests.support.case import Problem
from tests.support.judge import median_norm
from tests.support.oracle import loop_clipped_sum, take_rows
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model, make_plan, take, with_rows

CLIPPINGS = {
    "flat": FlatClipping(max_norm=0.5),
    "per-layer": PerLayerClipping(max_norm=0.5),
    "adaptive": AdaptiveClipping(initial_max_norm=0.5),
}


def plan_with(clipping, *, num_steps=3):
    return Plan(
        sampler=PoissonSampler(num_examples=64, expected_batch_size=16),
        num_steps=num_steps,
        noise_multiplier=1.0,
        clipping=clipping,
        delta=1e-3,
        budget=None,
    )


def trained(ranks, folder, clipping, **options: Any):
    """Weights after a few steps on known batches, without noise."""
    torch.set_default_dtype(torch.float64)
    model = make_model(seed=ranks.rank)  # the leader's weights must win
    plan, without = plan_with(CLIPPINGS[clipping]), cast(NoiseSource, NoNoise())
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    private = PrivateStep(
        model, sgd, plan=plan, ledger=folder / clipping, noise=without, ranks=ranks, **options
    )
    x, y = make_data().tensors
    for batch in plan.batches((x.double(), y), stream=SampleStream.fresh()):
        rng = np.random.default_rng(batch.step)  # other ranks drew other batches, which must not matter
        mine = rng.choice(64, 13 + batch.step, replace=False) if ranks.leads else np.arange(5)
        take(private, with_rows(batch, np.sort(mine)))
    return {
        "weights": [p.tolist() for p in model.parameters()],
        "clip_norms": private.clip_norms,
        "head": private.head,
        "num_steps": private.num_steps,
        "epsilon": private.epsilon().epsilon,
    }


def same_sums(ranks, folder):
    return {name: trained(ranks, folder, name, physical_batch_size=4) for name in CLIPPINGS}


def networks(ranks, folder):
    """Sums of shares, added up, against one process: the loop for flat clipping, the engine per layer."""
    from tests.dist.sharded import gpt2, vit, wrn

    return {"wrn": summed(ranks, wrn, 5), "gpt2": summed(ranks, gpt2, 3), "vit": summed(ranks, vit, 5)}


def summed(ranks, make, num_rows):
    problem, _ = make()
    batch = take_rows(problem.batch, torch.arange(num_rows) % problem.num_rows)
    model, losses = problem.model, problem.losses
    max_norm = median_norm(Problem(model=model, losses=losses, batch=batch))
    flat, by_layer = FlatClipping(max_norm=max_norm), PerLayerClipping(max_norm=max_norm)
    total, norms = loop_clipped_sum(model, losses, batch, max_norm)
    layered = ClipEngine(model, clipping=by_layer).clipped_sum(losses, batch).total
    mine, errors = torch.from_numpy(ranks.share(np.arange(num_rows))), {}
    for name, clipping, wanted in (("flat", flat, total), ("per-layer", by_layer, layered)):
        engine = ClipEngine(model, clipping=clipping)
        assert ranks.hold(model).zeros({}) is None
        out = SumsOnDemand({n: p for n, p in model.named_parameters() if p.requires_grad})
        for start in range(0, len(mine), 2):
            engine.clipped_sum(losses, take_rows(batch, mine[start : start + 2]), out=out)
        part = BoundedSum(total=out, bound=max_norm, norms=torch.empty(0))
        whole = ranks.add_noise(part, noise_multiplier=0.0, source=cast(NoiseSource, NoNoise()))
        errors[name] = max(float((whole[n] - wanted[n]).abs().max()) for n in wanted)
    return {"errors": errors, "clipped": int((norms > max_norm).sum()), "num_rows": num_rows}


def noise(ranks, folder):
    """The noise of one step over many coordinates whose gradient is zero; one row is drawn, or none."""
    model = nn.Linear(400, 301, bias=False)
    nn.init.zeros_(model.weight)
    plan = make_plan(noise_multiplier=1.7, max_norm=0.3, num_steps=2)
    private = PrivateStep(
        model, torch.optim.SGD(model.parameters(), lr=1.0), plan=plan, ledger=folder / "noise", ranks=ranks
    )
    seen = []
    for batch in plan.batches((torch.ones(64, 400),)):
        before = model.weight.detach().clone()
        take(private, with_rows(batch, np.arange(batch.step)), loss=lambda m, r: 0.0 * m(r[0]).sum(1))
        seen.append((before - model.weight.detach()).flatten() * plan.expected_batch_size)
    np.save(folder / f"noise-{ranks.rank}.npy", torch.stack(seen).numpy())
    return {}


def one_fails(ranks, folder):
    """The last rank's loss raises in the first try; then all take the step again."""
    model, plan = make_model(), make_plan()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "fails", ranks=ranks)
    batch = with_rows(next(iter(plan.batches(make_data()))), np.arange(8))

    def breaks(model, rows):
        if ranks.rank == ranks.size - 1:
            raise ValueError("mine")
        return cross_entropy(model, rows)

    try:
        take(private, batch, loss=breaks)
        error = None
    except (ReticentError, ValueError) as e:
        error = getattr(e, "code", str(e))
    spent = private.num_steps
    take(private, batch)
    return {"error": error, "spent": spent, "then": private.num_steps}


def out_of_memory(ranks, folder):
    """One rank runs out of memory: all hear of it as such, so that all can try again in smaller chunks."""
    model, plan = make_model(), make_plan()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "memory", ranks=ranks)
    batch = with_rows(next(iter(plan.batches(make_data()))), np.arange(8))

    def breaks(model, rows):
        if ranks.rank == 0:
            raise torch.OutOfMemoryError("full")
        return cross_entropy(model, rows)

    try:
        take(private, batch, loss=breaks)
        return {"error": None}
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}


def differ(ranks, folder):
    """Plans, models, optimizers that are not the same; and an error before the ranks first speak."""
    codes = []

    def attempt(*, noise_multiplier=1.0, momentum=0.0, buffer=False, **options: Any):
        model = make_model()
        if buffer:
            model.register_buffer("mean", torch.zeros(2 + ranks.rank))
        sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
        plan = make_plan(noise_multiplier=noise_multiplier)
        try:
            PrivateStep(model, sgd, plan=plan, ledger=folder / f"d{len(codes)}", ranks=ranks, **options)
            codes.append(None)
        except ReticentError as e:
            codes.append(e.code)

    attempt(noise_multiplier=1.0 + ranks.rank)
    attempt(momentum=0.5 * ranks.rank)
    attempt(buffer=True)
    attempt(seed=ranks.rank)
    attempt(physical_batch_size=ranks.rank)  # 0 is refused on one rank, which the other hears of
    attempt()
    return {"codes": codes}


def other_shards(ranks, folder):
    """Each rank gives rows of its own instead of the whole data set."""
    model, plan = make_model(), make_plan()
    plan = dataclasses.replace(plan, sampler=PoissonSampler(sampling_prob=0.25, expected_batch_size=16))
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "shards", ranks=ranks)
    try:
        take(private, next(iter(plan.batches(make_data(num_examples=40 + ranks.rank)))))
    except ReticentError as e:
        return {"error": e.code}
    return {"error": None}


class Augmented(torch.utils.data.Dataset):
    """Rows that are changed at random when they are read, by torch's generator or one of their own."""

    def __init__(self, order, own):
        self._rows, self._order, self._own = make_data(), order, own
        self._rng = np.random.default_rng()

    def __len__(self):
        return len(self._order)

    def __getitem__(self, i):
        x, y = self._rows[int(self._order[i])]
        noise = torch.from_numpy(self._rng.normal(size=6)).float() if self._own else torch.randn(6)
        return x + 0.1 * noise, y


def orders(ranks, folder):
    """Rows that the second rank has in another order, or that it changes at random."""
    given = torch.arange(64)
    turned = given if ranks.leads else given.flip(0)
    whole = make_data().tensors
    data = {
        "turned": tuple(t[turned] for t in whole),
        "labels": (whole[0], whole[1] if ranks.leads else 1 - whole[1]),
        "augmented": Augmented(given, own=False),
        "augmented-turned": Augmented(turned, own=False),
        "own-generator": Augmented(given, own=True),
        "own-generator-turned": Augmented(turned, own=True),
    }
    codes = {}
    for name, dataset in data.items():
        model, plan = make_model(), make_plan()
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        private = PrivateStep(model, sgd, plan=plan, ledger=folder / f"order-{name}", ranks=ranks)
        torch.manual_seed(5)
        before = (torch.get_rng_state().sum(), cast(Any, np.random.get_state())[1].sum())
        try:
            with private.step(next(iter(plan.batches(dataset)))) as step:
                assert (torch.get_rng_state().sum(), cast(Any, np.random.get_state())[1].sum()) == before
                for chunk in step.chunks():
                    step.backward(cross_entropy, chunk)
            codes[name] = None
        except ReticentError as e:
            codes[name] = (e.code, private.num_steps)
    return codes


def unnamed_group(ranks, folder):
    """A process group that PrivateStep was not told of; and a disk that refuses the leader's entry."""
    model, plan = make_model(), make_plan()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    errors = []
    try:
        PrivateStep(model, sgd, plan=plan, ledger=folder / f"alone-{ranks.rank}")
    except ReticentError as e:
        errors.append(e.code)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "gone", ranks=ranks)
    if ranks.leads:
        (folder / "gone" / "ledger.jsonl").unlink()
    before = [p.detach().clone() for p in model.parameters()]
    try:
        take(private, next(iter(plan.batches(make_data()))))
    except ReticentError as e:
        errors.append(e.code)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return {"errors": errors, "moved": moved}


def reproducible_noise(ranks, folder):
    """The ranks' reproducible streams are apart."""
    z = CipherNoise.reproducible(3, rank=ranks.rank).normal((4,), dtype=torch.float64)
    return {"z": z.tolist()}


def main(tasks, make_ranks):
    task, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    result = {name: tasks[name](make_ranks(), folder) for name in task.split("+")}
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(globals(), Replicas)
