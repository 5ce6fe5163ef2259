"""Opacus: per-sample gradients by hooks; norms without them ("ghost"); fast gradient clipping.

Opacus needs the example axis in the input of every layer with parameters. Position embeddings that are
looked up once for the batch, as the models of transformers do, end in an error there; its users expand
the positions, and so does this file (nothing else is changed).

Sources: opacus 1.6, `optimizers/optimizer.py` (`clip_and_accumulate`) and
`utils/fast_gradient_clipping_utils.py` (`backward`), whose sequence of calls is followed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.work import Work

Step = Callable[[], dict[str, Tensor]]


def expand_positions(work: Work) -> None:
    """Give embeddings that are looked up once for all examples a row for each example."""
    num_examples = work.num_examples()

    def expand(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        ids = args[0]
        if ids.dim() == 2 and ids.shape[0] == 1 and num_examples > 1:
            return (ids.expand(num_examples, -1).contiguous(), *args[1:])
        return None

    for module in work.model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(expand)


def hooks(work: Work, max_norm: float) -> Step:
    """`GradSampleModule`, the default of `PrivacyEngine`, and `DPOptimizer`'s clipping."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    params = work.trainable()
    work.model.train()
    expand_positions(work)
    GradSampleModule(work.model, loss_reduction="sum")  # its hooks lie on the model, and keep it alive
    optimizer = DPOptimizer(
        torch.optim.SGD(params.values(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=max_norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        work.losses(work.batch).sum().backward()
        optimizer.clip_and_accumulate()
        sums: dict[str, Any] = {n: p.summed_grad for n, p in params.items()}  # pyright: ignore
        return sums

    return step


def _two_passes(work: Work, max_norm: float, use_ghost_clipping: bool) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    params = work.trainable()
    work.model.train()
    expand_positions(work)
    module = GradSampleModuleFastGradientClipping(
        work.model,
        loss_reduction="sum",
        max_grad_norm=max_norm,  # pyright: ignore[reportArgumentType]
        use_ghost_clipping=use_ghost_clipping,
    )

    def step() -> dict[str, Tensor]:
        for p in params.values():
            p.grad = None
            p.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
        losses = work.losses(work.batch)
        losses.sum().backward(retain_graph=True)
        for p in params.values():
            p.grad = None
        weights = module.get_clipping_coef()
        module.disable_hooks()
        (weights * losses).sum().backward()
        module.enable_hooks()
        return {n: p.grad for n, p in params.items() if p.grad is not None}

    return step


def ghost(work: Work, max_norm: float) -> Step:
    """Norms from activations and output gradients, then a second backward of the weighted loss."""
    return _two_passes(work, max_norm, use_ghost_clipping=True)


def fast_gradient(work: Work, max_norm: float) -> Step:
    """Norms from per-sample gradients of one layer at a time, then a second backward."""
    return _two_passes(work, max_norm, use_ghost_clipping=False)
