"""Sharded data parallel (FSDP2, hybrid too): each rank holds a part of each parameter, a share of each batch.

Room: dist. May import torch, NumPy, `reticent.noise` and the floors below.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from reticent.bounded import BoundedSum
from reticent.errors import ConfigError, StepError
from reticent.noise import NoiseSource, add_noise

from ._parts import write_parts
from ._ranks import Indices, T
from ._replicas import Replicas
from ._sharded_model import ScatteredSums, ShardedModel


class Shards:
    """The ranks of a process group over which `fully_shard` has spread a model [FSDP2].

        torch.distributed.init_process_group()             # under torchrun
        ranks = Shards()
        ranks.shard(model)                                 # or fully_shard on blocks and model, as you like
        optimizer = torch.optim.AdamW(model.parameters())
        private = PrivateStep(model, optimizer, plan=plan, ledger="runs/a", ranks=ranks)

    Batches, ledger and guarantee are those of `Replicas`. Clipped sums are reduce-scattered unit by unit,
    each rank draws noise for its own shard from a key of its own, and updates it: no rank ever holds the
    whole summed gradient, or the whole optimizer's state.

    With `num_replicas=R`, or a mesh of two axes given to `fully_shard` (hybrid sharding, DDP x FSDP2), the
    size / R ranks of each row of the mesh hold a copy of the model together: parameters are gathered within a
    row only, and sums are added up over the copies once a step, as the noise is added: again one draw a
    coordinate.

    Every rank runs equally many passes, because each pass gathers parameters from all: one whose share is
    used up runs a row that does not count. So an error inside a pass cannot be taken back on one rank alone:
    it ends the job, which is resumed.

    Args:
        group: the process group; by default that of all ranks.
        num_replicas: how many copies of the model `shard` makes; for a mesh of your own it is not needed.

    Raises:
        ConfigError[no-process-group]: `torch.distributed` is not initialised.
        ConfigError[num-replicas]: not a positive divisor of the number of ranks.
    """

    shards = True

    def __init__(self, group: dist.ProcessGroup | None = None, *, num_replicas: int = 1) -> None:
        self._replicas: Final = Replicas(group)
        self._group: Final = group
        self.num_replicas: Final = num_replicas
        if num_replicas < 1 or self._replicas.size % num_replicas:
            raise ConfigError(
                f"num_replicas={num_replicas} copies of the model cannot share {self._replicas.size} ranks "
                "alike. Choose a divisor of their number.",
                code="num-replicas",
            )
        self.rank: Final = self._replicas.rank
        self.size: Final = self._replicas.size
        self._failed = False

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The rank's own number: no two have the same rows."""
        return self.rank

    def share(self, indices: Indices) -> Indices:
        """Every size-th unit, from the rank's own number on."""
        return self._replicas.share(indices)

    def num_passes_over(self, indices: Indices) -> int:
        """The largest share of any rank."""
        return -(-len(indices) // self.size)

    def settle(self, model: nn.Module) -> None:
        """Reshard what a forward left whole: FSDP2 keeps the root's parameters until a backward."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def tell(self, value: Any) -> Any:
        """The leader's JSON value on every rank."""
        return self._replicas.tell(value)

    def tell_indices(self, indices: Indices) -> Indices:
        """The leader's indices on every rank."""
        return self._replicas.tell_indices(indices)

    def first(self, act: Callable[[], T]) -> T | None:
        """Let the leader act; the others wait, and get None."""
        return self._replicas.first(act)

    def meet(self, error: BaseException | None, *, passing: bool = False) -> None:
        """Wait for every rank; an error in the middle of passes ends the job instead."""
        if self._failed or (error is not None and passing):
            self._failed = True
            raise StepError(
                "This rank of a sharded run failed where the others cannot go on without it "
                f"({_in_a_line(error)}). End the job, and go on by resuming the run; what its ledger holds "
                "stays spent, and no more is.",
                code="shard-failed",
            ) from error
        self._replicas.meet(error)

    def agree(self, what: str, value: Any) -> None:
        """Check that a JSON value is the same on every rank."""
        self._replicas.agree(what, value)

    def hold(self, model: nn.Module) -> ShardedModel:
        """A shard of every parameter.

        Raises:
            ConfigError[sharded-model]: `fully_shard` was not applied to all of it, or over other ranks.
        """
        return ShardedModel(model, ranks=self._replicas)

    def begin_alike(self, model: nn.Module) -> None:
        """Give every rank the leader's buffers, and parameters that are not sharded."""
        whole = [p for p in model.parameters() if not isinstance(p.data, DTensor)]
        self._replicas.broadcast((*whole, *model.buffers()))

    def measure(self, model: nn.Module, act: Callable[[], T]) -> T | None:
        """Let every rank act, and give back what the model's last pass has gathered."""
        try:
            return act()
        finally:
            self.settle(model)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the leader's CPU, gathered one at a time."""
        gathered: dict[str, Tensor] = {}
        for name, t in tensors.items():
            whole = t.full_tensor() if isinstance(t, DTensor) else t
            if self.leads:
                gathered[name] = whole.detach().cpu()
        return gathered

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write each rank's part of tensors into an empty folder that all of them see; see `read_parts`."""
        write_parts(folder, tensors, self._group)

    def shard(self, model: nn.Module) -> nn.Module:
        """Give every rank the leader's weights, and apply `fully_shard` with each block as a unit.

        Blocks are the children of the model's outermost lists of modules (`nn.ModuleList`, `nn.Sequential`)
        that share no parameter with the rest of it. Make the optimizer afterwards.
        """
        self._replicas.begin_alike(model)
        group = dist.group.WORLD if self._group is None else self._group
        assert group is not None
        mesh = self._mesh(group)
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def _mesh(self, group: dist.ProcessGroup) -> DeviceMesh:
        device = self._replicas.device.type
        if self.num_replicas == 1:
            return DeviceMesh.from_group(group, device)
        rows = torch.tensor(self._replicas.numbers).view(self.num_replicas, -1)
        return DeviceMesh(device, rows, mesh_dim_names=("replicate", "shard"))

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """Noise on this rank's shard of sums by shards; for another sum, see `Replicas.add_noise`.

        Several copies' shards are summed here, and each rank that holds one noises a part of it.
        """
        total = bounded.total
        if isinstance(total, ScatteredSums) and total.across is None:  # summed over all ranks already
            return add_noise(bounded, noise_multiplier=noise_multiplier, source=source)
        over = total.across if isinstance(total, ScatteredSums) else None
        return (over or self._replicas).add_noise(bounded, noise_multiplier=noise_multiplier, source=source)

    def __repr__(self) -> str:
        return f"Shards(rank={self.rank}, size={self.size})"


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Children of the outermost lists of modules that have parameters, all of them their own."""
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            inside = Counter(id(p) for m in child.modules() for p in m.parameters(recurse=False))
            alone = all(uses[key] == count for key, count in inside.items())
            if isinstance(module, nn.ModuleList | nn.Sequential) and inside and alone:
                if not isinstance(child, nn.ModuleList | nn.Sequential):
                    found.append(child)
                    continue
            look(child)

    look(model)
    return found


def _in_a_line(error: BaseException | None) -> str:
    if error is None:
        return "in an earlier step"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
