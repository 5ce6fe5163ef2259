"""What each rank of a sharded job does: `python -m tests.dist.sharded TASK RANK SIZE FOLDER`."""

import os
import shutil
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from reticent.clip import ClipEngine
from reticent.clipping import FlatClipping, PerLayerClipping
from reticent.dist import Replicas, Shards, require_all_parts
from reticent.errors import ReticentError
from reticent.noise import CipherNoise, NoiseSource
from reticent.optim import Lamb
from reticent.recipes.vision._wide_resnet import WideResNet
from reticent.sample import SampleStream
from reticent.train import Evaluation, PrivateStep, TrainSettings, train
from tests.dist.work import CLIPPINGS, main, plan_with
from tests.support.case import Problem
from tests.support.judge import median_norm
from tests.support.oracle import loop_clipped_sum, take_rows
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model, make_plan, take, with_rows

WIDTH, NUM_BLOCKS = 512, 12


def gpt2():
    from tests.support.hf import CAUSAL

    problem = next(c for c in CAUSAL if c.name == "gpt2-tied").build(0, torch.float64)
    return problem, list(problem.model.transformer.h)


def vit():
    from tests.support.hf import IMAGES

    problem = next(c for c in IMAGES if c.name == "vit").build(0, torch.float64)
    kinds = ("ViTLayer", "ViTSelfAttention")
    return problem, [m for m in problem.model.modules() if type(m).__name__ in kinds][::-1]


