"""What a private step of a recipe takes: memory, and each parameter's clipping; no data set is read.

Room: recipes. May import torch, `reticent.{clip,train}` and the floors below.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from reticent.clip import ClipEngine
from reticent.clipping import Clipping
from reticent.train import ClipNorms, PeakMemory

_NOISE_BLOCK_BYTES: Final = 16 << 20  # float64 temporaries while noise is added, at most


def measure_memory(
    model: nn.Module,
    optimizer: Optimizer,
    losses: Callable[[Any], Tensor],
    rows: Any,
    *,
    clipping: Clipping,
    num_averages: int,
    low_memory: bool = False,
) -> dict[str, int]:
    """Bytes that a private step of `model` takes, by what they are for.

    Runs the engine once on `rows` and takes one optimizer step with a zero gradient, so give a model
    and an optimizer that nobody else needs. Counted are tensors that torch operations return, which is
    most of what a step takes; the program itself, the data set and workspace inside an operation come
    on top.

    Args:
        model: what would be trained.
        optimizer: over its trainable parameters; its state is what one step makes.
        losses: called as `losses(rows)`; returns (B,) losses.
        rows: one physical batch, of any values.
        clipping: the plan's; what is kept for the sums depends on it.
        num_averages: averages of the weights that are kept.
        low_memory: clip by two backwards.

    Returns:
        Name -> bytes: `parameters` (and buffers), `clipped_sums`, `noise` (the noised sums, the gradients
        made from them and a block of draws), `optimizer_state`, `averages` (of the weights), `activations`
        (of one physical batch, at their peak, with what clipping needs) and `total`, the peak of a step:
        activations and noise never exist together.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {
        n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in trained.items()
    }
    norms = ClipNorms(clipping, {name: p.numel() for name, p in trained.items()})
    engine = ClipEngine(model, clipping=norms.now(), method="ghost" if low_memory else "book-keeping")
    with PeakMemory() as peak:
        engine.clipped_sum(losses, rows, out=sums)
    sum_bytes = _num_bytes(sums)
    gradient_bytes = _num_bytes(trained)
    for p in trained.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = {
        str(i): t for i, t in enumerate(tree_leaves(optimizer.state_dict()["state"])) if isinstance(t, Tensor)
    }
    found = {
        "parameters": _num_bytes({**model.state_dict()}),
        "clipped_sums": sum_bytes,
        "noise": sum_bytes + gradient_bytes + min(_NOISE_BLOCK_BYTES, 4 * sum_bytes),
        "optimizer_state": _num_bytes(state),
        "averages": num_averages * sum_bytes,
        "activations": peak.bytes,
    }
    lasting = sum(found[name] for name in ("parameters", "clipped_sums", "optimizer_state", "averages"))
    return {**found, "total": lasting + max(found["noise"], found["activations"])}


def clipping_costs(
    model: nn.Module,
    losses: Callable[[Any], Tensor],
    rows: Any,
    *,
    clipping: Clipping,
    low_memory: bool = False,
) -> list[dict[str, Any]]:
    """How the engine would clip each parameter, and what that costs for one unit.

    Args:
        model: as the run begins with it; left as it is.
        losses: called as `losses(rows)`; returns (B,) losses.
        rows: made-up rows of two units or more. Never private ones: costs grow with their number.
        clipping: the plan's.
        low_memory: clip by two backwards.

    Returns:
        For each parameter: `parameter`, `form`, `method`, the `others` that would do, `seconds` beyond the
        plain gradient (estimated from shapes; good for comparing parameters) and `bytes` kept, both for one
        unit.
    """
    norms = ClipNorms(clipping, {name: p.numel() for name, p in model.named_parameters() if p.requires_grad})
    engine = ClipEngine(model, clipping=norms.now(), method="ghost" if low_memory else "book-keeping")
    num_units = len(engine.clipped_sum(losses, rows).norms)
    plans = {layer.name: layer for layer in engine.explain().layers}
    return [
        {
            "parameter": name,
            "form": plans[name].form,
            "method": plans[name].method,
            "others": sorted(plans[name].candidates.keys() - {plans[name].method}),
            "seconds": plans[name].seconds / num_units,
            "bytes": plans[name].held / num_units,
        }
        for name, _ in model.named_parameters()
        if name in plans
    ]


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())
