"""A model under FSDP2 (`fully_shard`): its parameters as the forward uses them, and sums of them by shards.

Room: dist. May import torch and `reticent.errors`.

FSDP2 swaps every parameter for its gathered, whole form while the module around it runs, and gives that
form's memory back afterwards; the object stays the same. Recording by identity therefore sees every use.
The gathered parameter never gets a `.grad`, so FSDP2 reduces nothing by itself: clipped sums are
reduce-scattered here, one FSDP2 unit (the parameters that are gathered together) at a time.

On a mesh of two axes (hybrid sharding) the ranks along the second hold a copy of the model together, and each
copy's sums are scattered among them; they are added up over the copies once a step, with the noise.

Shape letters (this file): N ranks, S numbers in a rank's part of a unit.

Sources:
    [1] PyTorch documentation, torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from reticent.errors import ConfigError, StepError

from ._prints import not_updated
from ._replicas import Replicas


class ShardedModel:
    """How a rank holds a model that `fully_shard` was applied to; see `reticent.clip`'s `Held`.

    Args:
        model: every trainable parameter must be sharded on its first axis, over the ranks' group, or on a
            mesh of all of them whose first axis holds copies.
        ranks: all of them.

    Raises:
        ConfigError[sharded-model]: the model is not sharded like that.
    """

    apart = True

    def __init__(self, model: nn.Module, *, ranks: Replicas) -> None:
        self._model, self._ranks = model, ranks
        self.sharded: Final = dict(model.named_parameters())
        mesh = _common_mesh(self.sharded, ranks)
        _refuse_elsewhere(self.sharded)
        rows = mesh if mesh is not None and mesh.ndim == 2 else None
        self.within: Final = ranks if rows is None else Replicas(rows.get_group(1))
        self.across: Final = None if rows is None else Replicas(rows.get_group(0))
        self.units: Final[list[tuple[str, ...]]] = []
        self._gathered: dict[str, nn.Parameter] = {}
        for module in self._fsdp_modules():
            self._learn(module)
        _refuse_not_gathered(
            [n for n, p in self.sharded.items() if p.requires_grad and n not in self._gathered]
        )

    def _learn(self, module: FSDPModule) -> None:
        """Which parameters a unit gathers, and as which objects: they are made once."""
        module.unshard()
        now = dict(self._model.named_parameters())
        unit = {n: p for n, p in now.items() if p is not self.sharded[n] and n not in self._gathered}
        module.reshard()
        if unit:
            self.units.append(tuple(unit))
            self._gathered |= unit

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Name -> parameter as the forward uses it; another object than any we know comes as it is."""
        now = dict(self._model.named_parameters())
        return {
            name: self._gathered.get(name, p) if p is self.sharded.get(name) else p for name, p in now.items()
        }

    def buffers(self) -> Mapping[str, Tensor]:
        """The model's."""
        return dict(self._model.named_buffers())

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return self._ranks.any_rank(flag)

    same_rows = None

    @property
    def num_adding(self) -> int:
        """The ranks that hold a copy of the model together: their sums are added up."""
        return self.within.size

    def sizes(self, params: Mapping[str, nn.Parameter]) -> dict[str, int]:
        """The parameters', which are whole in a pass."""
        return {name: p.numel() for name, p in params.items()}

    def square(self, squares: Mapping[str, float]) -> float:
        """The sum over the ranks that hold a copy of the model together."""
        return self.within.sum_over_ranks(sum(squares.values()))

    def require_order(self, ready: Mapping[str, int]) -> None:
        """Refuse ranks that will not come to the units in the same order.

        Raises:
            StepError[ranks-order]: they will not, on every rank.
        """
        when = {i: [ready[n] for n in unit if n in ready] for i, unit in enumerate(self.units)}
        order = sorted((i for i, numbers in when.items() if numbers), key=lambda i: -min(when[i]))
        try:
            self._ranks.agree("the order of the model's units in this pass", order)
        except ConfigError as e:
            raise _out_of_order() from e

    def common_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """This rank's shards of gradients of a loss that all ranks have alike: FSDP2's own means of them.

        Raises:
            UnsupportedModel[parameter-hook]: a hook of autograd has changed a parameter.
        """
        kept = {name: p.grad for name, p in self.sharded.items()}
        for p in self.sharded.values():
            p.grad = None
        try:
            with not_updated(self.sharded):
                torch.autograd.backward(loss, torch.ones_like(loss))
            return {name: _local(p.grad) for name, p in self.sharded.items() if p.grad is not None}
        finally:
            for name, p in self.sharded.items():
                p.grad = kept[name]
            for p in self._gathered.values():
                p.grad = None  # of a backward that failed

    @property
    def held(self) -> "ShardedModel":
        """This: it tells a clip engine what passes need."""
        return self

    def zeros(self, params: Mapping[str, nn.Parameter]) -> "ScatteredSums":
        """Sums by shards, of all trainable parameters."""
        return ScatteredSums(self, within=self.within, across=self.across)

    def gradient(self, p: nn.Parameter, part: Tensor) -> Tensor:
        """A rank's shard of a gradient, as the gradient of a sharded parameter."""
        data = p.data
        assert isinstance(data, DTensor)
        return DTensor.from_local(
            part.to(dtype=data.dtype, device=data.device),
            data.device_mesh,
            data.placements,
            run_check=False,
            shape=data.shape,
            stride=data.stride(),
        )

    def _fsdp_modules(self) -> list[FSDPModule]:
        return [module for module in self._model.modules() if isinstance(module, FSDPModule)]


