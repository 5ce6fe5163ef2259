"""A run's folder: what is in it, made for a new run, read for an old one, removed if nothing was spent.

Room: train. May import torch, `reticent.{account,plan}` and the floors below.
"""

import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError, LedgerError

from ._files import write_new_json
from ._guards import trainable
from ._loop import TrainSettings

RUN_FORMAT: Final = 1
_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = MappingProxyType(
    {
        "run_id": str,
        "recipe": (str, NoneType),
        "config": dict,
        "plan": (dict, NoneType),
        "settings": dict,
        "data": dict,
        "private": bool,
    }
)
_MISSING: Final = object()
_LEFT_BY_STEPS: Final = ("checkpoint*", "*.safetensors", "metrics.jsonl", "not-private.jsonl", "result.json")
_OURS: Final = ("run.json", "ledger.jsonl", "metrics.jsonl", "not-private.jsonl", "checkpoint.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What a person wants to find in a run folder beside the plan; every word of it is public.

    Args:
        recipe: the recipe's name, if there is one.
        config: its settings.
        data: where the data came from: name, source, licence. Nothing computed from its rows.
        layers: what clipping each parameter costs, found on made-up rows.
        origin: where the rows lie, and runs whose weights it begins with: for those that begin with its own.
    """

    recipe: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    layers: Sequence[Mapping[str, Any]] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)


def new_folder(out: Path) -> Path:
    """Make the folder of a new run.

    Raises:
        ConfigError[out-exists]: it exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"'{out}' exists and is not an empty folder; a run never writes over another. Choose another "
            f"folder, or go on with that run: reticent resume {out}",
            code="out-exists",
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove a new folder if its block fails and leaves it empty."""
    try:
        yield
    except BaseException:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextmanager
def removed_unless_spent(folder: Path) -> Iterator[None]:
    """Remove a new run's files if its block fails before any step was spent.

    Only for who wrote the folder's `run.json`: the files of another process are not ours to remove.
    """
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished and folder.exists() and not _was_spent(folder):
            ours = [folder / name for name in _OURS]
            ours += [
                *folder.glob("checkpoint-*.safetensors"),
                *(p for p in folder.glob(".*.part") if p.is_file()),
            ]
            for path in ours:
                path.unlink(missing_ok=True)
            for path in [*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*.part")]:
                shutil.rmtree(path, ignore_errors=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _was_spent(folder: Path) -> bool:
    ledger = folder / "ledger.jsonl"
    if ledger.exists():
        try:
            return read_ledger(ledger).num_steps > 0
        except LedgerError as e:  # of which nothing can be known is kept
            return e.code != "ledger-unfinished"
    return any(p.name != "checkpoint-000000.safetensors" for p in folder.glob("checkpoint-*.safetensors"))


def left_by_steps(folder: Path) -> bool:
    """Whether there are files that come after a run's ledger: a new one would forget what was spent."""
    return any(any(folder.glob(pattern)) for pattern in _LEFT_BY_STEPS)


def write_run(
    folder: Path,
    *,
    run_id: str,
    description: RunDescription,
    plan: Mapping[str, Any] | None,
    settings: TrainSettings,
    physical_batch_size: int,
    noise_seed: int | None,
    model: nn.Module,
    private: bool,
    num_ranks: int = 1,
) -> None:
    """Write `run.json`: what is going to run, with what, where.

    Raises:
        ConfigError[out-exists]: there is one; another process took the folder meanwhile.
    """
    about = {
        "format": RUN_FORMAT,
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": description.recipe,
        "config": dict(description.config),
        "plan": None if plan is None else dict(plan),
        "settings": {
            **asdict(settings),
            "physical_batch_size": physical_batch_size,
            "noise_seed": noise_seed,
        },
        "environment": {**_environment(), **({"num_ranks": num_ranks} if num_ranks > 1 else {})},
        "model": {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "num_trainable": sum(p.numel() for p in trainable(model).values()),
        },
        "data": dict(description.data),
        **({"layers": [dict(layer) for layer in description.layers]} if description.layers else {}),
        **({"origin": dict(description.origin)} if description.origin else {}),
        "private": private,
    }
    try:
        write_new_json(folder / "run.json", about)
    except FileExistsError as e:
        raise ConfigError(
            f"Another process has begun a run in '{folder}'. Choose another folder.", code="out-exists"
        ) from e


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Returns:
        What `write_run` wrote; that its parts are of the right kind was checked, their values were not.

    Raises:
        ConfigError[not-a-run]: there is none, or it is damaged, or of another format.
    """
    path = folder / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        known = about["format"] == RUN_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(
            f"'{folder}' is not a run: '{path}' is missing or damaged ({type(e).__name__}).", code="not-a-run"
        ) from e
    if not known:
        raise ConfigError(f"'{path}' has format {about['format']!r}; this version reads 1.", code="not-a-run")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(about.get(name, _MISSING), kind)]
    if wrong:
        raise ConfigError(
            f"'{path}' is damaged: {', '.join(wrong)} missing or of the wrong kind. Restore it.",
            code="not-a-run",
        )
    return about


def _environment() -> dict[str, Any]:
    return {
        "reticent": version("reticent"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "dp-accounting": version("dp-accounting"),
        "system": f"{platform.system()} {platform.machine()}",
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
