"""The error of an optional package that is not installed.

Room: recipes.text. Imports `reticent.errors` only.
"""

from reticent.errors import ConfigError


def missing(package: str, purpose: str, *, extra: str) -> ConfigError:
    """What to raise where importing `package` failed."""
    return ConfigError(
        f"{purpose} needs the package {package}, which is not installed: pip install 'reticent[{extra}]'.",
        code="missing-library",
    )
