"""The informed adversary: knows every example but one, sees what training releases, wants the last one.

Room: audit. May import torch, `reticent.errors` and the room's own files. For small models: gradients of all
candidates are held at once.

What privacy bounds is the strongest such adversary, who sees each noised gradient and not only the final
weights. Taking the clipped gradients of the known examples away from a release leaves the target's clipped
gradient, and the noise.

Shape letters (this file): B example, T step.

Sources:
    [1] Balle, Cherubin, Hayes 2022, arXiv:2201.04845 (the adversary; exact recovery from convex models).
    [2] Hayes, Mahloujifar, Balle 2023, arXiv:2302.07225 (a prior of candidates, every step seen).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim import Optimizer

from reticent.errors import AuditError

Losses: TypeAlias = Callable[[nn.Module, Any], Tensor]
Rows: TypeAlias = tuple[Tensor, ...]
Gradient: TypeAlias = dict[str, Tensor]

_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Release:
    """One step, as an adversary who watches training sees it.

    Args:
        weights: before the step; name -> tensor.
        gradient: what the optimizer was given.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    gradient: Mapping[str, Tensor] = field(repr=False)


@contextmanager
def releases(model: nn.Module, optimizer: Optimizer) -> Iterator[list[Release]]:
    """Note each step of the optimizer, as long as the block is open.

        with releases(model, optimizer) as seen:
            train(model, optimizer, ...)

    Raises:
        AuditError[audit-saw-nothing]: a trainable parameter had no gradient, or the block saw no step.
    """
    seen: list[Release] = []

    def note(*_: object) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradient = {name: p.grad.detach().clone() for name, p in trained.items() if p.grad is not None}
        if gradient.keys() != trained.keys():
            raise _nothing("a parameter was stepped without a gradient")
        weights = {name: p.detach().clone() for name, p in trained.items()}
        seen.append(Release(weights=weights, gradient=gradient))

    hook = optimizer.register_step_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
    if not seen:
        raise _nothing("the optimizer was never stepped")


def _nothing(why: str) -> AuditError:
    return AuditError(
        f"The adversary saw nothing to attack: {why}. The trainer must step the optimizer that is watched.",
        code="audit-saw-nothing",
    )


class LossModule(nn.Module):
    """Losses as a module, so that they can be called with other weights."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, *rows: Tensor) -> Tensor:
        return self.losses(self.model, rows)


def per_example_gradients(
    model: nn.Module,
    losses: Losses,
    rows: Rows,
    weights: Mapping[str, Tensor],
    *,
    max_norm: float | None = None,
) -> Gradient:
    """Each row's gradient by itself, name -> (B, *shape), scaled to norm at most `max_norm` if given.

    Plain `torch.func`, one row at a time: shares nothing with the engine that is under attack.
    """
    module = LossModule(model, losses)

    def loss(trained: dict[str, Tensor], *row: Tensor) -> Tensor:
        return functional_call(module, trained, tuple(part[None] for part in row)).sum()

    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    axes = (None, *(0 for _ in rows))
    found = vmap(grad(loss), in_dims=axes, chunk_size=_AT_ONCE)(named, *rows)
    gradients = {name: found[f"model.{name}"].detach() for name in weights}
    if max_norm is None:
        return gradients
    norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()  # pyright: ignore
    scale = (max_norm / norms).clamp(max=1.0)
    return {name: torch.einsum("b,b...->b...", scale, g) for name, g in gradients.items()}


def residuals(
    seen: Sequence[Release],
    model: nn.Module,
    losses: Losses,
    known: Rows,
    *,
    divisor: float,
    max_norm: float | None = None,
) -> list[Gradient]:
    """What each release holds beyond the known examples: the target's (clipped) gradient, and noise.

    Args:
        seen: steps, each of which used every example (full batch).
        model: the architecture; its own weights are not read.
        losses: (model, rows) -> (B,).
        known: every example but the target, (B, ...) each.
        divisor: what the released sum was divided by, `plan.expected_batch_size`.
        max_norm: the clipping norm; None if nothing was clipped.

    Returns:
        One gradient a step, in units of the sum.
    """
    found = []
    for release in seen:
        own = per_example_gradients(model, losses, known, release.weights, max_norm=max_norm)
        found.append({name: g * divisor - own[name].sum(0) for name, g in release.gradient.items()})
    return found


def residual_at_optimum(
    weights: Mapping[str, Tensor], model: nn.Module, losses: Losses, known: Rows, *, penalty: float
) -> Gradient:
    """The target's gradient, from the final weights of convex training alone [1, sect. 4].

    At the least of (sum of losses) + penalty / 2 * |weights|^2 all gradients add up to zero: what the known
    ones and the penalty leave over is the target's.
    """
    own = per_example_gradients(model, losses, known, weights)
    return {name: -(own[name].sum(0) + penalty * weights[name]) for name in weights}


def candidate_scores(
    seen: Sequence[Release],
    left: Sequence[Gradient],
    model: nn.Module,
    losses: Losses,
    candidates: Rows,
    *,
    max_norm: float | None = None,
) -> Float[Tensor, " B"]:
    """How well each candidate explains what is left of the releases; the target's score tends to be highest.

    The log-likelihood ratio against "no target" under Gaussian noise, times the noise's variance: for each
    step <left, g> - |g|^2 / 2, with g the candidate's clipped gradient [2]. No attack orders them better.

    Args:
        seen: the steps.
        left: `residuals` of the same steps.
        model: as in `residuals`.
        losses: as in `residuals`.
        candidates: rows, one of them the target.
        max_norm: as in `residuals`.
    """
    scores = torch.zeros(len(candidates[0]))
    for release, residual in zip(seen, left, strict=True):
        own = per_example_gradients(model, losses, candidates, release.weights, max_norm=max_norm)
        for name, g in own.items():
            flat = g.flatten(1)
            scores = scores + flat @ residual[name].flatten() - flat.square().sum(1) / 2
    return scores
