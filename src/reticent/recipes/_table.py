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
        "fashion-mnist": ("fashion_mnist", "FASHION_MNIST"),
        "digits": ("digits", "DIGITS"),
        "head": ("features.head", "HEAD"),
        "last-layer": ("features.last_layer", "LAST_LAYER"),
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
