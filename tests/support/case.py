"""What a case of the zoo is: a model, its per-example losses, a batch, and what an engine must say to it.

Every case is made in float32 and then cast, so that its float64 twin holds exactly the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .oracle import Batch, Losses, num_rows

B = 5  # examples in a case, unless the case says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model, `losses(batch) -> (B,)` over it, and a batch with the example axis first."""

    model: nn.Module
    losses: Losses
    batch: Batch

    @property
    def num_rows(self) -> int:
        return num_rows(self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model the engine is tried on.

    Args:
        name: unique, in kebab case.
        make: builds the problem in float32 from torch's global generator.
        idle: endings of the names of trainable parameters that get no gradient from any example.
        refuse: the error that must be raised, or None where the answer must be exact.
        match: pattern in that error's text.
        may_refuse: exact is right, and so is a refusal with `refuse` and `match`.
        upcasts: the model casts to float32 inside: in float64 the casts are kept from rounding.
    """

    name: str
    make: Callable[[], Problem]
    idle: tuple[str, ...] = ()
    refuse: type[Exception] | None = None
    match: str | None = None
    may_refuse: bool = False
    upcasts: bool = False

    def build(self, seed: int, dtype: torch.dtype) -> Problem:
        """The problem for a seed: equal numbers in every dtype, no parameter left at a special value."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = self.make()
            _shake(made.model)
            made.model.to(dtype)
        losses = _in_float64(made.losses) if self.upcasts and dtype == torch.float64 else made.losses
        return Problem(model=made.model, losses=losses, batch=cast(made.batch, dtype))

    def __repr__(self) -> str:
        return self.name


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating tensors in `dtype`."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: cast(part, dtype) for key, part in batch.items()}
    return type(batch)(cast(part, dtype) for part in batch)


def supervised(model: nn.Module, *inputs: Tensor, call: Callable[..., Tensor] | None = None) -> Problem:
    """Mean squared distance of each example's output to a target whose size grows with the example."""
    run = call if call is not None else model
    shape = run(*inputs).shape
    sizes = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1))
    target = torch.randn(shape) * sizes

    def losses(batch: Any) -> Tensor:
        *xs, y = batch
        return (run(*xs) - y).square().flatten(1).mean(1)

    return Problem(model=model, losses=losses, batch=(*inputs, target))


def token_ids(high: int, *shape: int, low: int = 0) -> Tensor:
    """Integer ids in [low, high)."""
    return torch.randint(low, high, shape)


def next_token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of each next token, averaged within its own example: (B,)."""
    flat = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return flat.mean(1)


class Sandwich(nn.Module):
    """A layer behind a parameter of its own, so that a wrong gradient to the layer's input shows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x + torch.sin(self.gain * x))
        return out[0] if isinstance(out, tuple) else out


class KeepFloat64(TorchFunctionMode):
    """Turns the casts to float32 that models write into casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(_widened(a) for a in args)
        return func(*args, **{k: _widened(v) for k, v in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _in_float64(losses: Losses) -> Losses:
    def widened(batch: Batch) -> Tensor:
        with KeepFloat64():
            return losses(batch)

    return widened


@torch.no_grad()
def _shake(model: nn.Module) -> None:
    """Move every parameter off its initial value, so that no zero or one hides a mistake."""
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
