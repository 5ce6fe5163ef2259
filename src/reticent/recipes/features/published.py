"""A last layer as published with the language models: CIFAR-10 on features of ViT-B/16.

Room: recipes. May import torch and the floors below.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679: the image example of its code.
"""

from typing import Final

from .._config import with_defaults
from .head import HeadConfig, HeadRecipe


class ViTProbe(HeadRecipe):
    """`head` without a hidden layer, on a store of CIFAR-10's features, which it does not need for a plan."""

    name = "cifar10-vit-probe"
    summary = "CIFAR-10 as in the language models' code: a last layer on ViT-B/16 features, epsilon 2"
    config: type[HeadConfig] = with_defaults(
        HeadConfig,
        "ViTProbeConfig",
        features="cifar10-vit",
        hidden=0,
        scaling="none",
        epsilon=2.0,
        delta=50_000**-1.1,
        num_steps=500,
        expected_batch_size=1000,
        max_norm=0.1,
        optimizer="adam",
        lr=2e-3,
        twin_lr=2e-3,
        ema=0.0,
    )

    def num_examples(self, config: HeadConfig) -> int:
        return 50_000


CIFAR10_VIT: Final = ViTProbe()
