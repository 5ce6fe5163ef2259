"""What the data room says while it works: lines and progress bars, on standard error.

Room: data. Imports rich only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

Report: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """`say` takes one line; `progress` allows bars (drawn only on a terminal)."""

    say: Report
    progress: bool

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A download bar; call what it yields with the number of bytes done so far."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        hidden = not (self.progress and console.is_terminal)
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=min(done, total))


def make_talk(report: Report | None, progress: bool) -> Talk:
    """Lines go to `report`, or to standard error if it is None."""
    return Talk(say=report or _print_to_stderr, progress=progress)


def _print_to_stderr(line: str) -> None:
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(line)