def wrn():
    torch.manual_seed(0)
    model = WideResNet(10, 1, 3).double()
    rows = (torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
    rows[0][3] = torch.inf  # counts as zero, wherever it is

    def losses(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    problem = Problem(model=model, losses=losses, batch=rows)
    return problem, [m for m in model.children() if any(p.requires_grad for p in m.parameters())]


class Block(nn.Module):
    """A frozen layer, a bare parameter that is broadcast, and a residual."""

    def __init__(self, size):
        super().__init__()
        self.norm, self.frozen = nn.LayerNorm(size), nn.Linear(size, size).requires_grad_(False)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.gain = nn.Parameter(torch.full((size,), 0.3))

    def forward(self, x):
        return x + self.gain * self.down(torch.tanh(self.up(self.norm(self.frozen(x)))))


class Odd(nn.Module):
    """Blocks that are run again in the backward, and a head whose weight is computed from two parameters."""

    def __init__(self, checkpointed):
        super().__init__()
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(Block(6) for _ in range(3))
        self.head = weight_norm(nn.Linear(6, 3))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def odd(*, checkpointed=True):
    torch.manual_seed(0)
    model, rows = Odd(checkpointed).double(), (torch.randn(5, 6).double(), torch.tensor([0, 1, 2, 0, 1]))

    def losses(batch):
        return nn.functional.cross_entropy(model(batch[0]).to(batch[0]), batch[1], reduction="none")

    return Problem(model=model, losses=losses, batch=rows), list(model.blocks)


def held_by(model):
    """Bytes of parameters that stay on this rank."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(t.numel() * t.element_size() for t in local)


def in_rows(ranks, num_replicas):
    """A mesh whose rows hold a copy of the model each."""
    names = ("replicate", "shard")
    return init_device_mesh("cpu", (num_replicas, ranks.size // num_replicas), mesh_dim_names=names)


def compare(ranks, make, num_rows, *, num_replicas=1, wrapped=False, **options: Any):
    """Sums by shards, put together, against one process: the loop for flat clipping, the engine per layer.

    `wrapped`: blocks are checkpointed from outside. Options are those of `fully_shard`.
    """
    problem, blocks = make()
    order = torch.arange(num_rows) % problem.num_rows
    batch, model, losses = take_rows(problem.batch, order), problem.model, problem.losses
    max_norm = median_norm(Problem(model=model, losses=losses, batch=batch))
    flat, by_layer = FlatClipping(max_norm=max_norm), PerLayerClipping(max_norm=max_norm)
    total, norms = loop_clipped_sum(model, losses, batch, max_norm)
    layered = ClipEngine(model, clipping=by_layer).clipped_sum(losses, batch).total
    before = held_by(model)
    if wrapped:
        inside = {id(block) for block in blocks}
        apply_activation_checkpointing(model, check_fn=lambda m: id(m) in inside)
        blocks = [m for m in model.modules() if isinstance(m, CheckpointWrapper)]
    mesh = None if num_replicas == 1 else in_rows(ranks, num_replicas)
    for block in (*blocks, model):
        fully_shard(block, mesh=mesh, **options)
    holding = ranks.hold(model)
    mine, errors = torch.arange(num_rows)[ranks.rank :: ranks.size], {}
    for name, clipping, wanted in (("flat", flat, total), ("per-layer", by_layer, layered)):
        engine = ClipEngine(model, clipping=clipping, held=holding.held)
        engine.check(losses, take_rows(batch, slice(0, 2)))
        out = holding.zeros({})
        for start in range(0, -(-num_rows // ranks.size), 2):
            rows = mine[start : start + 2]
            given = take_rows(batch, rows if len(rows) else torch.zeros(1, dtype=torch.int64))
            engine.clipped_sum(losses, given, out=out, counts=len(rows) > 0)
        params = dict(model.named_parameters())
        whole = {n: holding.gradient(params[n], part).full_tensor() for n, part in out.items()}
        if mesh is not None:  # each copy's sum is of its own ranks' rows
            for t in whole.values():
                torch.distributed.all_reduce(t, group=mesh.get_group("replicate"))
        whole = {n.replace("_checkpoint_wrapped_module.", ""): t for n, t in whole.items()}
        errors[name] = max(float((whole[n] - wanted[n]).abs().max()) for n in wanted)
    return {
        "errors": errors,
        "clipped": int((norms > max_norm).sum()),
        "share": held_by(model) / before,
        "sums_share": sum(t.nbytes for t in out.values()) / sum(t.nbytes for t in total.values()),
    }


def wide_resnet(ranks, folder):
    """Five rows: with two ranks, one runs a pass that does not count, and one row is not finite."""
    return compare(ranks, wrn, 5)


def odd_model(ranks, folder):
    """Exact in float64; and in bfloat16 under FSDP2's own mixed precision, to its rounding."""
    found = compare(ranks, odd, 5)
    offload = CPUOffloadPolicy(pin_memory=False)
    variants: dict[str, dict[str, Any]] = {
        "wrapped": {"wrapped": True},
        "offload": {"offload_policy": offload},
    }
    found["variants"] = {
        name: compare(ranks, lambda: odd(checkpointed=False), 5, **options)
        for name, options in variants.items()
    }
    problem, blocks = odd()
    total, _ = loop_clipped_sum(problem.model, problem.losses, problem.batch, 1.0)
    problem.model.float()
    for module in (*blocks, problem.model):
        fully_shard(module, mp_policy=MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32))
    holding = ranks.hold(problem.model)
    engine = ClipEngine(problem.model, max_norm=1.0, held=holding.held)
    rows, params = (problem.batch[0].float(), problem.batch[1]), dict(problem.model.named_parameters())
    engine.check(problem.losses, rows)

    def summed(without=None):
        """Over all ranks, which take turns; in half precision, a row's pass is the same in each sum."""
        out = holding.zeros({})
        for row in range(0, 6, ranks.size):
            mine = row + ranks.rank
            counts = mine < 5 and mine != without
            engine.clipped_sum(
                problem.losses, take_rows(rows, torch.tensor([min(mine, 4)])), out=out, counts=counts
            )
        return {n: holding.gradient(params[n], part).full_tensor() for n, part in out.items()}

    def length(parts):
        return sum(float(t.square().sum()) for t in parts.values()) ** 0.5

    whole = summed()
    gap = length({n: t - total[n] for n, t in whole.items()}) / length(total)
    moved = [length({n: t - whole[n] for n, t in summed(row).items()}) for row in range(5)]
    return {**found, "half": gap, "moved": moved}


def transformers(ranks, folder):
    """Three rows: with two ranks, one has a single row in its pass, and nothing to prove."""
    return {"gpt2": compare(ranks, gpt2, 3), "vit": compare(ranks, vit, 5)}


def hybrid_sums(ranks, folder):
    """Copies of the model on two rows of ranks: with five rows of data, copies and ranks share unlike."""
    return {"wrn": compare(ranks, wrn, 5, num_replicas=2), "odd": compare(ranks, odd, 5, num_replicas=2)}


def hybrid_transformers(ranks, folder):
    found = {"gpt2": compare(ranks, gpt2, 3, num_replicas=2), "vit": compare(ranks, vit, 5, num_replicas=2)}
    return found


def hybrid_training(_, folder):
    return {name: trained(Shards(num_replicas=2), folder, f"{name}") for name in CLIPPINGS}


def hybrid_noise(_, folder):
    return noise(Shards(num_replicas=2), folder)


def sharded(model):
    """A model of two layers in two units."""
    fully_shard(model[2])
    return fully_shard(model)


def trained(ranks, folder, clipping):
    """As `tests.dist.work.trained`, with shards."""
    torch.set_default_dtype(torch.float64)
    model = make_model()
    plan, without = plan_with(CLIPPINGS[clipping]), cast(NoiseSource, NoNoise())
    if isinstance(ranks, Shards):
        model = ranks.shard(model) if ranks.num_replicas > 1 else sharded(model)
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
    held = [
        t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim()
    ]
    return {
        "weights": [p.tolist() for p in whole],
        "clip_norms": private.clip_norms,
        "epsilon": private.epsilon().epsilon,
        "num_steps": private.num_steps,
        "head": private.head,
        "momentum": sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in held),
    }


