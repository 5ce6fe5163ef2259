"""How an engine's answer is compared with the oracle's."""

from typing import Any

import torch
from torch import Tensor, nn

from reticent.clip import ClipEngine

from .case import Problem
from .oracle import distance, loop_clipped_sum, without_row

LARGE_NORM = 1e30  # clips nothing


def median_norm(problem: Problem) -> float:
    """A clipping norm that clips about half of a problem's examples."""
    _, norms = loop_clipped_sum(problem.model, problem.losses, problem.batch, LARGE_NORM)
    finite = norms[norms.isfinite()]
    return float(finite.median()) if len(finite) else 1.0


def assert_close(
    answer: Any, total: dict[str, Tensor], norms: Tensor, *, max_norm: float, tolerance: float
) -> None:
    """Norms within `tolerance` of themselves; the sum within `tolerance` of what the norms allow.

    The sum's scale is the larger of its own norm and the bound: clipped gradients may cancel.
    """
    assert list(answer.total) == list(total), "total names the trainable parameters, in the model's order"
    shapes = {name: t.shape for name, t in answer.total.items()}
    assert shapes == {name: t.shape for name, t in total.items()}
    torch.testing.assert_close(answer.norms.double(), norms, rtol=tolerance, atol=tolerance * 1e-3)
    size = sum(min(norm, max_norm) for norm in norms.tolist() if norm < float("inf"))
    gap = distance(dict(answer.total), total)
    assert gap <= tolerance * size, f"the sum is off by {gap / max(size, 1e-300):.1e} of its size"


def assert_no_row_moves_the_sum(problem: Problem) -> None:
    """Leaving out any row moves the clipped sum by the clipping norm at most; and one row by all of it."""
    max_norm = median_norm(problem)
    engine = ClipEngine(problem.model, max_norm=max_norm)
    full = dict(engine.clipped_sum(problem.losses, problem.batch).total)
    moved = []
    for row in range(problem.num_rows):
        rest = engine.clipped_sum(problem.losses, without_row(problem.batch, row))
        assert rest.bound == max_norm
        moved.append(distance(full, dict(rest.total)))
    assert max(moved) <= max_norm * (1 + 1e-12)
    assert max(moved) > 0.99 * max_norm  # the bound is reached: it was not met by chance


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a user can see on a model: what hangs on it, and every tensor in it."""
    seen: dict[str, Any] = {"<names>": [name for name, _ in model.named_modules()]}
    for name, module in model.named_modules():
        seen[f"{name}.<training>"] = module.training
        seen[f"{name}.<class>"] = type(module)
        seen[f"{name}.<attributes>"] = sorted(vars(module))
        seen[f"{name}.<hooks>"] = {
            key: len(value)
            for key, value in vars(module).items()
            if "hook" in key and hasattr(value, "__len__")
        }
    for name, p in model.named_parameters(remove_duplicate=False):
        seen[f"{name}.<parameter>"] = (id(p), type(p), p.requires_grad, sorted(vars(p)), p._version)
        seen[f"{name}.<tensor hooks>"] = len(p._backward_hooks or ())
        seen[f"{name}.<grad>"] = None if p.grad is None else (id(p.grad), p.grad._version)
    for name, b in model.named_buffers(remove_duplicate=False):
        seen[f"{name}.<buffer>"] = (id(b), b._version)
    return seen
