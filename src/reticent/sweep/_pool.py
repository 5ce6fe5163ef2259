"""Many trials at once, each in a process of its own.

Room: sweep. Knows processes, and nothing of what a trial does.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from ._trial import Trial, quietly

_IMPORTED_ONCE = ("reticent.sweep._trial", "reticent.train", "reticent.recipes")


def run_all(
    recipe: str, trials: Sequence[Trial], *, jobs: int, threads: int, done: Callable[[Trial], None]
) -> None:
    """Run every trial, at most `jobs` at once; a process that dies is one failed trial.

    Args:
        recipe: the recipe's name.
        trials: what to run, in this order.
        jobs: processes at once.
        threads: threads of each.
        done: called in this process as each one ends, with its record written.
    """
    context = _context()
    left, running = list(reversed(trials)), dict[int, tuple[BaseProcess, Trial]]()
    try:
        while left or running:
            while left and len(running) < jobs:
                trial = left.pop()
                process = context.Process(target=quietly, args=(recipe, trial, threads), daemon=True)
                process.start()
                running[process.sentinel] = process, trial
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, trial = running.pop(sentinel)
                process.join()
                if trial.record() is None:
                    trial.write(status="failed", error=_death(process.exitcode))
                done(trial)
    finally:
        for process, _ in running.values():  # interrupted: what runs can be gone on with
            process.terminate()
        for process, _ in running.values():
            process.join()


def default_jobs() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context() -> Any:
    """Processes forked from one that has imported everything once and holds no data, where there are such."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED_ONCE))
    return context


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the process was killed ({signal.Signals(-exitcode).name})"
    return f"the process ended with status {exitcode} and left no record"
