"""Training recipes on several processes: who they are, what they refuse, who reads the data first.

Room: recipes. May import rich, `reticent.dist` and the floors below.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console

from reticent.dist import Ranks, joined
from reticent.errors import ConfigError

from ._training_config import TrainingConfig

_ALONE = ("twin", "show_loss", "show_norms")


class _Fetches(Protocol):
    def fetch(self, config: Any, *, report: Callable[[str], None], progress: bool) -> Any: ...


@contextmanager
def ranks_of(config: TrainingConfig) -> Iterator[Ranks]:
    """The processes that run a recipe with these settings together.

    Raises:
        ConfigError[several-ranks]: see `require_several`.
    """
    with joined(parallel=config.parallel) as ranks:
        require_several(config, ranks.size)
        yield ranks


def require_several(config: TrainingConfig, size: int) -> None:
    """Refuse settings with which `size` processes could not train together.

    Raises:
        ConfigError[several-ranks]: they are several, and the settings do not say what for, or ask for
            something that only one process can do.
    """
    alone = [name for name in _ALONE if getattr(config, name)]
    alone += ["epsilon=inf"] if math.isinf(config.epsilon) else []
    if size > 1 and config.parallel == "none":
        raise ConfigError(
            f"This is one of {size} processes, and each would train by itself. Add "
            "--set parallel=ddp (or fsdp2, tp), or start without torchrun.",
            code="several-ranks",
        )
    if size > 1 and alone:
        raise ConfigError(
            f"This is one of {size} processes, and {', '.join(alone)} needs a single one. Leave it "
            "out, or start without torchrun.",
            code="several-ranks",
        )


def fetched_by(ranks: Ranks, recipe: _Fetches, config: TrainingConfig, console: Console | None) -> Any:
    """The data set on every rank; the leader reads it first, so that one of them fills the cache."""

    def say(text: str) -> None:
        if console is not None:
            console.print(text, style="bold yellow", markup=False, highlight=False)

    def fetch() -> Any:
        return recipe.fetch(config, report=say, progress=console is not None)

    data = ranks.first(fetch)
    return data if ranks.leads else fetch()
