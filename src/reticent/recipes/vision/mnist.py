"""MNIST and Fashion-MNIST from scratch: a small network on pixels, a linear layer on scattering features.

Room: recipes.

Sources:
    [1] Papernot et al. 2020, arXiv:2007.14191 (the tanh network).
    [2] Tramèr, Boneh 2021, arXiv:2011.11660 (a linear layer on scattering features; large batches; 86.1 % by
        a tanh network on Fashion-MNIST at epsilon 2.7).
    [3] De et al. 2022, arXiv:2204.13650 (group normalisation).
"""

from typing import Final

from .._config import with_defaults
from ._config import VisionConfig
from ._recipe import VisionRecipe

_GREY: Final = (1, 28, 28)
_ON_PIXELS: Final = dict(
    num_steps=600, expected_batch_size=2048, max_norm=0.1, lr=4.0, twin_lr=0.1, eval_every=100
)

FASHION_MNIST: Final = VisionRecipe(
    name="fashion-mnist",
    summary="Fashion-MNIST from scratch: a small tanh network in minutes",
    config=with_defaults(VisionConfig, "FashionMnistConfig", **_ON_PIXELS, model="tanh-cnn-gn"),
    dataset="fashion-mnist",
    size=60_000,
    shape=_GREY,
    num_classes=10,
    fallback="digits",
    deviation=0.5,
)

MNIST: Final = VisionRecipe(
    name="mnist",
    summary="MNIST from scratch: a small tanh network in minutes",
    config=with_defaults(VisionConfig, "MnistConfig", **_ON_PIXELS, model="tanh-cnn", flip=False),
    dataset="mnist",
    size=60_000,
    shape=_GREY,
    num_classes=10,
)

_ON_FEATURES: Final = dict(
    features="scattering",
    model="linear",
    expected_batch_size=8192,
    max_norm=0.1,
    twin_lr=0.05,
    momentum=0.9,
    ema=0.95,
    eval_every=50,
    physical_batch_size=1024,
)

MNIST_SCATTERING: Final = VisionRecipe(
    name="mnist-scattering",
    summary="MNIST: a linear layer on scattering features, no extra data",
    config=with_defaults(
        VisionConfig,
        "MnistScatteringConfig",
        num_steps=290,
        lr=8.0,
        standardise="pink-noise",
        **_ON_FEATURES,
    ),
    dataset="mnist",
    size=60_000,
    shape=_GREY,
    num_classes=10,
)

FASHION_MNIST_SCATTERING: Final = VisionRecipe(
    name="fashion-mnist-scattering",
    summary="Fashion-MNIST: a linear layer on scattering features, no extra data",
    config=with_defaults(
        VisionConfig, "FashionMnistScatteringConfig", num_steps=290, lr=16.0, **_ON_FEATURES
    ),
    dataset="fashion-mnist",
    size=60_000,
    shape=_GREY,
    num_classes=10,
)
