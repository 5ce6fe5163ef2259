"""fastDP (book-keeping), from a checkout whose folder is in the environment variable RETICENT_FASTDP.

It is not on PyPI: clone awslabs/fast-differential-privacy and give the folder that holds `fastDP`.
"""

import os
import sys
from collections.abc import Callable

from torch import Tensor

from benchmarks.work import Skip, Work


def book_keeping(work: Work, max_norm: float) -> Callable[[], dict[str, Tensor]]:
    """`clipping_mode="MixOpt"`, its default, with Abadi's clipping function."""
    folder = os.environ.get("RETICENT_FASTDP")
    if not folder:
        raise Skip(
            "not on PyPI: clone awslabs/fast-differential-privacy and set RETICENT_FASTDP to its folder"
        )
    sys.path.insert(0, folder)
    from fastDP import PrivacyEngine  # pyright: ignore[reportMissingImports]

    params = work.trainable()
    work.model.train()
    PrivacyEngine(
        work.model,
        batch_size=work.num_examples(),
        sample_size=10_000,
        epochs=1,
        max_grad_norm=max_norm,
        noise_multiplier=0.0,
        clipping_mode="MixOpt",
        clipping_fn="Abadi",
        loss_reduction="sum",
    )

    def step() -> dict[str, Tensor]:
        for p in params.values():
            p.grad = None
            if hasattr(p, "private_grad"):
                del p.private_grad
        work.losses(work.batch).sum().backward()
        return {n: p.private_grad for n, p in params.items() if hasattr(p, "private_grad")}

    return step
