"""Data parallel: every rank holds the whole model and a share of each logical batch.

Room: dist. May import torch, NumPy, `reticent.noise` and the floors below.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reticent.bounded import BoundedSum
from reticent.errors import ConfigError, StepError
from reticent.noise import NoiseSource, add_noise

from ._ranks import Holding, Indices, T, WholeModel

# Newer torch has new names for these two.
_reduce_scatter: Final = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Final = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_BUCKET: Final = 1 << 24  # coordinates summed and noised at a time
_WELL, _FAILED, _OUT_OF_MEMORY = 0, 1, 2


class Replicas:
    """The ranks of a `torch.distributed` process group, each with a copy of the model.

        torch.distributed.init_process_group()             # under torchrun
        private = PrivateStep(model, optimizer, plan=plan, ledger="runs/a", ranks=Replicas())

    Rank 0 leads: it draws every logical batch and tells the others, who each take a share; it alone keeps
    the ledger, whose entry is durable before any rank adds noise. Sums are scattered over the ranks, each
    noises the coordinates it got from a key of its own, and all gather the result: one draw for each
    coordinate, whatever the number of ranks.

    Args:
        group: the process group; by default that of all ranks.

    Guarantee:
        The noised sum has the distribution of one process's (to rounding in the sum's dtype), if row i of
        the data set is the same on every rank: `PrivateStep` compares their number, and 64 rows spread over
        them, before the first step. Raw sums, which are private, and the indices of batches go through the
        group's connections as they are: these must be trusted, as the memory of the machines is.

    Raises:
        ConfigError[no-process-group]: `torch.distributed` is not initialised.
    """

    shards: bool = False

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "There is no process group. Start the script with torchrun, and call "
                "torch.distributed.init_process_group() first.",
                code="no-process-group",
            )
        self._group: Final = group
        self.rank: Final = dist.get_rank(group)
        self.size: Final = dist.get_world_size(group)
        self.device: Final = _device_of(group)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def numbers(self) -> list[int]:
        """The number of each rank among all processes."""
        return dist.get_process_group_ranks(dist.group.WORLD if self._group is None else self._group)

    @property
    def data_rank(self) -> int:
        """The rank's own number: no two have the same rows."""
        return self.rank

    def share(self, indices: Indices) -> Indices:
        """Every size-th unit, from the rank's own number on."""
        return indices[self.rank :: self.size]

    def num_passes_over(self, indices: Indices) -> int:
        """The rank's share."""
        return len(self.share(indices))

    def hold(self, model: nn.Module) -> Holding:
        """All of it."""
        return WholeModel()

    def settle(self, model: nn.Module) -> None:
        """Nothing was gathered."""

    def tell(self, value: Any) -> Any:
        """The leader's JSON value on every rank."""
        text = json.dumps(value).encode() if self.leads else b""
        words = np.frombuffer(text, dtype=np.uint8)
        return json.loads(self._tell(torch.from_numpy(words.copy())).numpy().tobytes())

    def tell_indices(self, indices: Indices) -> Indices:
        """The leader's indices on every rank."""
        return self._tell(torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))).numpy()

    def first(self, act: Callable[[], T]) -> T | None:
        """Let the leader act; the others wait, and get None."""
        if not self.leads:
            self.meet(None)
            return None
        try:
            done = act()
        except BaseException as e:
            self.meet(e)
            raise
        self.meet(None)
        return done

    def meet(self, error: BaseException | None, *, passing: bool = False) -> None:
        """Wait for every rank, and tell the others whether this one failed."""
        states = self._gather(torch.tensor([_state(error)], dtype=torch.int64)).flatten()
        if error is not None:
            return
        failed = [rank for rank, state in enumerate(states.tolist()) if state != _WELL]
        if not failed:
            return
        if all(int(states[rank]) == _OUT_OF_MEMORY for rank in failed):
            raise torch.OutOfMemoryError(f"Rank {failed[0]} ran out of memory.")
        raise StepError(
            f"Rank {failed[0]} failed; its own error says why. Nothing was released, and nothing was spent "
            "that the ledger does not hold.",
            code="rank-failed",
        )

    def agree(self, what: str, value: Any) -> None:
        """Check that a JSON value is the same on every rank."""
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        all_of_them = self._gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        if not bool((all_of_them == all_of_them[0]).all()):
            raise ConfigError(
                f"The ranks differ in {what}. Start every rank with the same program, settings and data.",
                code="ranks-differ",
            )

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self._gather(torch.tensor([flag], dtype=torch.uint8)).any())

    def sum_over_ranks(self, value: float) -> float:
        """The sum of every rank's value."""
        return float(self._gather(torch.tensor([value], dtype=torch.float64)).sum())

    def scatter_sum(self, mine: Tensor, parts: Tensor) -> None:
        """Sum `parts`, shape (size * S,), over the ranks, into the rank's own part, shape (S,)."""
        near = mine.device.type == self.device.type
        here = mine if near else torch.empty_like(mine, device=self.device)
        with self._lost_ranks_named():
            _reduce_scatter(here, parts if near else parts.to(self.device), group=self._group)
        if not near:
            mine.copy_(here)

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's tensor, as a new one; half precision is added up in float32 on the CPU."""
        half = x.dtype in (torch.bfloat16, torch.float16) and self.device.type == "cpu"
        there = torch.empty(x.shape, dtype=torch.float32 if half else x.dtype, device=self.device)
        there.copy_(x.detach())
        with self._lost_ranks_named():
            dist.all_reduce(there, group=self._group)
        return there.to(x.device, x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor of the same shape, shape (size, *shape)."""
        there = x.detach().to(self.device).contiguous()
        everyone = torch.empty((self.size, *there.shape), dtype=there.dtype, device=self.device)
        with self._lost_ranks_named():
            _all_gather(everyone.view(-1), there.view(-1), group=self._group)
        return everyone.to(x.device)

    def begin_alike(self, model: nn.Module) -> None:
        """Give every rank the leader's parameters and buffers."""
        self.broadcast((*model.parameters(), *model.buffers()))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the leader's numbers."""
        with self._lost_ranks_named(), torch.no_grad():
            for t in tensors:
                there = t.detach().to(self.device).contiguous()
                dist.broadcast(there, src=self._leader(), group=self._group)
                t.copy_(there)

    def measure(self, model: nn.Module, act: Callable[[], T]) -> T | None:
        """Let the leader act."""
        return self.first(act)

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, which every rank has."""
        return dict(tensors)

    def add_noise(
        self, bounded: BoundedSum, *, noise_multiplier: float, source: NoiseSource
    ) -> dict[str, Tensor]:
        """The sum over all ranks, noised once, on every rank."""
        noised: dict[str, Tensor] = {}
        for part in _buckets(bounded.total):
            flat = torch.cat([t.detach().reshape(-1) for t in part.values()]).to(self.device)
            length = flat.numel()
            flat = torch.nn.functional.pad(flat, (0, -length % self.size))
            shard = torch.empty(flat.numel() // self.size, dtype=flat.dtype, device=flat.device)
            self.scatter_sum(shard, flat)
            mine = BoundedSum(total={"shard": shard}, bound=bounded.bound, norms=bounded.norms)
            shard = add_noise(mine, noise_multiplier=noise_multiplier, source=source)["shard"]
            with self._lost_ranks_named():
                _all_gather(flat, shard, group=self._group)
            sizes = [t.numel() for t in part.values()]
            for (name, t), piece in zip(part.items(), flat[:length].split(sizes), strict=True):
                noised[name] = piece.view(t.shape).to(t.device)
        return noised

    def _tell(self, words: Tensor) -> Tensor:
        """The leader's one-dimensional tensor, whatever its length, on every rank's CPU."""
        length = torch.tensor([words.numel()], dtype=torch.int64, device=self.device)
        with self._lost_ranks_named():
            dist.broadcast(length, src=self._leader(), group=self._group)
            there = words.to(self.device) if self.leads else None
            if there is None:
                there = torch.empty(int(length), dtype=words.dtype, device=self.device)
            dist.broadcast(there, src=self._leader(), group=self._group)
        return there.cpu()

    def _gather(self, mine: Tensor) -> Tensor:
        """Every rank's tensor of the same shape, shape (size, *shape), on the CPU."""
        return self.all_gather(mine).cpu()

    def _leader(self) -> int:
        return 0 if self._group is None else dist.get_global_rank(self._group, 0)

    @contextmanager
    def _lost_ranks_named(self) -> Iterator[None]:
        """Say in our words that a connection broke or timed out."""
        try:
            yield
        except (dist.DistError, RuntimeError) as e:
            raise StepError(
                f"Rank {self.rank} of {self.size} lost touch with another rank "
                f"({str(e).splitlines()[0] if str(e) else type(e).__name__}). The job ends here; go on with "
                "the run by resuming it.",
                code="rank-lost",
            ) from e

    def __repr__(self) -> str:
        return f"Replicas(rank={self.rank}, size={self.size})"


def _device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Where tensors must be for the group's collectives; NCCL knows GPUs only."""
    backends = (str(dist.get_backend(group)), str(dist.get_backend_config(group)))
    on_gpu = torch.cuda.is_available() and any("nccl" in name for name in backends)
    return torch.device("cuda" if on_gpu else "cpu")


def _state(error: BaseException | None) -> int:
    if error is None:
        return _WELL
    return _OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else _FAILED


def _buckets(total: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, a few together: of one dtype and device, and of bounded size."""
    part: dict[str, Tensor] = {}
    for name, t in total.items():
        first = next(iter(part.values()), t)
        size = sum(held.numel() for held in part.values())
        if part and (size + t.numel() > _BUCKET or (t.dtype, t.device) != (first.dtype, first.device)):
            yield part
            part = {}
        part[name] = t
    if part:
        yield part
