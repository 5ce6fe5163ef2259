"""private-transformers (ghost clipping), from a checkout: RETICENT_PRIVATE_TRANSFORMERS names its folder.

It is not on PyPI: clone lxuechen/private-transformers and give the folder that holds `private_transformers`.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.work import Skip, Work


def ghost(work: Work, max_norm: float) -> Callable[[], dict[str, Tensor]]:
    """`clipping_mode="ghost"`: two backwards."""
    folder = os.environ.get("RETICENT_PRIVATE_TRANSFORMERS")
    if not folder:
        raise Skip(
            "not on PyPI: clone lxuechen/private-transformers and set RETICENT_PRIVATE_TRANSFORMERS to it"
        )
    sys.path.insert(0, folder)
    from private_transformers import PrivacyEngine  # pyright: ignore[reportMissingImports]

    params = work.trainable()
    work.model.train()
    engine = PrivacyEngine(
        work.model,
        batch_size=work.num_examples(),
        sample_size=10_000,
        epochs=1,
        max_grad_norm=max_norm,
        noise_multiplier=0.0,
        clipping_mode="ghost",
        skip_checks=True,
    )
    engine.attach(torch.optim.SGD(params.values(), lr=1.0))

    def step() -> dict[str, Tensor]:
        engine.zero_grad()
        engine.virtual_step(loss=work.losses(work.batch))
        return {n: p.summed_grad for n, p in params.items()}  # pyright: ignore

    return step
