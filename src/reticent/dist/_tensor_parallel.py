"""Tensor parallel: every rank holds a slice of each layer, and runs every row of each batch.

Room: dist. May import torch, NumPy, `reticent.noise` and the floors below.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from reticent.bounded import BoundedSum
from reticent.errors import ConfigError
from reticent.noise import NoiseSource, add_noise

from ._ranks import Indices, T
from ._replicas import Replicas
from ._shards import Shards
from ._tensor_layers import apply_cuts, plan_pairs, spread
from ._tensor_model import SlicedModel, SlicedSums
from ._tensor_shapes import required_cuts


class TensorParallel:
    """The ranks of a process group that hold a slice of each layer of a model [1].

        torch.distributed.init_process_group()             # under torchrun
        ranks = TensorParallel()
        ranks.shard(model)                                 # a Transformer that is whole on every rank
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        private = PrivateStep(model, optimizer, plan=plan, ledger="runs/a", ranks=ranks)

    Linear layers (`nn.Linear`, Hugging Face's `Conv1D`) and embeddings are cut; all else (norms, biases of
    outputs, convolutions, attention itself) is the same on every rank. Rank 0 leads: it draws every logical
    batch, all of whose rows every rank runs. An example's squared norm is added up over the slices, and what
    every rank has whole counts once. Each rank noises the sum of its slices from a key of its own; the leader
    noises what is whole, and all get that.

    Args:
        group: the process group; by default that of all ranks.

    Guarantee:
        The released sum is the leader's sums of whole parameters and every rank's sums of slices, noised
        once; one unit moves all of it together by at most the bound, whatever the ranks computed: its norm is
        over what each of them adds, and its weight is the same bits on all. That the sum is also the one of a
        single process (to rounding) is what the layers' cuts are for, and tests compare. A digest of the rows
        and of the random draws' state, and whole gradients, are compared in every pass.

    Raises:
        ConfigError[no-process-group]: `torch.distributed` is not initialised.

    Sources:
        [1] Shoeybi et al. 2019, arXiv:1909.08053 (column and row parallel layers).
    """

    shards = True
    data_rank: int = 0

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._replicas: Final = Replicas(group)
        self._shards: Final = Shards(group)
        self._group: Final = group
        self.rank: Final = self._replicas.rank
        self.size: Final = self._replicas.size

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, indices: Indices) -> Indices:
        """All of the batch."""
        return indices

    def num_passes_over(self, indices: Indices) -> int:
        """All of it."""
        return len(indices)

    def settle(self, model: nn.Module) -> None:
        """Nothing was gathered."""

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
        """Wait for every rank; an error in the middle of passes ends the job, as for `Shards`."""
        self._shards.meet(error, passing=passing)

    def agree(self, what: str, value: Any) -> None:
        """Check that a JSON value is the same on every rank."""
        self._replicas.agree(what, value)

    def hold(self, model: nn.Module) -> SlicedModel:
        """A slice of each layer.

        Raises:
            ConfigError[sharded-model]: `shard` was not applied to the model, or other ranks hold its slices.
        """
        return SlicedModel(model, over=self._replicas)

    def begin_alike(self, model: nn.Module) -> None:
        """Give every rank the leader's buffers and whole parameters, and the state of its random draws."""
        self._shards.begin_alike(model)
        for state, restore in _random_states(self._replicas.device):
            self._replicas.broadcast([state])
            restore(state)

    def measure(self, model: nn.Module, act: Callable[[], T]) -> T | None:
        """Let every rank act: each pass needs all of them."""
        return act()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the leader's CPU, gathered one at a time."""
        return self._shards.gather(tensors)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write each rank's part of tensors into an empty folder that all of them see; see `read_parts`."""
        self._shards.write(folder, tensors)

    def shard(self, model: nn.Module) -> nn.Module:
        """Give every rank the leader's weights, and cut the model's layers. Make the optimizer afterwards.

        Ranks draw the same random numbers from here on, if they draw equally many.

        A layer that the number of ranks does not divide (neither its outputs nor its inputs) stays whole.

        Raises:
            ConfigError[sharded-model]: parameters are spread over ranks already.
            ConfigError[tensor-parallel]: less than half of the parameters are in layers that can be cut, so
                that most of the work and the memory would be the same on every rank.
        """
        found = [n for n, p in model.named_parameters() if isinstance(p.data, DTensor)]
        if found:
            raise ConfigError(
                f"Parameters {found[:3]} are spread over ranks already. Give a model that is whole on "
                "every rank.",
                code="sharded-model",
            )
        cuts = required_cuts(model, self.size)
        paired = plan_pairs(model, cuts, self.size)
        self.begin_alike(model)
        group = dist.group.WORLD if self._group is None else self._group
        assert group is not None
        mesh = DeviceMesh.from_group(group, self._replicas.device.type)
        apply_cuts(cuts, paired, self._replicas, partial(spread, mesh=mesh))
        return model

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """Noise on this rank's slices; on what all ranks have whole, the leader's on the leader's sum."""
        total = bounded.total
        parts = total.parts if isinstance(total, SlicedSums) else frozenset[str]()

        def noised(names: list[str]) -> dict[str, Tensor]:
            some = BoundedSum(total={n: total[n] for n in names}, bound=bounded.bound, norms=bounded.norms)
            return add_noise(some, noise_multiplier=noise_multiplier, source=source)

        whole = [n for n in total if n not in parts]
        found = noised([n for n in total if n in parts])
        # Nobody's own sum of what is whole is released but the leader's: two with one noise would show their
        # gap.
        found |= noised(whole) if self.leads else {n: torch.zeros_like(total[n]) for n in whole}
        self._replicas.broadcast(found[n] for n in whole)
        return found

    def __repr__(self) -> str:
        return f"TensorParallel(rank={self.rank}, size={self.size})"


def _random_states(device: torch.device) -> list[tuple[Tensor, Callable[[Tensor], None]]]:
    """The states of torch's generators, and what sets them."""
    states: list[tuple[Tensor, Callable[[Tensor], None]]] = [(torch.get_rng_state(), torch.set_rng_state)]
    if device.type == "cuda":
        states.append((torch.cuda.get_rng_state(), torch.cuda.set_rng_state))
    return states
