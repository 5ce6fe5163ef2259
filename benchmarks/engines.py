"""Every engine by name: a function that takes work and a clipping norm, and returns a step.

A step computes one clipped sum of gradients (name -> tensor) of the work's batch. Engines that cannot
do the work raise: `Skip` with a reason, or whatever error they end in; both are reported.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from benchmarks.peers import fastdp, functorch, jax_privacy, opacus, opake, private_transformers
from benchmarks.reference import STABILITY, Kind, blocks
from benchmarks.work import Work

Step = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to make a step.

    Args:
        make: (work, max_norm) -> step.
        private: False for those that clip nothing, whose sum is not compared.
        kind: the reference that its sum is compared with.
        peer: True for other libraries, which are timed one at a time.
        needs: packages to install for it.
        cpu_only: whether it is run on CPUs only.
    """

    make: Callable[[Work, float], Step]
    private: bool = True
    kind: Kind = "flat"
    peer: bool = False
    needs: tuple[str, ...] = ()
    cpu_only: bool = False


def _plain(work: Work, losses: Callable[..., Tensor]) -> Step:
    params = work.trainable()

    def step() -> dict[str, Tensor]:
        for p in params.values():
            p.grad = None
        losses(work.batch).sum().backward()
        return {n: p.grad for n, p in params.items() if p.grad is not None}

    return step


def non_private(work: Work, max_norm: float) -> Step:
    """The plain summed gradient."""
    return _plain(work, work.losses)


def non_private_compiled(work: Work, max_norm: float) -> Step:
    """The plain summed gradient, forward and backward through torch.compile."""
    return _plain(work, torch.compile(work.losses, dynamic=False))


def reticent_flat(work: Work, max_norm: float) -> Step:
    """One forward, one backward; what the sums need is kept until the norms are known."""
    from reticent.clip import ClipEngine

    engine = ClipEngine(work.model, max_norm=max_norm)
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_more_memory(work: Work, max_norm: float) -> Step:
    """As flat, with every gradient kept that is worth it, whatever that takes."""
    from reticent.clip import ClipEngine

    engine = ClipEngine(work.model, max_norm=max_norm, memory_budget=1 << 40)
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_low_memory(work: Work, max_norm: float) -> Step:
    """Two backwards, nothing kept between them."""
    from reticent.clip import ClipEngine

    engine = ClipEngine(work.model, max_norm=max_norm, method="ghost")
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_per_layer(work: Work, max_norm: float) -> Step:
    """Each module's gradient clipped inside the backward."""
    from reticent.clip import ClipEngine
    from reticent.clipping import PerLayerClipping

    engine = ClipEngine(work.model, clipping=PerLayerClipping(max_norm=max_norm))
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_automatic(work: Work, max_norm: float) -> Step:
    """Every gradient scaled to about the same length."""
    from reticent.clip import ClipEngine
    from reticent.clipping import AutomaticClipping

    engine = ClipEngine(work.model, clipping=AutomaticClipping(max_norm=max_norm, stability=STABILITY))
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_grouped(work: Work, max_norm: float) -> Step:
    """Each block of the model clipped by itself, and what is in none together."""
    from reticent.clip import ClipEngine
    from reticent.clipping import GroupedClipping

    names = sorted(blocks([*work.trainable()]), reverse=True)  # what is in no block, "", comes last
    share = max_norm / math.sqrt(len(names))
    max_norms = tuple((f"{name}.*" if name else "*", share) for name in names)
    engine = ClipEngine(work.model, clipping=GroupedClipping(max_norms=max_norms))
    return lambda: engine.clipped_sum(work.losses, work.batch).total


def reticent_compiled(work: Work, max_norm: float) -> Step:
    """Forward, backward, norms and sums as one compiled graph."""
    from reticent.clip import CompiledEngine

    engine = CompiledEngine(work.model, max_norm=max_norm, physical_batch_size=work.num_examples())
    return lambda: engine.clipped_sum(work.losses, work.batch).total


ENGINES: Final = MappingProxyType(
    {
        "non-private": Engine(make=non_private, private=False),
        "non-private-compiled": Engine(make=non_private_compiled, private=False),
        "reticent-flat": Engine(make=reticent_flat),
        "reticent-more-memory": Engine(make=reticent_more_memory),
        "reticent-low-memory": Engine(make=reticent_low_memory),
        "reticent-per-layer": Engine(make=reticent_per_layer, kind="per_layer"),
        "reticent-grouped": Engine(make=reticent_grouped, kind="grouped"),
        "reticent-automatic": Engine(make=reticent_automatic, kind="automatic"),
        "reticent-compiled": Engine(make=reticent_compiled),
        "functorch": Engine(make=functorch.per_example, peer=True),
        "opacus": Engine(make=opacus.hooks, peer=True, needs=("opacus",)),
        "opacus-ghost": Engine(make=opacus.ghost, peer=True, needs=("opacus",)),
        "opacus-fast-gradient": Engine(make=opacus.fast_gradient, peer=True, needs=("opacus",)),
        "opake": Engine(make=opake.clipped, peer=True, needs=("opake",)),
        "jax-privacy": Engine(
            make=jax_privacy.clipped, peer=True, needs=("jax", "jax_privacy"), cpu_only=True
        ),
        "fastdp": Engine(make=fastdp.book_keeping, peer=True),
        "private-transformers": Engine(make=private_transformers.ghost, peer=True),
    }
)
BASE: Final = "non-private"
QUICK: Final = ("non-private", "reticent-flat")


def threads() -> int:
    """How many threads an engine may use."""
    return torch.get_num_threads() or os.cpu_count() or 1
