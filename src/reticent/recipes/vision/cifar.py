"""CIFAR-10 from scratch: a Wide ResNet or a small network on pixels, a linear layer on scattering features.

Room: recipes.

Sources:
    [1] De et al. 2022, arXiv:2204.13650 (Wide ResNets, views, weight averages).
    [2] Tramèr, Boneh 2021, arXiv:2011.11660 (a linear layer on scattering features).
"""

from typing import Final

from .._config import with_defaults
from ._config import VisionConfig
from ._recipe import VisionRecipe

_COLOUR: Final = (3, 32, 32)

CIFAR10: Final = VisionRecipe(
    name="cifar10",
    summary="CIFAR-10 from scratch: a small network in an hour on two cores; wrn-16-4 where there is a GPU",
    config=with_defaults(
        VisionConfig,
        "Cifar10Config",
        epsilon=8.0,
        num_steps=2000,
        expected_batch_size=512,
        max_norm=1.0,
        lr=1.0,
        twin_lr=0.1,
        momentum=0.0,
        ema=0.99,
        eval_every=100,
        model="small-cnn",
    ),
    dataset="cifar10",
    size=50_000,
    shape=_COLOUR,
    num_classes=10,
)

CIFAR10_SCATTERING: Final = VisionRecipe(
    name="cifar10-scattering",
    summary="CIFAR-10: a linear layer on scattering features, no extra data",
    config=with_defaults(
        VisionConfig,
        "Cifar10ScatteringConfig",
        num_steps=366,
        expected_batch_size=8192,
        max_norm=0.1,
        lr=4.0,
        twin_lr=0.05,
        momentum=0.9,
        ema=0.95,
        lr_decay="linear",
        eval_every=50,
        physical_batch_size=512,
        features="scattering",
        mirror=True,
        standardise="pink-noise",
        model="linear",
    ),
    dataset="cifar10",
    size=50_000,
    shape=_COLOUR,
    num_classes=10,
)