class ScatteredSums(Mapping[str, Tensor]):
    """Sums of gradients by parameter, of which each rank holds its shard.

    A unit's sums exist whole only between the first and the last `adding` to it; then they are summed over
    the ranks, each of which keeps its part.

    Args:
        model: the sharded model.
        within: the ranks over which its parts are.
        across: the ranks that hold the same part as this one, each of another copy; None for a single copy.

    Guarantee:
        After every rank has added to every parameter once, a rank's tensors hold its coordinates of the sum
        over the ranks `within` (to rounding in the sum's dtype); their sum over `across` is that over all.
    """

    def __init__(self, model: ShardedModel, *, within: Replicas, across: Replicas | None = None) -> None:
        self._ranks = within
        self.across: Final = across
        self._shards = {n: _zeros_for(p) for n, p in model.sharded.items() if p.requires_grad}
        self._shapes = {n: model.sharded[n].shape for n in self._shards}
        self._units = [tuple(n for n in unit if n in self._shards) for unit in model.units]
        self._unit_of = {n: i for i, unit in enumerate(self._units) for n in unit}
        self._whole: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    @contextmanager
    def adding(self, name: str) -> Iterator[Tensor]:
        """Zeros to add to. With the block that completes a unit, its sums are handed out.

        Raises:
            StepError[ranks-order]: the ranks are not at the same unit.
        """
        mine = self._shards[name]
        whole = torch.zeros(self._shapes[name], dtype=mine.dtype, device=mine.device)
        yield whole
        self._whole[name] = whole
        number = self._unit_of[name]
        if all(n in self._whole for n in self._units[number]):
            self._hand_out(number)

    def _hand_out(self, number: int) -> None:
        names, ranks = self._units[number], self._ranks.size
        sizes = {n: -(-self._shapes[n][0] // ranks) * self._shapes[n][1:].numel() for n in names}
        first = self._shards[names[0]]
        marks = _marks(number)
        flat_NS = torch.zeros(ranks, sum(sizes.values()) + len(marks), dtype=first.dtype, device=first.device)
        flat_NS[:, -len(marks) :] = torch.tensor(marks)
        start = 0
        for name in names:
            whole, size = self._whole.pop(name).reshape(-1), sizes[name]
            rows = flat_NS.narrow(1, start, size)
            full = whole.numel() // max(1, size)  # ranks with a full part
            rows[:full] = whole[: full * size].view(full, size)
            if full < ranks:
                rows[full, : whole.numel() - full * size] = whole[full * size :]
            start += size
        mine_S = torch.empty(flat_NS.shape[1], dtype=first.dtype, device=first.device)
        self._ranks.scatter_sum(mine_S, flat_NS.view(-1))
        if mine_S[-len(marks) :].tolist() != [ranks * mark for mark in marks]:
            raise _out_of_order()
        start = 0
        for name in names:
            shard = self._shards[name]
            shard.view(-1).add_(mine_S[start : start + shard.numel()])
            start += sizes[name]


def _marks(number: int) -> list[int]:
    """Numbers whose sums tell whether all ranks are at this unit: the mean of d*d is d*d only if all d are.

    Of its digits to the base 16, so that float32 adds them exactly over up to 74565 ranks.
    """
    digits = [number >> shift & 15 for shift in (0, 4, 8, 12)]
    return [mark for d in digits for mark in (d, d * d)]


def _out_of_order() -> StepError:
    return StepError(
        "The ranks' backward passes reach the model's units in different orders, so that their sums do not "
        "belong together. Nothing was released. Make the model's operations the same for every "
        "batch, or train with parallel=ddp.",
        code="ranks-order",
    )


def _zeros_for(p: nn.Parameter) -> Tensor:
    local = _local(p)
    return torch.zeros_like(local, dtype=torch.promote_types(local.dtype, torch.float32), requires_grad=False)


def _local(p: Any) -> Tensor:
    return p.to_local().detach()


def _refuse_not_gathered(names: list[str]) -> None:
    """Refuse shards that no unit of FSDP2 gathers for the forward: those of tensor parallel."""
    if names:
        raise ConfigError(
            f"Parameters {names[:3]} are shards, and not those of fully_shard (tensor parallel?). Apply "
            "torch.distributed.fsdp.fully_shard to a model that is whole.",
            code="sharded-model",
        )


def _common_mesh(sharded: Mapping[str, nn.Parameter], ranks: Replicas) -> DeviceMesh | None:
    """The mesh that all shards are on; refuses parameters not spread over exactly the ranks, on axis 0."""
    whole = [n for n, p in sharded.items() if p.requires_grad and not isinstance(p.data, DTensor)]
    if whole:
        raise ConfigError(
            f"Trainable parameters {whole[:3]} are not sharded. Apply torch.distributed.fsdp.fully_shard to "
            "the model (and first to its blocks) before the optimizer is made, without ignored_params.",
            code="sharded-model",
        )
    meshes = {n: p.data.device_mesh for n, p in sharded.items() if isinstance(p.data, DTensor)}
    mesh = next(iter(meshes.values()), None)
    other = [n for n, m in meshes.items() if m != mesh or not _fits(m, sharded[n], ranks)]
    if other:
        raise ConfigError(
            f"Parameters {other[:3]} are not sharded on their first axis over all {ranks.size} ranks (tensor "
            "parallel, a shard_placement_fn, or a mesh of other ranks). Use fully_shard's default mesh, or "
            "one of two axes over all ranks in their order, of which the first holds copies.",
            code="sharded-model",
        )
    return mesh


def _refuse_elsewhere(sharded: Mapping[str, nn.Parameter]) -> None:
    """Refuse shards that are not kept where the passes run: sums are formed where the shards are."""
    kept = {n: p.data for n, p in sharded.items() if isinstance(p.data, DTensor)}
    away = [n for n, t in kept.items() if t.to_local().device.type != t.device_mesh.device_type]
    if away:
        there, mesh = kept[away[0]].to_local().device.type, kept[away[0]].device_mesh.device_type
        raise ConfigError(
            f"Shards of {away[:3]} are kept on '{there}', and passes run on '{mesh}': CPU offload is not "
            "supported there. Leave out offload_policy (and materialise parameters on the meta device "
            "first).",
            code="sharded-model",
        )


def _fits(mesh: DeviceMesh, p: Any, ranks: Replicas) -> bool:
    """Whether a parameter is sharded over all ranks in their order; or, hybrid, over rows of them."""
    if mesh.ndim > 2 or mesh.mesh.flatten().tolist() != ranks.numbers:
        return False
    return tuple(p.data.placements) == ((Shard(0),) if mesh.ndim == 1 else (Replicate(), Shard(0)))
