"""What a trainer under a white-box audit is given: a model beside canaries, and rows that name them.

Room: audit. May import torch, `reticent.{plan,clipping}`.

A canary is a row whose gradient the auditor chose: longer than the clipping norm, along a direction that no
other row touches. So what a step releases along that direction is noise, and the clipping norm if the canary
took part; nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from reticent.clipping import Clipping, Group, GroupedClipping, PerLayerClipping, groups, sensitivity
from reticent.plan import Plan

Rows: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Losses: TypeAlias = Callable[[nn.Module, Any], Tensor]
Directions: TypeAlias = Literal["dirac", "random"]

_NAME: Final = "canary"  # the ids, among rows that are a dict
_STEEP: Final = 100.0  # a canary's gradient is so many clipping norms long


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is audited: a model, its losses and a plan; the rows are made up, so that nothing private is read.

    Args:
        name: as results call it.
        plan: what is claimed: sampling, noise, clipping, number of steps.
        build: makes the model, the same one each time.
        losses: (model, rows) -> each row's loss, shape (B,).
        rows: number -> so many ordinary rows, made up.
        optimizer: model -> what steps its trainable parameters.
        physical_batch_size: rows at once.
    """

    name: str
    plan: Plan
    build: Callable[[], nn.Module]
    losses: Losses
    rows: Callable[[int], Rows]
    optimizer: Callable[[nn.Module], Optimizer] = field(default=lambda m: SGD(m.parameters(), lr=0.1))
    physical_batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What a trainer under audit is to train, privately, as it trains anything.

    Args:
        model: called with a batch of rows, it returns each row's loss, shape (B,).
        optimizer: over the model's parameters; to be stepped once for each private step, with the noised mean
            gradient (the noised sum over `plan.expected_batch_size`) in `.grad`. What a trainer changes
            in the model otherwise is not seen.
        dataset: tensors of equal length, row i of each together one example.
        plan: sampling, clipping, noise and number of steps that are claimed.
        folder: an empty folder for what the trainer writes.
        physical_batch_size: rows at once.
    """

    model: nn.Module
    optimizer: Optimizer
    dataset: Any = field(repr=False)
    plan: Plan
    folder: Path
    physical_batch_size: int = 256

    @property
    def loss_per_example(self) -> Losses:
        """(model, rows) -> (B,); calls the model on the rows."""
        return _call


Trainer: TypeAlias = Callable[[Problem], object]


def _call(model: nn.Module, rows: Any) -> Tensor:
    return model(rows)


def inside(clipping: Clipping) -> Clipping:
    """A model's clipping, for a module that holds the model as `inner`."""
    if not isinstance(clipping, GroupedClipping):
        return clipping
    return GroupedClipping(
        max_norms=tuple((f"inner.{pattern}", norm) for pattern, norm in clipping.max_norms)
    )


class AsLosses(nn.Module):
    """A model that returns its rows' losses, times a factor."""

    def __init__(self, inner: nn.Module, losses: Losses, factor: float = 1.0) -> None:
        super().__init__()
        self.inner, self._losses, self._factor = inner, losses, factor

    def forward(self, rows: Any) -> Tensor:
        return self._factor * self._losses(self.inner, rows)


class Watched(nn.Module):
    """A model with canaries beside it: called with rows, it returns each row's loss, and notes canaries seen.

    A row whose canary id is 0 is an ordinary one, with the model's own loss. Any other row's loss is linear
    in the canaries' parameters, with canary j's direction as its gradient, and does not depend on the model.

    Where groups of parameters are clipped by themselves, each group has canaries' parameters of its own. A
    canary is as steep in all of them, so clipping leaves C_k in group k: sqrt(sum C_k^2), the whole bound.

    Args:
        inner: the audited model.
        losses: its losses.
        num_canaries: M.
        directions: "dirac": each canary its own coordinate of an embedding; "random": orthonormal directions,
            uniform at random, dense over the weights of a linear layer, so that scores stay independent.
        steepness: length of a canary's gradient, in each group.
        seed: of the random directions; public.
        parts: groups of the model's parameters that are clipped by themselves; none: all together.
    """

    def __init__(
        self,
        inner: nn.Module,
        losses: Losses,
        *,
        num_canaries: int,
        directions: Directions,
        steepness: float,
        seed: int = 0,
        parts: Sequence[Group] = (),
    ) -> None:
        super().__init__()
        named = dict(inner.named_parameters())
        # Before `inner`, so that each parameter's first name, the one that clipping sees, is in its group.
        self.parts: nn.ModuleList = nn.ModuleList(
            _Part(num_canaries, directions, [named[name] for name in part.parameters])
            for part in parts or [_ALL]
        )
        self.inner = inner
        self._losses, self._steepness, self._directions = losses, steepness, directions
        self._num_canaries = num_canaries
        total = math.hypot(*(part.max_norm for part in parts or [_ALL]))
        self._shares = [part.max_norm / total for part in parts or [_ALL]]
        self._seen: list[Tensor] = []
        along = torch.empty(0) if directions == "dirac" else _orthonormal(num_canaries, seed=seed)
        self.along: Tensor
        self.register_buffer("along", along, persistent=False)

    def forward(self, rows: Any) -> Tensor:
        """Each row's loss, shape (B,)."""
        own, ids = split(rows)
        self._seen.append(ids.detach())
        losses = self._losses(self.inner, own)
        reads = ids if self._directions == "dirac" else self.along[ids]
        steep = sum(self._steepness * part.canaries(reads).squeeze(-1) for part in self._each_part())
        assert isinstance(steep, Tensor)
        return torch.where(ids == 0, losses, steep.to(losses.dtype))

    def take_seen(self) -> np.ndarray:
        """Ids of the canaries that went through the model since the last call, sorted."""
        seen, self._seen = self._seen, []
        ids = torch.cat(seen).cpu().numpy() if seen else np.zeros(0, dtype=np.int64)
        return np.unique(ids[ids > 0])

    def along_canaries(self) -> np.ndarray:
        """The released gradient along each canary's clipped direction, shape (M,), float64."""
        total = np.zeros(self._num_canaries)
        for share, part in zip(self._shares, self._each_part(), strict=True):
            grad = part.canaries.weight.grad
            if grad is None:
                return np.full(self._num_canaries, np.nan)
            flat = grad.detach().double().cpu()
            dirac = self._directions == "dirac"
            total += share * (flat[1:, 0] if dirac else self.along[1:].double() @ flat[0]).numpy()
        return total

    def _each_part(self) -> "list[_Part]":
        return list(self.parts)  # type: ignore[arg-type]


