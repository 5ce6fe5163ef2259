"""What each rank of a tensor parallel job does: `python -m tests.dist.tensor TASK RANK SIZE FOLDER`."""

from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from reticent.clip import ClipEngine
from reticent.clipping import FlatClipping, PerLayerClipping
from reticent.dist import Replicas, Shards, TensorParallel, sliced_shapes
from reticent.dist import _mappings as mappings
from reticent.dist import _tensor_layers as layers
from reticent.errors import ReticentError
from reticent.noise import NoiseSource
from reticent.optim import Lamb
from reticent.sample import SampleStream
from reticent.train import Evaluation, PrivateStep, TrainSettings, train
from tests.dist.sharded import gpt2, held_by, odd, sharded, vit, wrn
from tests.dist.work import CLIPPINGS, main, plan_with
from tests.support.case import Problem
from tests.support.judge import median_norm
from tests.support.oracle import loop_clipped_sum, take_rows
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model, make_plan, take, with_rows


def llama():
    from tests.support.hf import CAUSAL

    return next(c for c in CAUSAL if c.name == "llama-tied-padded").build(0, torch.float64), []


def lora(name):
    """Frozen layers, cut, beside adapters that are cut too where their rank can be divided."""
    from tests.clip.test_peft import EVERYWHERE, adapted

    return adapted(name, EVERYWHERE["lora"]), []


class Shaped(nn.Module):
    """A table, an attention of torch's own, and layers that 2 and 4 divide one way, both, or neither."""

    def __init__(self):
        super().__init__()
        self.table, self.positions = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 13), nn.Linear(13, 8, bias=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, ids):
        x = self.table(ids) + self.positions(torch.arange(5))
        x = self.frozen(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.norm(x + self.down(torch.tanh(self.up(x)))).mean(1))


def shaped():
    torch.manual_seed(0)
    model = Shaped().double()
    rows = (torch.randint(0, 11, (5, 5)), torch.tensor([0, 1, 2, 0, 1]))

    def losses(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Problem(model=model, losses=losses, batch=rows), []


class Between(nn.Module):
    """Two layers, with something between them that takes hidden units one by one, or does not."""

    def __init__(self, between):
        super().__init__()
        self.up, self.between, self.down = nn.Linear(6, 8), between, nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.between(self.up(x)))


