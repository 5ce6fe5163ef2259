"""A compiled graph, and how it is run: on the model's tensors as they are, in full precision.

Room: clip. May import torch.

Shape letters (this file): U units of the physical batch, padding included; L groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reticent.clip._groups import Group
from reticent.clip._trace import state_of, without_autocast


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A compiled graph.

    Args:
        run: maps inputs (see `trace_sum`) to sums, norms, which of them are finite, which units in doubt.
        traced: the same before it was compiled.
        names: the parameters of the sums.
        constants: see `Graph`.
        draws: see `Graph`.
        half: see `Graph`.
        alive: what its fingerprint names by identity.
    """

    run: Callable[..., Sequence[Tensor]]
    traced: Callable[..., Sequence[Tensor]]
    names: tuple[str, ...]
    constants: tuple[Tensor, ...]
    draws: bool
    half: bool
    alive: tuple[Any, ...]


def run_program(
    program: Program, model: nn.Module, groups: Sequence[Group], row_tensors: Sequence[Tensor], real_U: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Sums; norms, and which are finite, (U, L); which units are in doubt, (U,)."""
    inputs = [*state_of(model), *row_tensors, real_U, max_norms(groups, real_U.device)]
    with torch.no_grad(), without_autocast(inputs):
        *sums, norm_UL, finite_UL, doubt_U = program.run(*inputs, *program.constants)
    sums = _apart(sums, [*inputs, *program.constants])
    return dict(zip(program.names, sums, strict=True)), norm_UL, finite_UL, doubt_U


def max_norms(groups: Sequence[Group], device: torch.device) -> Tensor:
    """(L,)."""
    return torch.tensor([group.max_norm for group in groups], dtype=torch.float64, device=device)


def units_at(batch: Any, index_N: Tensor, k: int) -> Any:
    """The rows of the units `index_N`, of k rows each."""
    index = (index_N[:, None] * k + torch.arange(k, device=index_N.device)).flatten()
    return tree_map_only(Tensor, lambda t: t[index], batch)


def generator_states(device: torch.device) -> list[tuple[torch.Generator, Tensor]]:
    """The generators a graph may draw from, and where they stand."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    return [(generator, generator.get_state()) for generator in generators]


def set_states(generators: Sequence[tuple[torch.Generator, Tensor]]) -> None:
    for generator, state in generators:
        generator.set_state(state)


def _apart(sums: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A graph's sums in memory of their own: it may return one tensor twice, or one of its inputs."""
    taken = {t.untyped_storage().data_ptr() for t in inputs}
    apart = []
    for t in sums:
        place = t.untyped_storage().data_ptr()
        apart.append(t.clone() if place in taken else t)
        taken.add(place)
    return apart