class _Part(nn.Module):
    """Canaries' parameters, and those parameters of the model that are clipped together with them."""

    def __init__(self, num_canaries: int, directions: Directions, theirs: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.canaries: nn.Embedding | nn.Linear = (
            nn.Embedding(num_canaries + 1, 1)
            if directions == "dirac"
            else nn.Linear(num_canaries, 1, bias=False)
        )
        nn.init.zeros_(self.canaries.weight)
        for k, parameter in enumerate(theirs):
            self.register_parameter(f"of_the_model_{k}", parameter)


_ALL: Final = Group(pattern="*", max_norm=1.0, parameters=())


def _orthonormal(num: int, *, seed: int) -> Tensor:
    """Shape (num + 1, num): row 0 is zero, the others a uniformly random orthonormal basis."""
    normal = np.random.default_rng(seed).standard_normal((num, num))
    basis, scale = np.linalg.qr(normal)
    basis *= np.sign(np.diag(scale))
    return torch.from_numpy(np.vstack([np.zeros((1, num)), basis])).float()


def join(rows: Rows, ids: Tensor) -> Any:
    """Rows with their canary ids."""
    if isinstance(rows, dict):
        return {**rows, _NAME: ids}
    return (rows, ids) if isinstance(rows, Tensor) else (*rows, ids)


def split(joined: Any) -> tuple[Any, Tensor]:
    """Rows and canary ids of what `join` made."""
    if isinstance(joined, dict):
        return {name: part for name, part in joined.items() if name != _NAME}, joined[_NAME]
    *rows, ids = joined
    return (rows[0] if len(rows) == 1 else tuple(rows)), ids


def pose(
    subject: Subject,
    *,
    plan: Plan,
    member: np.ndarray,
    num_rows: int,
    directions: Directions,
    folder: Path,
    seed: int = 0,
) -> tuple[Problem, Watched]:
    """A problem of `num_rows` ordinary rows and the canaries of `member` that are true, these at the end.

    Canaries stand at the end, for a trainer may look at the first rows beforehand.
    """
    inner, parts = subject.build(), ()
    if isinstance(plan.clipping, PerLayerClipping | GroupedClipping):
        parts = groups(plan.clipping, {n: p.numel() for n, p in inner.named_parameters() if p.requires_grad})
        norms = tuple((f"parts.{k}.*", part.max_norm) for k, part in enumerate(parts))
        plan = replace(plan, clipping=GroupedClipping(max_norms=norms))
    model = Watched(
        inner,
        subject.losses,
        num_canaries=len(member),
        directions=directions,
        steepness=_STEEP * max(1.0, sensitivity(plan.clipping)),
        seed=seed,
        parts=parts,
    )
    ids = np.concatenate([np.zeros(num_rows, dtype=np.int64), 1 + np.flatnonzero(member)])
    ordinary = subject.rows(num_rows)
    place = torch.from_numpy(np.where(ids == 0, np.arange(len(ids)), 0))  # what a canary looks like: row 0
    rows = each_tensor(ordinary, lambda t: t[place])
    problem = Problem(
        model=model,
        optimizer=subject.optimizer(model),
        dataset=join(rows, torch.from_numpy(ids)),
        plan=plan,
        folder=folder,
        physical_batch_size=subject.physical_batch_size,
    )
    return problem, model


def each_tensor(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    """The same change of every tensor."""
    if isinstance(rows, Tensor):
        return change(rows)
    if isinstance(rows, dict):
        return {name: change(t) for name, t in rows.items()}
    return tuple(change(t) for t in rows)


def count_of(rows: Rows) -> int:
    """How many rows there are."""
    if isinstance(rows, Tensor):
        return len(rows)
    return len(next(iter(rows.values() if isinstance(rows, dict) else rows)))