def same_training(ranks, folder):
    return {name: trained(ranks, folder, name) for name in CLIPPINGS}


def noise(ranks, folder):
    """The noise of a step over many coordinates whose gradient is zero; a row is drawn, or none."""
    model = nn.Linear(400, 301, bias=False)
    nn.init.zeros_(model.weight)
    ranks.shard(model)
    plan = make_plan(noise_multiplier=1.7, max_norm=0.3, num_steps=2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "noise", ranks=ranks)
    seen = []
    for batch in plan.batches((torch.ones(64, 400),)):
        before = model.weight.full_tensor().detach().clone()
        take(private, with_rows(batch, np.arange(batch.step)), loss=lambda m, r: 0.0 * m(r[0]).sum(1))
        after = model.weight.full_tensor().detach()
        seen.append((before - after).flatten() * plan.expected_batch_size)
    np.save(folder / f"noise-{ranks.rank}.npy", torch.stack(seen).numpy())
    return {"rows": model.weight.to_local().shape[0]}


@contextmanager
def watching(holding, out):
    """The largest number of bytes of whole parameters and whole sums at once: in forwards, at every sum."""
    seen = [0]

    def look(*_, more=0):
        whole = [p.untyped_storage().nbytes() for p in holding.parameters().values()]
        seen[0] = max(seen[0], sum(whole) + sum(t.nbytes for t in out._whole.values()) + more)

    scatter_sum = Replicas.scatter_sum

    def watched(self, mine, parts):
        look(more=parts.nbytes)
        return scatter_sum(self, mine, parts)

    hook = register_module_forward_hook(look)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Replicas, "scatter_sum", watched)
            yield seen
    finally:
        hook.remove()


def memory(ranks, folder):
    """Shares of a model of twelve equal units: what is whole at once in a pass, what stays after it."""
    torch.manual_seed(0)  # all ranks check the same rows
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_BLOCKS)))
    size = sum(p.nbytes for p in model.parameters())
    for block in model:
        fully_shard(block)
    fully_shard(model)
    adam, holding, found = torch.optim.Adam(model.parameters(), lr=1e-3), ranks.hold(model), {}
    rows = (torch.randn(4, WIDTH), torch.randint(0, WIDTH, (4,)))
    for name, clipping in (
        ("flat", FlatClipping(max_norm=0.5)),
        ("per-layer", PerLayerClipping(max_norm=0.5)),
    ):
        engine, out = ClipEngine(model, clipping=clipping, held=holding.held), holding.zeros({})

        for _ in range(2):
            with watching(holding, out) as seen:
                engine.check(lambda given: cross_entropy(model, given), rows)
                engine.clipped_sum(lambda given: cross_entropy(model, given), rows, out=out)
        found[name] = seen[0] / size
    for (_, p), part in zip(model.named_parameters(), out.values(), strict=True):
        p.grad = holding.gradient(p, part)
    adam.step()
    stays = [*model.parameters(), *out.values(), *(t for s in adam.state.values() for t in s.values())]
    found["stays"] = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in stays) / size
    return found


