"""The recipes by name. A recipe's module is imported when it is asked for: some need heavy libraries.

Room: recipes.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from ._recipe import Recipe

DEFAULT_RECIPE: Final = "fashion-mnist"

# Name -> module within this package, and the recipe's name in it.
_WHERE: Final = MappingProxyType(
    {
        "fashion-mnist": ("vision.mnist", "FASHION_MNIST"),
        "digits": ("digits", "DIGITS"),
        "head": ("features.head", "HEAD"),
        "last-layer": ("features.last_layer", "LAST_LAYER"),
        "table": ("features.table", "TABLE"),
        "text-classify": ("text.classify", "TEXT_CLASSIFY"),
        "text-generate": ("text.language", "TEXT_GENERATE"),
        "sst-2-roberta": ("text.published", "SST_2"),
        "qnli-roberta": ("text.published", "QNLI"),
        "qqp-roberta": ("text.published", "QQP"),
        "mnli-roberta": ("text.published", "MNLI"),
        "e2e-gpt2": ("text.published", "E2E"),
        "dart-gpt2": ("text.published", "DART"),
        "cifar10-vit-probe": ("features.published", "CIFAR10_VIT"),
        "mnist": ("vision.mnist", "MNIST"),
        "mnist-scattering": ("vision.mnist", "MNIST_SCATTERING"),
        "fashion-mnist-scattering": ("vision.mnist", "FASHION_MNIST_SCATTERING"),
        "cifar10": ("vision.cifar", "CIFAR10"),
        "cifar10-scattering": ("vision.cifar", "CIFAR10_SCATTERING"),
        "cifar10-wrn-16-4-eps1": ("vision.published", "CIFAR10_EPS1"),
        "cifar10-wrn-16-4-eps8": ("vision.published", "CIFAR10_EPS8"),
        "cifar10-wrn-40-4-eps8": ("vision.published", "CIFAR10_WIDE"),
        "cifar100-wrn-28-10-eps1": ("vision.published", "CIFAR100_FINETUNE"),
        "imagenet-nf-resnet-50-eps8": ("vision.published", "IMAGENET"),
        "imagenet-nf-resnet-50-tan": ("vision.published", "IMAGENET_TAN"),
        "mnist-mlp-eps1": ("vision.published", "MNIST_MLP"),
        "mnist-audit-eps8": ("vision.published", "MNIST_AUDIT"),
        "svhn": ("vision.published", "SVHN"),
        "vision-scratch": ("vision.own", "VISION_SCRATCH"),
        "vision-finetune": ("vision.own", "VISION_FINETUNE"),
    }
)


class _Recipes(Mapping[str, Recipe]):
    def __getitem__(self, name: str) -> Recipe:
        module, attribute = _WHERE[name]
        return getattr(import_module(f".{module}", __package__), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)

    def __contains__(self, name: object) -> bool:
        return name in _WHERE


_RECIPES: Final = _Recipes()


def recipes() -> Mapping[str, Recipe]:
    """Name -> recipe; one is imported when it is looked up."""
    return _RECIPES
