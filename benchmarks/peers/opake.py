"""opake: `clipped_grad`, which maps over examples with `torch.func`."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.peers.functorch import one_loss, tensors
from benchmarks.work import Work


def clipped(work: Work, max_norm: float) -> Callable[[], dict[str, Tensor]]:
    """Its defaults, one microbatch, no normalisation."""
    from opake.dpsgd.clipping import clipped_grad

    batch = tensors(work)
    gradient, state = clipped_grad(
        one_loss(work),
        clipping_norm=max_norm,
        batch_argnums=tuple(range(1, 1 + len(batch))),
        normalize_by=1.0,
    )

    def step() -> dict[str, Tensor]:
        params = {n: p.detach() for n, p in work.trainable().items()}
        found, _ = gradient(params, *batch, state=state)
        return dict(found.pytree)

    return step