def paired(between):
    torch.manual_seed(0)
    model, rows = Between(between).double(), (torch.randn(5, 6).double(), torch.tensor([0, 1, 2, 0, 1]))
    rows[0][3] = torch.inf  # counts as zero

    def losses(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Problem(model=model, losses=losses, batch=rows), []


def pairs(ranks, folder):
    """Hidden units kept in slices: where each is by itself; where not; a whole parameter between slices."""
    named = {(__name__, "Between"): layers._Pair(("up",), "down")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_PAIRS", named)
        betweens = {"right": nn.Tanh(), "mixes": nn.Softmax(-1), "whole": nn.PReLU(dtype=torch.float64)}
        return {
            name: attempted(lambda b=b: compare(ranks, partial(paired, b))) for name, b in betweens.items()
        }


def whole_sums(holding, model, out):
    """Sums as a single process would have them, put together from slices."""
    params = dict(model.named_parameters())
    found = {n: holding.gradient(params[n], part) for n, part in out.items()}
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}


def compare(ranks, make):
    """Sums by slices, put together, against one process: the loop for flat clipping, the engine per layer."""
    problem, _ = make()
    batch, model, losses = problem.batch, problem.model, problem.losses
    max_norm = median_norm(problem)
    flat, by_size = FlatClipping(max_norm=max_norm), PerLayerClipping(max_norm=max_norm, split="size")
    total, norms = loop_clipped_sum(model, losses, batch, max_norm)
    layered = ClipEngine(model, clipping=by_size).clipped_sum(losses, batch).total
    before, errors, gaps = held_by(model), {}, []
    ranks.shard(model)
    holding = ranks.hold(model)
    for name, clipping, wanted in (("flat", flat, total), ("per-layer", by_size, layered)):
        engine = ClipEngine(model, clipping=clipping, held=holding.held)
        engine.check(losses, take_rows(batch, slice(0, 2)))
        out = holding.zeros({})
        for start in range(0, problem.num_rows, 2):
            found = engine.clipped_sum(losses, take_rows(batch, slice(start, start + 2)), out=out)
            if name == "flat":
                mine = norms[start : start + 2]
                gaps.append(float((found.norms - mine)[mine.isfinite()].abs().max()))
        whole = whole_sums(holding, model, out)
        errors[name] = max(float((whole[n] - wanted[n]).abs().max()) for n in wanted)
    return {
        "errors": errors,
        "norms": max(gaps),
        "clipped": int((norms > max_norm).sum()),
        "num_rows": problem.num_rows,
        "share": held_by(model) / before,
    }


def sums(ranks, folder):
    return {"shaped": compare(ranks, shaped), "odd": compare(ranks, odd), "half": half(ranks)}


def half(ranks):
    """How far sums under autocast are from float64's, as a share of their length."""
    problem, _ = shaped()
    total, _ = loop_clipped_sum(problem.model, problem.losses, problem.batch, 1.0)
    model = ranks.shard(problem.model.float())
    holding = ranks.hold(model)
    engine, out = ClipEngine(model, max_norm=1.0, held=holding.held), holding.zeros({})

    def losses(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return problem.losses(batch)

    engine.check(losses, problem.batch)
    engine.clipped_sum(losses, problem.batch, out=out)
    whole = whole_sums(holding, model, out)
    gap = sum(float((t - total[n]).square().sum()) for n, t in whole.items())
    return gap**0.5 / sum(float(t.square().sum()) for t in total.values()) ** 0.5


def transformers(ranks, folder):
    made = {"gpt2": gpt2, "vit": vit, "llama": llama, "lora": partial(lora, "gpt2-tied")}
    return {name: compare(ranks, make) for name, make in made.items()}


def traffic(ranks, folder):
    """Bytes of activations that a rank sends for a pass over two rows, counted, and on paper."""
    made = {"shaped": shaped, "gpt2": gpt2, "vit": vit, "llama": llama, "lora": partial(lora, "gpt2-tied")}
    found = {}
    for name, make in made.items():
        sent = []
        (problem, _), (on_paper, _) = make(), make()
        rows = take_rows(problem.batch, slice(0, 2))
        model = ranks.shard(problem.model)
        holding = ranks.hold(model)
        engine, out = ClipEngine(model, max_norm=1.0, held=holding.held), holding.zeros({})
        engine.check(problem.losses, rows)

        def counted(cross, share, sent=sent):
            def crossing(x, over):
                sent.append(x.nbytes * share)
                return cross(x, over)

            return crossing

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mappings, "_sum", counted(mappings._sum, 2 * (ranks.size - 1) / ranks.size))
            patch.setattr(mappings, "_join", counted(mappings._join, ranks.size - 1))
            engine.clipped_sum(problem.losses, rows, out=out)
        shapes = sliced_shapes(on_paper.model, ranks.size)
        held = held_by(model) == held_by(on_paper.model)
        wanted = shapes.sent(lambda losses=on_paper.losses, rows=rows: losses(rows))
        found[name] = {"sent": sum(sent), "on_paper": wanted, "held_alike": held}
    return found


def planted(ranks, folder):
    """What the comparison finds when a gradient is not summed over the ranks, and a norm not either."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "copied", lambda x, over: x)
        found["gradient"] = attempted(lambda: compare(ranks, shaped))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reticent.dist._tensor_model.SlicedModel.parts", frozenset())
        found["norm"] = attempted(lambda: compare(ranks, shaped))

    def twice(self, group, of_parts_U, of_whole_U):
        return self._over.all_gather(of_parts_U + of_whole_U).sum(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reticent.dist._tensor_model.SlicedModel.squares", twice)
        found["whole counted twice"] = attempted(lambda: compare(ranks, shaped))
    return found


def attempted(act):
    """What an action returns, or the code it is refused with."""
    try:
        return act()
    except ReticentError as e:
        return e.code


def trained(ranks, folder, clipping):
    """As `tests.dist.sharded.trained`."""
    torch.set_default_dtype(torch.float64)
    model = make_model()
    plan, without = plan_with(CLIPPINGS[clipping]), cast(NoiseSource, NoNoise())
    if ranks.size > 1:
        ranks.shard(model)
    make = {"flat": partial(torch.optim.SGD, momentum=0.9), "per-layer": Lamb, "adaptive": torch.optim.AdamW}
    optimizer = make[clipping](model.parameters(), lr=0.5)
    private = PrivateStep(
        model,
        optimizer,
        plan=plan,
        ledger=folder / clipping,
        noise=without,
        ranks=ranks,
        physical_batch_size=4,
    )
    x, y = make_data().tensors
    for batch in plan.batches((x.double(), y), stream=SampleStream.fresh()):
        rng = np.random.default_rng(batch.step)  # other ranks drew other batches, which must not matter
        mine = rng.choice(64, 13 + batch.step, replace=False) if ranks.leads else np.arange(5)
        with torch.no_grad():
            model(x[:2].double())  # an evaluation in between
        take(private, with_rows(batch, np.sort(mine)))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return {
        "weights": [p.tolist() for p in whole],
        "clip_norms": private.clip_norms,
        "epsilon": private.epsilon().epsilon,
        "num_steps": private.num_steps,
        "head": private.head,
    }


def same_training(ranks, folder):
    return {name: trained(ranks, folder, name) for name in CLIPPINGS}


class Cancelled(nn.Module):
    """Parameters whose gradient is zero: a layer in slices, and a vector that is whole."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain = nn.Linear(400, 300, bias=False), nn.Parameter(torch.zeros(60000))

    def forward(self, x):
        return 0.0 * (self.layer(x).sum(1) + self.gain.sum())


def noise(ranks, folder):
    """The noise of a step over many coordinates whose gradient is zero; a row is drawn, or none."""
    model = ranks.shard(Cancelled())
    plan = make_plan(noise_multiplier=1.7, max_norm=0.3, num_steps=2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "noise", ranks=ranks)

    def now():
        weight = model.layer.weight.full_tensor().detach()
        return torch.cat([weight.flatten(), model.gain.detach()])

    seen = []
    for batch in plan.batches((torch.ones(64, 400),)):
        before = now()
        take(private, with_rows(batch, np.arange(batch.step)), loss=lambda m, r: m(r[0]))
        seen.append((before - now()) * plan.expected_batch_size)
    np.save(folder / f"noise-{ranks.rank}.npy", torch.stack(seen).numpy())
    return {"spent": private.num_steps}


def refused(ranks, folder):
    """What cannot be cut, is not cut, or is cut and given to others."""
    codes = [
        attempted(lambda: ranks.shard(wrn()[0].model)),
        attempted(lambda: ranks.shard(sharded(make_model()))),
    ]

    def attempt(model, with_ranks, foreach=None, **options: Any):
        sgd = torch.optim.SGD(model.parameters(), lr=1.0, foreach=foreach)
        at = folder / f"refused-{len(codes)}"
        found = attempted(
            lambda: PrivateStep(model, sgd, plan=make_plan(), ledger=at, ranks=with_ranks, **options) and None
        )
        codes.append(found)

    attempt(make_model(), ranks)
    attempt(sharded(make_model()), ranks)
    attempt(ranks.shard(make_model()), Shards())
    attempt(ranks.shard(make_model()), Replicas())
    attempt(ranks.shard(make_model()), ranks, compile=True)
    attempt(ranks.shard(make_model()), ranks, foreach=True)
    attempt(ranks.shard(make_model()), ranks)
    return {"codes": codes}


def diverged(_, folder):
    """Rows unlike on other ranks: in those that are checked, and in others; other random draws."""
    found = []
    for where in (slice(0, 4), slice(4, 64), None):
        ranks = TensorParallel()  # one that failed stays failed
        x, y = make_data().tensors
        if where is not None:
            x[where] += ranks.rank
        up, tanh, down = make_model()
        model, plan = (
            ranks.shard(nn.Sequential(up, nn.Dropout(0.5 if where is None else 0.0), tanh, down)),
            make_plan(),
        )
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        private = PrivateStep(model, sgd, plan=plan, ledger=folder / f"diverged-{len(found)}", ranks=ranks)
        private._compared = True  # as if none of the rows that ranks compare differed
        if where is None:
            torch.manual_seed(ranks.rank)

        try:
            take(private, with_rows(next(iter(plan.batches((x, y)))), np.arange(2, 10)))
            found.append(None)
        except ReticentError as e:
            found.append([e.code, getattr(e.__cause__, "code", None), private.num_steps])
    return {"found": found}


def evaluated(ranks, folder):
    """A run that draws at random in its layers and its transform, measures, averages, writes its weights."""
    torch.manual_seed(ranks.rank)
    data, model = make_data(), ranks.shard(nn.Sequential(nn.Dropout(0.2), *make_model(seed=ranks.rank)))
    done = train(
        model,
        torch.optim.Adam(model.parameters(), lr=0.1),
        plan=plan_with(CLIPPINGS["adaptive"]),
        dataset=data,
        loss_per_example=cross_entropy,
        out=folder / "evaluated",
        transform=lambda rows, generator: (
            rows[0] + 0.1 * torch.randn(rows[0].shape, generator=generator),
            rows[1],
        ),
        evaluation=Evaluation(
            dataset=data, scores=lambda m, rows: {"loss": cross_entropy(m, rows)}, batch_size=40
        ),
        settings=TrainSettings(eval_every=2, ema=0.5),
        physical_batch_size=4,
        ranks=ranks,
    )
    return {
        "scores": done.scores,
        "gain": [float(p.sum()) for p in model.parameters() if not isinstance(p, DTensor)],
    }


if __name__ == "__main__":
    main(globals(), TensorParallel)
