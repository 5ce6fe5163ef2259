"""From a gradient back to the example it came from.

Room: audit. May import torch, `reticent.errors` and the room's own files.

The gradient of a linear layer's weights is an outer product, (gradient of its output) x (its input), and
that of its bias the first factor alone: from a first layer, the input can be read off.

Shape letters (this file): B example, T step, R rows of a layer (all steps), I input, P public example.

Sources:
    [1] Balle, Cherubin, Hayes 2022, arXiv:2201.04845 (success: nearer than any public example).
    [2] Zhu, Liu, Han 2019, arXiv:1906.08935 (matching a gradient).
    [3] Geiping et al. 2020, arXiv:2003.14053 (by its direction, with smooth pictures first).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._informed import Gradient, Losses, Release, per_example_gradients

_LEAST: Final = 1e-12


def nearer_than_pool(
    found: Float[Tensor, "B I"], targets: Float[Tensor, "B I"], pool: Float[Tensor, "P I"]
) -> list[bool]:
    """Whether each reconstruction is nearer to its target than every public example is [1].

    Nobody gets there by choosing from what was public before.
    """
    nearest = torch.cdist(targets, pool).amin(1)
    return ((found - targets).norm(dim=1) < nearest).tolist()


def first_layer_input(
    left: Sequence[Gradient], *, weight: str = "0.weight", bias: str = "0.bias"
) -> Float[Tensor, " I"]:
    """The input whose outer products the gradients of a first linear layer are, of all steps together.

    Every row of [weight gradient, bias gradient] is a multiple of (input, 1), in each step: that direction is
    the first right singular vector. Exact without noise; the most likely one under Gaussian noise, if nothing
    is known about the input.

    Args:
        left: the target's gradient in each step.
        weight: name of the layer's weights, (O, I).
        bias: name of its bias, (O,).
    """
    rows_RI = torch.cat([torch.cat([g[weight], g[bias][:, None]], dim=1) for g in left]).double()
    direction = torch.linalg.svd(rows_RI, full_matrices=False).Vh[0]
    scale = direction[-1].abs().clamp_min(_LEAST) * torch.sign(direction[-1])
    return (direction[:-1] / scale).to(left[0][weight].dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PicturePrior:
    """What is known about an example before anything is released: public ones of its kind, as a Gaussian.

    Args:
        mean: shape (I,).
        axes: principal directions, orthonormal, shape (I, D).
        variances: along each of them, shape (D,); nothing varies across them.
        brevity: mean and variance of 1 / |(input, 1)|, which is what clipping leaves of an input's length.
    """

    mean: Tensor = field(repr=False)
    axes: Tensor = field(repr=False)
    variances: Tensor = field(repr=False)
    brevity: tuple[float, float]

    @classmethod
    def of(cls, public: Float[Tensor, "P I"]) -> "PicturePrior":
        """Mean and all principal directions of public examples."""
        mean = public.mean(0)
        _, sizes, directions = torch.linalg.svd(public - mean, full_matrices=False)
        brevities = 1.0 / _length(public)
        return cls(
            mean=mean,
            axes=directions.T,
            variances=sizes.square() / max(1, len(public) - 1),
            brevity=(float(brevities.mean()), float(brevities.var())),
        )


def _length(inputs: Tensor) -> Tensor:
    """|(input, 1)| along the last axis."""
    return (inputs.square().sum(-1) + 1.0).sqrt()


def likely_input(
    seen: Sequence[Release],
    left: Sequence[Gradient],
    model: nn.Module,
    losses: Losses,
    label: Tensor,
    prior: PicturePrior,
    *,
    noise_std: float,
    max_norm: float,
    weight: str = "0.weight",
    bias: str = "0.bias",
    num_rounds: int = 4,
) -> Float[Tensor, " I"]:
    """The prior's mean of an input with a known label, moved as far as the noise lets it.

    A clipped gradient of a first linear layer is u (input, 1)^T / |(input, 1)|: linear in the input, given u
    and the length. u is computed at the last round's answer; the length is estimated from the bias and the
    prior; the input is then the posterior mean. With nothing but noise, it is the prior's mean.

    Args:
        seen: the steps, in each of which the target's gradient was clipped.
        left: what the known examples leave over, for each step.
        model: the architecture.
        losses: (model, (inputs, labels)) -> (B,).
        label: the target's label, shape (1,).
        prior: what is known of inputs with that label.
        noise_std: of the noise in `left`, public; above 0.
        max_norm: the clipping norm.
        weight: name of the first layer's weights.
        bias: name of its bias.
        num_rounds: how often to compute u anew.
    """
    answer = prior.mean
    usual, spread = prior.brevity
    for _ in range(num_rounds):
        aligned, ones, size = torch.zeros_like(prior.mean), 0.0, 0.0
        for release, residual in zip(seen, left, strict=True):
            own = per_example_gradients(
                model, losses, (answer[None], label), release.weights, max_norm=max_norm
            )
            u = own[bias][0] * _length(answer)
            aligned = aligned + u @ residual[weight]
            ones += float(u @ residual[bias])
            size += float(u.square().sum())
        information = size / noise_std**2
        brevity = (usual / spread + ones / noise_std**2) / (1.0 / spread + information)
        precision = prior.variances * information * brevity**2
        moved = prior.axes.T @ (aligned / (size * brevity) - prior.mean)
        answer = (prior.mean + prior.axes @ (precision / (precision + 1.0) * moved)).clamp(0.0, 1.0)
    return answer


def match_gradient(
    model: nn.Module,
    losses: Losses,
    target: Mapping[str, Tensor],
    start: Tensor,
    label: Tensor,
    *,
    num_steps: int = 400,
    lr: float = 0.05,
    smoothness: float = 1e-3,
) -> Tensor:
    """Move an input until its gradient points where the target does [2, 3]; for any architecture.

    Args:
        model: at the weights at which the gradient was taken; twice differentiable where it matters.
        losses: (model, (inputs, labels)) -> (B,).
        target: name -> the gradient to match; its length is not used.
        start: where to begin, (B, ...), values from 0 to 1.
        label: (B,).
        num_steps: steps of Adam, whose learning rate falls to zero.
        lr: at the beginning.
        smoothness: weight of the total variation over the last two axes.

    Returns:
        Inputs of the shape of `start`, values from 0 to 1.
    """
    params = {name: p for name, p in model.named_parameters() if name in target}
    wanted = torch.cat([target[name].flatten() for name in params])
    wanted = wanted / wanted.norm().clamp_min(_LEAST)
    guess = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=lr)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        own = torch.autograd.grad(
            losses(model, (guess, label)).sum(), list(params.values()), create_graph=True
        )
        flat = torch.cat([g.flatten() for g in own])
        away = 1.0 - flat @ wanted / flat.norm().clamp_min(_LEAST)
        (guess.grad,) = torch.autograd.grad(away + smoothness * _variation(guess), [guess])
        optimizer.step()
        falling.step()
        guess.data.clamp_(0.0, 1.0)
    return guess.detach()


def _variation(pictures: Tensor) -> Tensor:
    """Mean difference of neighbours along the last two axes."""
    return pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()
