"""What a private step checks before it begins: its settings, and that all ranks begin alike.

Room: train. May import torch, `reticent.{plan,dist}` and the floors below.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from reticent.bounded import BoundedSum
from reticent.clipping import AdaptiveClipping, Clipping, PerLayerClipping, sensitivity
from reticent.dist import Ranks, together
from reticent.errors import ConfigError
from reticent.noise import CipherNoise, NoiseSource, add_noise
from reticent.plan import Plan

from ._rows import fetch, leaves, num_rows

T = TypeVar("T")
_NUM_COMPARED_ROWS: Final = 64


def check_physical_batch_size(size: int) -> None:
    """Refuse a number of rows that is not a positive integer."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(
            f"physical_batch_size must be a positive integer, got {size!r}.", code="physical-batch-size"
        )


def check_low_memory(
    clipping: Clipping, *, compile: bool = False, own_engine: bool = False, shards: bool = False
) -> None:
    """Refuse two backwards, norms first and sums second, where they would be ignored or gain nothing.

    Raises:
        ConfigError[low-memory]: with a compiled engine, one of the caller's, per-layer clipping, or a
            model of which each rank holds a part.
    """
    adapts = isinstance(clipping, AdaptiveClipping) and clipping.per_layer
    problems = [
        (compile, "compile makes an engine that takes one backward"),
        (own_engine, "an engine was given: set its own method='ghost'"),
        (shards, "each rank holds a part of the model, and a second backward would gather it all again"),
        (
            adapts or isinstance(clipping, PerLayerClipping),
            "per-layer clipping adds each layer's sum inside its one backward and keeps nothing, so that a "
            "second backward would only take time",
        ),
    ]
    for found, problem in problems:
        if found:
            raise ConfigError(
                f"low_memory would gain nothing: {problem}. Leave either out.", code="low-memory"
            )


def check_noise(source: NoiseSource, plan: Plan, ranks: Ranks) -> None:
    """Refuse noise that could not be added, before a step is spent on finding out."""
    if plan.noise_multiplier <= 0:
        raise ConfigError(
            "PrivateStep needs a plan with noise_multiplier > 0: without noise there is no privacy. To "
            "train without privacy use a plain torch loop, or epsilon=inf in a recipe.",
            code="no-noise",
        )
    if not isinstance(source, NoiseSource):
        raise ConfigError(
            f"noise must be a NoiseSource (private, normal), got {type(source).__name__}. Leave it out for "
            "a fresh cipher.",
            code="noise-source",
        )
    rank = source.rank if isinstance(source, CipherNoise) and not source.private else ranks.rank
    if ranks.size > 1 and rank != ranks.rank:
        raise ConfigError(
            f"Rank {ranks.rank} was given the reproducible noise of rank {rank}: ranks of one stream "
            "add the same numbers to their parts of the sum. Give each rank CipherNoise.reproducible(seed, "
            "rank=ranks.rank).",
            code="noise-rank",
        )
    nothing = BoundedSum(total={}, bound=sensitivity(plan.clipping), norms=torch.empty(0))
    for kind in plan.steps:
        add_noise(nothing, noise_multiplier=kind.gradient_noise_multiplier, source=source)


def require_alike(
    ranks: Ranks,
    model: nn.Module,
    optimizer: Optimizer,
    plan: Plan,
    *,
    seed: int,
    physical_batch_size: int,
    check_batch: Any,
) -> None:
    """Refuse ranks that would not do the same.

    Raises:
        ConfigError[ranks-differ]: they differ in their plan, in names, shapes or dtypes of parameters and
            buffers, in the optimizer's class or settings, or in the seed; or, where each pass needs all
            ranks, in the physical batch size or the batch of the self-check.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    ranks.agree("the plan", plan.describe())
    ranks.agree(
        "the model's parameters and buffers",
        [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in tensors],
    )
    ranks.agree("the optimizer and its settings", _described(optimizer, dict(model.named_parameters())))
    ranks.agree("seed", seed)
    if ranks.shards:
        ranks.agree("physical_batch_size", physical_batch_size)
        ranks.agree("check_batch", digest_of(check_batch))


def require_same_rows(ranks: Ranks, dataset: Any) -> None:
    """Refuse ranks that hold other rows, or the same in another order: an example could be in two shares.

    64 rows spread over the data set are compared by their SHA-256, bit by bit; what comes out otherwise when
    read twice from the same random state (an augmentation with a generator of its own) is left out.

    Raises:
        ConfigError[ranks-differ]: they do.
    """
    with together(ranks):
        digests = _of_rows(dataset)
    ranks.agree("the rows of the data set, or their order", digests)


def _of_rows(dataset: Any) -> list[str]:
    """A digest of each tensor of the compared rows; "random" for one that is not the same twice."""
    spread = np.unique(np.linspace(0, max(0, num_rows(dataset) - 1), _NUM_COMPARED_ROWS).astype(np.int64))

    def read() -> list[list[str]]:
        return [[digest_of(leaf) for leaf in leaves(fetch(dataset, index))] for index in spread[:, None]]

    first, second = (_from_one_random_state(read) for _ in range(2))
    columns = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    return [digest_of_text(a) if a == b else "random" for a, b in columns]


def _from_one_random_state(read: Callable[[], T]) -> T:
    """What is read where the global generators begin alike; they go on as if nothing had been read."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            return read()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def digest_of_text(parts: Iterable[str]) -> str:
    """SHA-256 of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_of(rows: Any) -> str:
    """SHA-256 of a tree of tensors: shapes, dtypes and bytes, in order; of what is no tensor, its type."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(dict(rows) if isinstance(rows, Mapping) else rows):
        if isinstance(leaf, Tensor):
            there = leaf.detach().cpu().contiguous()
            digest.update(f"{tuple(there.shape)} {there.dtype} ".encode())
            digest.update(there.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{type(leaf).__name__} ".encode())
    return digest.hexdigest()


def _described(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Its class, and every group's parameters (by name) and settings, as JSON values."""
    names = {id(p): name for name, p in params.items()}
    groups = [
        {k: [names.get(id(p)) for p in v] if k == "params" else repr(v) for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return {"class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", "groups": groups}