def refused(ranks, folder):
    """What is not sharded as it should be, or not clipped by what knows of shards."""
    codes = []

    def attempt(model, with_ranks, **options: Any):
        try:
            PrivateStep(
                model,
                torch.optim.SGD(model.parameters(), lr=1.0),
                plan=make_plan(),
                ledger=folder / f"refused-{len(codes)}",
                ranks=with_ranks,
                **options,
            )
            codes.append(None)
        except ReticentError as e:
            codes.append(e.code)

    part = make_model()
    fully_shard(part[2])
    backwards = fully_shard(make_model(), mesh=DeviceMesh("cpu", list(range(ranks.size))[::-1]))
    flipped = DeviceMesh("cpu", torch.arange(ranks.size).flip(0)[None], mesh_dim_names=("replicate", "shard"))
    columns = fully_shard(make_model(), mesh=flipped)
    attempt(make_model(), ranks)
    attempt(part, ranks)
    attempt(backwards, ranks)
    attempt(columns, ranks)
    by_hand, mesh = nn.Linear(4, 4, bias=False), init_device_mesh("cpu", (ranks.size,))
    by_hand.weight = nn.Parameter(distribute_tensor(by_hand.weight.detach(), mesh, [Shard(0)]))
    attempt(by_hand, ranks)
    attempt(sharded(make_model()), Replicas())
    attempt(sharded(make_model()), ranks, compile=True)
    attempt(sharded(make_model()), ranks, noise=CipherNoise.reproducible(0, rank=1) if ranks.rank else None)
    attempt(sharded(make_model()), ranks, noise=CipherNoise.reproducible(0))
    # As where offloaded to the CPU, which passes do not run on.
    attempt(sharded(make_model().to("meta")), ranks)
    attempt(
        sharded(make_model()), ranks, check_batch=take_rows(make_data().tensors, slice(0, 3 + ranks.rank))
    )
    return {"codes": codes}


