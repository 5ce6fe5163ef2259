"""The error of an optional package that is not installed.

Room: recipes.text. Imports `reticent.errors` only.
"""

from importlib.util import find_spec

from reticent.errors import ConfigError


def missing(package: str, purpose: str, *, extra: str) -> ConfigError:
    """What to raise where importing `package` failed."""
    return ConfigError(
        f"{purpose} needs the package {package}, which is not installed: pip install 'reticent[{extra}]'.",
        code="missing-library",
    )


def need_transformers() -> None:
    """Refuse to begin where transformers is not installed: before data are read, not in the middle.

    Raises:
        ConfigError[missing-library]: as said.
    """
    if find_spec("transformers") is None:
        raise missing("transformers", "Training on texts", extra="text")
