"""Runs as published: to plan, and to train where the hardware allows.

Room: recipes.

Settings are those of the publications and their code; what differs, and what no publication states, is
listed in `docs/paper-images.md`.

Sources:
    [1] De et al. 2022, arXiv:2204.13650, and its code's configurations.
    [2] Sander et al. 2022, arXiv:2210.03403 (ImageNet in 18,000 steps).
"""

from typing import Any, Final

from reticent.data import read_cifar100, read_svhn

from .._config import with_defaults
from ._config import VisionConfig
from ._folder import FolderConfig, FolderRecipe, LocalConfig, LocalRecipe
from ._recipe import VisionRecipe

_AS_THERE: Final[dict[str, Any]] = dict(
    momentum=0.0, max_norm=1.0, rescale=True, twin_lr=0.1, physical_batch_size=64, eval_every=0
)
_CIFAR10: Final[dict[str, Any]] = dict(dataset="cifar10", size=50_000, shape=(3, 32, 32), num_classes=10)
_CIFAR100: Final[dict[str, Any]] = dict(dataset="cifar100", size=50_000, shape=(3, 32, 32), num_classes=100)
_MNIST: Final[dict[str, Any]] = dict(dataset="mnist", size=60_000, shape=(1, 28, 28), num_classes=10)
_IMAGENET: Final[dict[str, Any]] = dict(dataset="imagenet", shape=(3, 224, 224), num_classes=1000)


def _cifar10(name: str, summary: str, **settings: Any) -> VisionRecipe:
    usual = {**_AS_THERE, "expected_batch_size": 4096, "augmult": 16, "ema": 0.999}
    config = with_defaults(VisionConfig, "Cifar10PublishedConfig", **{**usual, **settings})
    return VisionRecipe(name=name, summary=summary, config=config, **_CIFAR10)


CIFAR10_EPS1: Final = _cifar10(
    "cifar10-wrn-16-4-eps1",
    "CIFAR-10 from scratch as published: WRN-16-4, epsilon 1 (needs a GPU)",
    model="wrn-16-4",
    epsilon=1.0,
    noise_multiplier=10.0,
    num_steps=875,
    lr=2.0,
)
CIFAR10_EPS8: Final = _cifar10(
    "cifar10-wrn-16-4-eps8",
    "CIFAR-10 from scratch as published: WRN-16-4, epsilon 8, 79.5 % there (needs a GPU)",
    model="wrn-16-4",
    epsilon=8.0,
    noise_multiplier=3.0,
    num_steps=2468,
    lr=4.0,
)
CIFAR10_WIDE: Final = _cifar10(
    "cifar10-wrn-40-4-eps8",
    "CIFAR-10 from scratch as published: WRN-40-4, epsilon 8, 81.4 % there (needs GPUs)",
    model="wrn-40-4",
    epsilon=8.0,
    noise_multiplier=9.4,
    expected_batch_size=16_384,
    num_steps=2000,
    augmult=32,
    lr=4.0,
)
CIFAR100_FINETUNE: Final = LocalRecipe(
    name="cifar100-wrn-28-10-eps1",
    summary="CIFAR-100 as published: all of WRN-28-10 from start_from, epsilon 1 (needs GPUs)",
    config=with_defaults(
        LocalConfig,
        "Cifar100Config",
        **{**_AS_THERE, "physical_batch_size": 16},
        model="wrn-28-10",
        epsilon=1.0,
        noise_multiplier=21.1,
        expected_batch_size=16_384,
        num_steps=250,
        lr=1.0,
        augmult=16,
        ema=0.9,
    ),
    read=read_cifar100,
    fine_tunes=True,
    **_CIFAR100,
)
IMAGENET: Final = FolderRecipe(
    name="imagenet-nf-resnet-50-eps8",
    summary="ImageNet from scratch as published: NF-ResNet-50, epsilon 8 (needs many GPUs)",
    config=with_defaults(
        FolderConfig,
        "ImageNetConfig",
        **{**_AS_THERE, "physical_batch_size": 32},
        model="nf-resnet-50",
        image_size=224,
        mixed="convert",
        epsilon=8.0,
        delta=8e-7,
        noise_multiplier=2.5,
        expected_batch_size=16_384,
        num_steps=71_589,
        lr=4.0,
        augmult=4,
        ema=0.99999,
    ),
    size=1_271_167,
    spare=10_000,
    **_IMAGENET,
)
IMAGENET_TAN: Final = FolderRecipe(
    name="imagenet-nf-resnet-50-tan",
    summary="ImageNet from scratch in 18,000 larger steps: NF-ResNet-50, epsilon 8 (needs many GPUs)",
    config=with_defaults(
        FolderConfig,
        "ImageNetTanConfig",
        **{**_AS_THERE, "physical_batch_size": 32},
        model="nf-resnet-50",
        image_size=224,
        mixed="convert",
        epsilon=8.0,
        delta=8e-7,
        noise_multiplier=2.5,
        expected_batch_size=32_768,
        num_steps=18_000,
        lr=32.0,
        augmult=8,
        ema=0.9999,
    ),
    size=1_281_167,
    **_IMAGENET,
)
MNIST_MLP: Final = VisionRecipe(
    name="mnist-mlp-eps1",
    summary="MNIST as in the paper's code: a small perceptron, noise 10 (epsilon 1 at most)",
    config=with_defaults(
        VisionConfig,
        "MnistMlpConfig",
        **{**_AS_THERE, "max_norm": 1e-3, "physical_batch_size": 256},
        model="mlp-16",
        epsilon=1.0,
        noise_multiplier=10.0,
        expected_batch_size=256,
        num_steps=1000,
        lr=2.0,
        ema=0.999,
        flip=False,
    ),
    **_MNIST,
)
MNIST_AUDIT: Final = VisionRecipe(
    name="mnist-audit-eps8",
    summary="MNIST as in the paper's code, for audits: a small perceptron, batches of 8, epsilon 8",
    config=with_defaults(
        VisionConfig,
        "MnistAuditConfig",
        **{**_AS_THERE, "max_norm": 0.1, "physical_batch_size": 256},
        model="mlp-16",
        epsilon=8.0,
        expected_batch_size=8,
        num_steps=1000,
        lr=2.0,
        ema=0.999,
        flip=False,
    ),
    **_MNIST,
)
SVHN: Final = LocalRecipe(
    name="svhn",
    summary="SVHN (cropped digits) from scratch, from the authors' .mat files: a small network",
    config=with_defaults(
        LocalConfig,
        "SvhnConfig",
        num_steps=500,
        expected_batch_size=2048,
        max_norm=1.0,
        lr=2.0,
        twin_lr=0.1,
        momentum=0.0,
        model="small-cnn",
        flip=False,
    ),
    dataset="svhn",
    size=73_257,
    shape=(3, 32, 32),
    num_classes=10,
    read=read_svhn,
)