class Rooted(nn.Module):
    """Parameters of the outermost unit itself, some of which have fewer rows than there are ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(6, 5)])
        self.gain, self.head = nn.Parameter(torch.ones(1)), nn.Linear(5, 3)
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x):
        return self.head(torch.tanh(self.blocks[0](x) * self.gain))


def evaluated(ranks, folder):
    """A run that measures last and averaged weights, and one whose caller runs the model between steps."""
    data = make_data()

    def scores(model, rows):
        return {"loss": cross_entropy(model, rows)}

    model = ranks.shard(Rooted())
    done = train(
        model,
        Lamb(model.parameters(), lr=0.1),
        plan=plan_with(CLIPPINGS["flat"]),
        dataset=data,
        loss_per_example=cross_entropy,
        out=folder / "evaluated",
        evaluation=Evaluation(dataset=data, scores=scores, batch_size=40),
        settings=TrainSettings(eval_every=2, ema=0.5),
        physical_batch_size=4,
        ranks=ranks,
    )
    model = ranks.shard(Rooted())
    with torch.no_grad():
        optimizer = torch.optim.AdamW(model.parameters())
        model(data.tensors[0])
    private = PrivateStep(model, optimizer, plan=make_plan(), ledger=folder / "between", ranks=ranks)
    batches = iter(private.plan.batches(data))
    take(private, next(batches))
    with torch.no_grad():
        model(data.tensors[0])
    take(private, next(batches))
    hook = model.blocks[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    codes = []
    try:
        take(private, next(batches))
    except ReticentError as e:
        codes.append(e.code)
    hook.remove()
    if ranks.leads:
        shutil.copytree(next((folder / "evaluated").glob("checkpoint-*3")), folder / "cut")
        max((folder / "cut").glob("*.safetensors")).unlink()  # what the last rank wrote
        try:
            require_all_parts(folder / "cut", {f"model/{n}": p for n, p in model.state_dict().items()})
        except ReticentError as e:
            codes.append(e.code)
    return {"scores": done.scores, "codes": codes}


def guards(_, folder):
    """Losses that couple examples: by their number; and by 0 times an infinity, which values do not show."""
    x, y = make_data().tensors
    x[[8, 9]] = torch.inf  # a row of each rank's

    def by_number(model, rows):
        return cross_entropy(model, rows) / len(rows[0])

    def by_zero(model, rows):
        return cross_entropy(model, rows) + 0.0 * model(rows[0]).sum()

    found = []
    for loss in (by_number, by_zero):
        model, plan, ranks = sharded(make_model()), make_plan(), Shards()
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        ledger = folder / f"guards-{len(found)}"
        private = PrivateStep(model, sgd, plan=plan, ledger=ledger, ranks=ranks, check_batch=(x[:4], y[:4]))
        batch = with_rows(next(iter(plan.batches((x, y)))), np.arange(2, 10))
        try:
            take(private, batch, loss=loss)
            found.append(None)
        except ReticentError as e:
            found.append([e.code, getattr(e.__cause__, "code", None), private.num_steps])
    return {"found": found, "left": failed_check(Shards(), folder)}


def failed_check(ranks, folder):
    """Parameters that have a gradient when the plain backward of a checked example has failed half-way."""
    model = ranks.shard(Rooted())

    def boom(grad):
        raise ValueError("mine")

    model.blocks[0].register_forward_hook(
        lambda m, i, o: o.register_hook(boom) and None if len(o) == 1 else None
    )
    sgd, plan = torch.optim.SGD(model.parameters(), lr=1.0), make_plan()
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "half", ranks=ranks)
    with pytest.raises(ReticentError) as caught:
        take(private, with_rows(next(iter(plan.batches(make_data()))), np.arange(4)))
    assert repr(caught.value.__cause__) == "ValueError('mine')"
    return [n for n, p in model.named_parameters() if p.grad is not None]


class Turned(nn.Module):
    """A parameter of the outermost unit that comes before or after the block."""

    def __init__(self, before):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.gain, self.head = nn.Linear(6, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 3)
        self.before = before

    def forward(self, x):
        return self.head(self.block(x * self.gain) if self.before else self.block(x) * self.gain)


def orders(_, folder):
    """Forwards by which per-layer clipping comes to the units in another order on another rank, or not."""
    found = []
    for differ in (True, False):
        ranks = Shards()
        model = Turned(before=ranks.leads or not differ)
        fully_shard(model.block)
        fully_shard(model)
        plan, sgd = plan_with(CLIPPINGS["per-layer"]), torch.optim.SGD(model.parameters(), lr=1.0)
        private = PrivateStep(model, sgd, plan=plan, ledger=folder / f"order-{differ}", ranks=ranks)
        found.append(refusal_of(private, plan))
    return found


def refusal_of(private, plan):
    """Code and cause of what ends the first step, and the steps spent."""
    batch = with_rows(next(iter(plan.batches(make_data()))), np.arange(8))
    try:
        take(private, batch)
        return [None, None, private.num_steps]
    except ReticentError as e:
        return [e.code, getattr(e.__cause__, "code", None), private.num_steps]


def node_hook(_, folder):
    """A hook on the node that gathers a parameter's gradient, which updates the parameter with it."""
    ranks = Shards()
    model, kept = Rooted(), []
    ranks.shard(model)
    plan, sgd = make_plan(), torch.optim.SGD(model.parameters(), lr=1.0)
    shard: Any = dict(model.named_parameters())["blocks.0.weight"]
    keep = model.blocks[0].register_forward_pre_hook(lambda m, i: kept.append(m.weight.expand_as(m.weight)))
    model(torch.ones(1, 6))
    keep.remove()

    def update(*_):
        shard.data.to_local().add_(0.1)

    kept[0].grad_fn.next_functions[0][0].register_hook(update)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "node", ranks=ranks)
    return refusal_of(private, plan)


def one_fails(ranks, folder):
    """A rank fails in the middle of a pass, and its process ends; the other must not wait for it."""
    model, plan = sharded(make_model()), make_plan()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, sgd, plan=plan, ledger=folder / "fails", ranks=ranks)
    batch = with_rows(next(iter(plan.batches(make_data()))), np.arange(8))

    def breaks(model, rows):
        if ranks.rank == 1:
            raise ValueError("mine")
        return cross_entropy(model, rows)

    try:
        take(private, batch, loss=breaks)
    except ReticentError as e:
        (folder / f"error-{ranks.rank}").write_text(f"{e.code} {e.__cause__!r}")
        os._exit(3)
    return {}


if __name__ == "__main__":
    main(globals(), Shards)
