"""Writers for people's own trackers: TensorBoard and MLflow. Nothing of the training rows goes there.

Room: train. May import torch's TensorBoard writer and mlflow (extras `track` and `mlflow`), when asked for.

How long a step took tells how many examples it drew, and every tracker stamps what it is given with the time.
So each figure is stamped with the run's start and one second for every step, whenever it was written.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from reticent.errors import ConfigError

from ._folder import read_run
from ._loop import Tracking
from ._progress import Spent, Watcher

_EXTRAS: Final[Mapping[str, str]] = MappingProxyType({"tensorboard": "track", "mlflow": "mlflow"})
_PLACES: Final = ("data", "test_data", "features")  # settings that say where the operator's data lie
_EXPERIMENT: Final = "reticent"


class Tracker(Protocol):
    """Where figures go."""

    def scalar(self, name: str, value: float, *, step: int) -> None:
        """One figure after a number of steps."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


def check_tracking(tracking: Tracking) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        ConfigError[missing-library]: it is not installed.
    """
    if tracking != "none" and find_spec(tracking) is None:
        raise ConfigError(
            f"log={tracking} needs the package {tracking}, which is not installed: "
            f"pip install 'reticent[{_EXTRAS[tracking]}]'. Or leave log out: metrics.jsonl has the scores.",
            code="missing-library",
        )


@contextmanager
def tracked(
    watcher: Watcher, tracking: Tracking, folder: Path, *, epsilon: Spent | None
) -> Iterator[Watcher]:
    """The same watcher, and a tracker that is told of it.

    Args:
        watcher: is told of everything first.
        tracking: which tracker; with "none" this is the watcher alone.
        folder: the run's.
        epsilon: what was spent, now and then; None for a run without privacy.

    Guarantee:
        The tracker gets the run's settings, epsilon, the number of steps, and scores on test data. Of the
        training rows: nothing, but for the loss where `show_loss` was asked for, named `not_private/loss`. No
        batch size that was drawn and no time that a step took, not by its stamps either.
    """
    if tracking == "none":
        yield watcher
        return
    told = _Told(watcher, lambda: _open(tracking, folder), epsilon)
    try:
        yield told
    finally:
        told.close()


class _Told:
    """A watcher that passes on what a tracker may know. The tracker is opened by the first step, not before:
    until then nothing is spent, and a run that is refused leaves no trace."""

    def __init__(self, watcher: Watcher, opened: Callable[[], Tracker], epsilon: Spent | None) -> None:
        self._watcher, self._open, self._epsilon = watcher, opened, epsilon
        self._tracker: Tracker | None = None
        self._failed = False

    def say(self, text: str) -> None:
        self._watcher.say(text)

    def step(self, num_steps: int, loss: float | None) -> None:
        self._watcher.step(num_steps, loss)
        spent = None if self._epsilon is None else self._epsilon.after(num_steps)
        figures = {"privacy/epsilon": spent, "not_private/loss": loss}
        self._write({name: value for name, value in figures.items() if value is not None}, num_steps)

    def measured(self, num_steps: int, weights: str, scores: Mapping[str, float]) -> None:
        self._watcher.measured(num_steps, weights, scores)
        self._write({f"test/{name}_{weights}": value for name, value in scores.items()}, num_steps)

    def close(self) -> None:
        if self._tracker is not None:
            self._guarded(self._tracker.close)

    def _write(self, figures: Mapping[str, float], num_steps: int) -> None:
        def write() -> None:
            if self._tracker is None:
                self._tracker = self._open()
            for name, value in figures.items():
                self._tracker.scalar(name, value, step=num_steps)

        if figures:
            self._guarded(write)

    def _guarded(self, write: Callable[[], None]) -> None:
        """A tracker that fails, e.g. because its server is gone, does not cost a run its steps."""
        if self._failed:
            return
        try:
            write()
        except Exception as error:
            self._failed = True
            warnings.warn(
                f"The tracker failed ({type(error).__name__}: {error}). The run goes on without it.",
                RuntimeWarning,
                stacklevel=2,
            )


def _open(tracking: Tracking, folder: Path) -> Tracker:
    about = read_run(folder)
    return _TensorBoard(folder, about) if tracking == "tensorboard" else _MLflow(folder, about)


def _settings(about: Mapping[str, Any]) -> dict[str, str]:
    """What the run was asked for; not where the operator's data lie."""
    found = {"run_id": about["run_id"], "recipe": about["recipe"], **about["config"]}
    plan = about["plan"] or {}
    found |= {f"data_{name}": about["data"][name] for name in ("name", "scored") if name in about["data"]}
    found |= {name: plan[name] for name in ("noise_multiplier", "delta", "num_steps") if name in plan}
    return {name: str(value) for name, value in found.items() if name not in _PLACES and value is not None}


def _started(about: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(about["created"]).timestamp()


class _TensorBoard:
    """Event files in the run's folder, under `tensorboard/`."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._started = _started(about)
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        rows = "".join(f"| {name} | {value} |\n" for name, value in _settings(about).items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0, self._started)

    def scalar(self, name: str, value: float, *, step: int) -> None:
        self._writer.add_scalar(name, value, step, walltime=self._started + step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run at `MLFLOW_TRACKING_URI`, or in `mlflow.db` in the run's folder; resumed, it goes on."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        client = import_module("mlflow.tracking").MlflowClient
        local = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client = client(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local)
        self._started = round(1000 * _started(about))
        self._last = 0
        self._run = self._found_or_made(folder.name, about)

    def _found_or_made(self, name: str, about: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        at = self._client.create_experiment(_EXPERIMENT) if experiment is None else experiment.experiment_id
        known = self._client.search_runs([at], f"tags.`reticent.run_id` = '{about['run_id']}'", max_results=1)
        if known:
            return known[0].info.run_id
        tags = {"reticent.run_id": about["run_id"], "private": str(about["private"])}
        made = self._client.create_run(at, start_time=self._started, tags=tags, run_name=name)
        for setting, value in _settings(about).items():
            self._client.log_param(made.info.run_id, setting, value)
        return made.info.run_id

    def scalar(self, name: str, value: float, *, step: int) -> None:
        self._last = step
        self._client.log_metric(self._run, name, value, timestamp=self._started + 1000 * step, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run, end_time=self._started + 1000 * self._last)
