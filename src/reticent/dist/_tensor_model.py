"""A model of whose layers each rank has a slice: how passes, norms and sums go over the ranks.

All ranks run the same rows. Gradients of slices are parts of the whole gradient, so that squared norms add up
over the ranks; of parameters that are not cut, every rank computes the same gradient, which counts once.

Room: dist. May import torch and `reticent.errors`.

Shape letters (this file): U privacy units, N ranks.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reticent.errors import ConfigError, StepError, UnsupportedModel

from ._prints import not_updated
from ._replicas import Replicas
from ._tensor_layers import Cut, Slices, cut_of

# How far squares of the same gradient may be apart, beyond rounding of the whole norm. Like hardware gives
# the same bits; rows, random draws and, before the first step, each gradient are compared by themselves.
_ALIKE: Final = 1e-2
_ROUNDING: Final = 1e-6


class SlicedSums(Mapping[str, Tensor]):
    """Sums of gradients by parameter: of one that is cut, of this rank's slice.

    Args:
        total: name -> sum.
        parts: names of parameters that are cut; each rank has the whole sum of the others.
    """

    def __init__(self, total: Mapping[str, Tensor], parts: frozenset[str]) -> None:
        self._total, self.parts = dict(total), parts

    def __getitem__(self, name: str) -> Tensor:
        return self._total[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._total)

    def __len__(self) -> int:
        return len(self._total)


class SlicedModel:
    """How a rank holds a model that `TensorParallel.shard` was applied to; see `reticent.clip`'s `Held`.

    Args:
        model: cut into slices, over the ranks' group.
        over: the ranks.

    Raises:
        ConfigError[sharded-model]: a parameter is spread over ranks in another way.
    """

    apart = True
    num_adding = 1

    def __init__(self, model: nn.Module, *, over: Replicas) -> None:
        self._model, self._over = model, over
        cuts = [cut for cut in map(cut_of, model.modules()) if cut is not None]
        self._slices: Final = _slices_of(model, cuts, over)
        self._whole: Final = dict(model.named_parameters())

    @property
    def same_rows(self) -> "SlicedModel":
        """This: all ranks run the same rows."""
        return self

    @property
    def parts(self) -> frozenset[str]:
        """Parameters that are cut."""
        return frozenset(n for n, p in self._model.named_parameters() if isinstance(p.data, DTensor))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Name -> parameter, or this rank's slice of it."""
        return {
            name: self._slices.of(p) if isinstance(p.data, DTensor) else p
            for name, p in self._model.named_parameters()
        }

    def buffers(self) -> Mapping[str, Tensor]:
        """The model's."""
        return dict(self._model.named_buffers())

    def sizes(self, params: Mapping[str, nn.Parameter]) -> dict[str, int]:
        """Those of the whole parameters."""
        return {name: self._whole[name].numel() for name in params}

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return self._over.any_rank(flag)

    def square(self, squares: Mapping[str, float]) -> float:
        """Slices' squares over all ranks, and those of whole gradients once: the largest that a rank has."""
        parts = self.parts
        mine = torch.tensor([0.0, 0.0], dtype=torch.float64)
        for name, square in squares.items():
            mine[0 if name in parts else 1] += square
        of_all_N2 = self._over.all_gather(mine)
        return float(of_all_N2[:, 0].sum() + of_all_N2[:, 1].max())

    def squares(self, group: int, of_parts_U: Tensor, of_whole_U: Tensor) -> Tensor:
        """Slices' squares over all ranks, and those of whole gradients once: the largest that a rank has."""
        mark_U = torch.full_like(of_parts_U, group)
        of_all_N3U = self._over.all_gather(torch.stack([mark_U, of_parts_U, of_whole_U]))
        if bool((of_all_N3U[:, 0] != group).any()):
            raise StepError(
                "The ranks' backward passes reach the model's parameters in different orders, so that their "
                "norms do not belong together. Nothing was released. Make the model's operations the same "
                "for every batch and on every rank, or train with parallel=ddp.",
                code="ranks-order",
            )
        whole_NU = of_all_N3U[:, 2]
        most_U, least_U = whole_NU.amax(0), whole_NU.amin(0)
        square_U = of_all_N3U[:, 1].sum(0) + most_U
        other_U = most_U - least_U > _ALIKE * most_U + _ROUNDING * square_U
        if bool((other_U & torch.isfinite(square_U)).any()):
            raise _diverged()
        return square_U

    def require_order(self, ready: Mapping[str, int]) -> None:
        """Nothing: sums are not handed out, and `squares` compares the groups."""

    def plainly(self) -> AbstractContextManager[None]:
        """What lies between layers is whole on every rank, in blocks known by name too."""
        return self._slices.between_layers_whole()

    def require_same(self, digest: bytes) -> None:
        """Refuse another rank's rows or random draws that are not this one's."""
        of_all_NB = self._over.all_gather(torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        if bool((of_all_NB != of_all_NB[0]).any()):
            raise _diverged()

    def agreed(self, t: Tensor) -> Tensor:
        """The leader's tensor."""
        ours = t.clone()
        self._over.broadcast([ours])
        return ours

    def refuse_different(self, total: Mapping[str, Tensor], names: Iterable[str], tolerance: float) -> None:
        """Refuse sums of whole gradients that are not the leader's."""
        parts = self.parts
        whole = [name for name in names if name not in parts]
        gaps = [float((total[n] - self.agreed(total[n])).double().norm()) for n in whole]
        other = [
            n for n, gap in zip(whole, gaps, strict=True) if gap > tolerance * float(total[n].double().norm())
        ]
        if self.any_rank(bool(other)):
            raise UnsupportedModel(
                f"Parameters {other[:3] or '(see another rank)'} have other gradients on this rank than on "
                "the first, for the same examples. Give every rank the same rows and the same draws of "
                "random numbers.",
                code="ranks-diverged",
            )

    @property
    def held(self) -> "SlicedModel":
        """This: it tells a clip engine what passes need."""
        return self

    def zeros(self, params: Mapping[str, nn.Parameter]) -> SlicedSums:
        """Sums of all trainable parameters, or of slices of them."""
        return SlicedSums(
            {
                name: torch.zeros_like(
                    p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False
                )
                for name, p in self.parameters().items()
                if p.requires_grad
            },
            self.parts,
        )

    def common_gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """This rank's slices of gradients, and those of whole parameters, by plain autograd.

        Raises:
            UnsupportedModel[parameter-hook]: a hook of autograd has changed a parameter.
        """
        params = {name: p for name, p in self.parameters().items() if p.requires_grad}
        leaves, kept = list(params.values()), [p.grad for p in params.values()]
        for p in leaves:
            p.grad = None
        try:
            with not_updated(params):
                torch.autograd.backward(loss, torch.ones_like(loss))
            return {name: p.grad for name, p in params.items() if p.grad is not None}
        finally:
            for p, grad in zip(leaves, kept, strict=True):
                p.grad = grad

    def gradient(self, p: nn.Parameter, part: Tensor) -> Tensor:
        """A gradient of a parameter, or of this rank's slice of it, as `p.grad` takes it."""
        data = p.data
        if not isinstance(data, DTensor):
            return part.to(dtype=p.dtype, device=p.device)
        return DTensor.from_local(
            part.to(dtype=data.dtype, device=data.device),
            data.device_mesh,
            data.placements,
            run_check=False,
            shape=data.shape,
            stride=data.stride(),
        )


def _diverged() -> StepError:
    return StepError(
        "The ranks have different rows, draw other random numbers, or find different gradients of "
        "parameters that each of them has whole. Nothing was released. Read the data alike on every rank, "
        "and draw random numbers alike (the same seed, equally often; CPU and GPU).",
        code="ranks-diverged",
    )


def _slices_of(model: nn.Module, cuts: list[Cut], over: Replicas) -> Slices:
    """Where the model's slices are; refuses parameters spread over ranks by others, and other ranks."""
    ours = {id(p) for m in model.modules() if cut_of(m) is not None for p in m.parameters(recurse=False)}
    other = [n for n, p in model.named_parameters() if isinstance(p.data, DTensor) and id(p) not in ours]
    if other or not cuts or any(cut.over.numbers != over.numbers for cut in cuts):
        raise ConfigError(
            f"The model is not in slices over these {over.size} ranks (parameters {other[:3]} are spread "
            "over ranks in another way). Apply TensorParallel().shard(model) to a model that is whole on "
            "every rank, before the optimizer is made.",
            code="sharded-model",
        )
    return cuts[0].slices
