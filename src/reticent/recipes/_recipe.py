"""What a recipe is: a name, its settings, and how it runs and goes on.

Room: recipes. May import rich, `reticent.{account,errors}`; no torch, so that recipes can be listed quickly.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from reticent.account import Segments
from reticent.errors import ConfigError

from ._config import RecipeConfig

if TYPE_CHECKING:  # it imports torch
    from ._reader import Reader


class Recipe(ABC):
    """Something that trains on private data, from settings alone.

    Attributes:
        name: what a person types.
        summary: one line.
        config: the type of its settings, with its defaults.
    """

    name: str
    summary: str
    config: type[RecipeConfig]

    @abstractmethod
    def describe(self, asked: "Request") -> dict[str, Any]:
        """What would run, as JSON values: `noise_multiplier`, `epsilon`, and what else it fixes.

        Reads no data beyond its public shape, and spends nothing.

        Raises:
            AccountingError, ConfigError: no noise meets the budget, or settings contradict each other.
        """

    def holds_out(self, config: Any) -> bool:
        """Whether scores are of rows that were held out of the private ones, and no test row is looked at."""
        return False

    def reasons(self, asked: "Request") -> Mapping[str, str]:
        """Setting -> why it is as it is, of those that the recipe chose by itself from public facts."""
        return {}

    def spends(self, asked: "Request") -> Segments | None:
        """What a whole private run enters into its ledger; None if that is not known beforehand.

        Raises:
            AccountingError, ConfigError: as `describe`.
        """
        return None

    @abstractmethod
    def run(
        self, asked: "Request", *, out: Path, console: Console | None, data: Any = None
    ) -> dict[str, Any]:
        """Run it to its end; see `reticent.recipes.run`."""

    @abstractmethod
    def go_on(
        self, folder: Path, *, about: Mapping[str, Any], console: Console | None, data: Any = None
    ) -> dict[str, Any]:
        """Go on with a run that was stopped; see `reticent.recipes.go_on`.

        Args:
            folder: the run's folder.
            about: what its `run.json` says, read and checked by `reticent.train.read_run`.
            console: where to show progress and what matters.
            data: use this instead of what the recipe would fetch or read.
        """

    def reader(self, config: Any, about: Mapping[str, Any], folder: Path) -> "Reader":
        """How the model of a run reads new rows and answers; see `reticent.recipes.load_model`.

        Args:
            config: the run's settings.
            about: what its `run.json` says.
            folder: the run's folder; nothing of its training data is read.

        Raises:
            ConfigError[no-predictions]: the recipe's model does not label rows.
        """
        raise ConfigError(
            f"The model of a run of '{self.name}' does not label rows. What it continues texts with, "
            f"`reticent generate {folder} --prompt ...` shows.",
            code="no-predictions",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A recipe with settings: what a person asked for, checked.

    Args:
        recipe: what to run.
        config: all its settings.
        chosen: those that the person set, as given.
    """

    recipe: Recipe
    config: RecipeConfig
    chosen: Mapping[str, Any]
