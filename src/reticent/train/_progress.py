"""What a person sees while a run goes on: steps, epsilon so far, time left. Nothing of the data.

Room: train. May import rich.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EPSILON_UPDATES: Final = 20


class Watcher(Protocol):
    """Is told how a run goes on."""

    def say(self, text: str) -> None:
        """One line that matters: a fallback, a damaged file, lost steps."""
        ...

    def step(self, num_steps: int, loss: float | None) -> None:
        """A step is over; `loss` is None unless the (not private) training loss was asked for."""
        ...


class SilentWatcher:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Ignored."""

    def step(self, num_steps: int, loss: float | None) -> None:
        """Ignored."""


class _BarWatcher:
    def __init__(
        self, progress: Progress, title: str, planned: int, epsilon: Callable[[], float] | None
    ) -> None:
        self._progress, self._epsilon = progress, epsilon
        self._every = max(1, planned // _EPSILON_UPDATES)
        self._task = progress.add_task(title, total=planned, note="")
        self._spent = self._loss = ""

    def say(self, text: str) -> None:
        self._progress.console.print(text, style="bold yellow", markup=False, highlight=False)

    def step(self, num_steps: int, loss: float | None) -> None:
        if self._epsilon is not None and num_steps % self._every == 0:
            self._spent = f"epsilon {self._epsilon() + 0.005:.2f}"  # never below the number
        if loss is not None:
            self._loss = f"loss {loss:.3f} (NOT private)"
        note = "  ".join(part for part in (self._spent, self._loss) if part)
        self._progress.update(self._task, completed=num_steps, note=note)


@contextmanager
def progress_bar(
    console: Console, title: str, planned: int, *, epsilon: Callable[[], float] | None = None
) -> Iterator[Watcher]:
    """A progress bar on `console`; asks `epsilon` for the privacy spent some 20 times in all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _BarWatcher(progress, title, planned, epsilon)


@contextmanager
def silent_or_bar(
    console: Console | None, title: str, planned: int, *, epsilon: Callable[[], float] | None = None
) -> Iterator[Watcher]:
    """A progress bar if there is a console, else nothing."""
    if console is None:
        yield SilentWatcher()
        return
    with progress_bar(console, title, planned, epsilon=epsilon) as watcher:
        yield watcher
