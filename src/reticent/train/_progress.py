"""What a person sees while a run goes on: epsilon, physical batch size, memory. Nothing of the data.

Room: train. May import rich, psutil and torch.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

import psutil
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_EPSILON_UPDATES: Final = 20
_REST: Final = 0.25  # seconds between looks at memory


class Watcher(Protocol):
    """Is told how a run goes on."""

    def say(self, text: str) -> None:
        """One line that matters: a fallback, a damaged file, lost steps."""
        ...

    def step(self, num_steps: int, loss: float | None) -> None:
        """A step is over; `loss` is None unless the (not private) training loss was asked for."""
        ...

    def measured(self, num_steps: int, weights: str, scores: Mapping[str, float]) -> None:
        """Scores of the last or the averaged weights on test data."""
        ...


class SilentWatcher:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Ignored."""

    def step(self, num_steps: int, loss: float | None) -> None:
        """Ignored."""

    def measured(self, num_steps: int, weights: str, scores: Mapping[str, float]) -> None:
        """Ignored."""


class Spent:
    """Epsilon so far, which takes a while to compute: some 20 times in a run, for all who ask.

    Args:
        epsilon: computes it, from the ledger.
        planned: steps of the whole run.
        budget: epsilon that may be spent, to show beside it; None if there is none.
    """

    def __init__(self, epsilon: Callable[[], float], planned: int, *, budget: float | None = None) -> None:
        self._epsilon, self._planned, self.budget = epsilon, planned, budget
        self._every = max(1, planned // _EPSILON_UPDATES)
        self._known: tuple[int, float] = (-1, 0.0)

    def after(self, num_steps: int) -> float | None:
        """Epsilon after so many steps; None where it is not due."""
        if num_steps % self._every and num_steps != self._planned:
            return None
        if self._known[0] != num_steps:
            self._known = num_steps, self._epsilon()
        return self._known[1]


class _BarWatcher:
    """A bar, and under it what is known."""

    def __init__(
        self,
        live: Live,
        title: str,
        planned: int,
        *,
        spent: Spent | None,
        rows_at_once: Callable[[], int] | None,
        device: torch.device | None,
    ) -> None:
        self._live, self._spent, self._rows, self._device = live, spent, rows_at_once, device
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=live.console,
        )
        self._task = self._progress.add_task(title, total=planned)
        self._facts: dict[str, str] = {} if spent is None else {"epsilon": "0"}
        self._looked = 0.0
        self._show()

    def say(self, text: str) -> None:
        self._live.console.print(text, style="bold yellow", markup=False, highlight=False)

    def step(self, num_steps: int, loss: float | None) -> None:
        self._progress.update(self._task, completed=num_steps)
        epsilon = None if self._spent is None else self._spent.after(num_steps)
        if epsilon is not None and self._spent is not None:
            of = "" if self._spent.budget is None else f" of {self._spent.budget:g}"
            self._facts["epsilon"] = f"{epsilon + 0.005:.2f}{of}"  # never below the number
        if loss is not None:
            self._facts["loss"] = f"{loss:.3f} (NOT private)"
        now = time.monotonic()
        if now - self._looked >= _REST or num_steps == self._progress.tasks[0].total:
            self._looked = now
            self._look()
            self._show()

    def measured(self, num_steps: int, weights: str, scores: Mapping[str, float]) -> None:
        self._facts[f"test, {weights} weights"] = "  ".join(
            f"{name} {value:.4g}" for name, value in scores.items()
        )
        self._show()

    def _look(self) -> None:
        if self._rows is not None:
            self._facts["physical batch size"] = str(self._rows())
        if self._device is not None:
            self._facts["memory"] = memory_in_words(self._device)

    def _show(self) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in self._facts.items():
            table.add_row(f"  {name}", value)
        self._live.update(Group(self._progress, table) if self._facts else self._progress)


def memory_in_words(device: torch.device) -> str:
    """What this process's tensors hold on a device and held at most; on a CPU, what this process does."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        now, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return f"{_gib(now)} allocated, {_gib(most)} at peak, of {_gib(total)} GiB on {device}"
    return f"{psutil.Process().memory_info().rss / 2**20:.0f} MiB resident"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"


@contextmanager
def progress_bar(
    console: Console,
    title: str,
    planned: int,
    *,
    epsilon: Callable[[], float] | Spent | None = None,
    rows_at_once: Callable[[], int] | None = None,
    device: torch.device | None = None,
) -> Iterator[Watcher]:
    """A live view on `console`.

    Args:
        console: where.
        title: of the bar.
        planned: steps in all.
        epsilon: the privacy spent so far, asked for some 20 times in all.
        rows_at_once: the physical batch size, which may change when memory runs out.
        device: whose memory to show.
    """
    spent = Spent(epsilon, planned) if callable(epsilon) else epsilon
    with Live(console=console, refresh_per_second=8) as live:
        yield _BarWatcher(live, title, planned, spent=spent, rows_at_once=rows_at_once, device=device)
    if not console.is_interactive:
        console.print()  # a live view ends its line on terminals only


@contextmanager
def silent_or_bar(
    console: Console | None,
    title: str,
    planned: int,
    *,
    epsilon: Callable[[], float] | Spent | None = None,
    rows_at_once: Callable[[], int] | None = None,
    device: torch.device | None = None,
) -> Iterator[Watcher]:
    """`progress_bar` if there is a console, else nothing."""
    if console is None:
        yield SilentWatcher()
        return
    with progress_bar(
        console, title, planned, epsilon=epsilon, rows_at_once=rows_at_once, device=device
    ) as watcher:
        yield watcher
