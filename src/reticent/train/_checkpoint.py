"""Checkpoints: what a run needs to go on, in safetensors and JSON. Nothing is ever unpickled.

Room: train. May import torch, safetensors, `reticent.dist` and `reticent.errors`.

A checkpoint is one `checkpoint-NNNNNN.safetensors`, whose header carries the rest as JSON; or, of a
sharded run, a folder `checkpoint-NNNNNN` to which each rank wrote its part, with the rest and their SHA-256
in `parts.json`. Any number of ranks, or one process, goes on from either. `checkpoint.json` lists the last
two with their SHA-256, newest first. A checkpoint holds weights, their average, the optimizer's state and
clipping norms that adapt, all of them computed from noised sums only, and the length and head of the
ledger. It never holds a key, a generator or anything of a batch.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reticent.dist import (
    Shards,
    TensorParallel,
    described_parts,
    read_parts,
    require_all_parts,
    sharded_like,
    together,
)
from reticent.errors import CheckpointError

from ._ema import AVERAGES
from ._files import sync_folder, write_atomically, write_json

_INDEX: Final = "checkpoint.json"
_FORMAT: Final = 1
_KEPT: Final = 2
_FILE_NAME: Final = re.compile(r"checkpoint-\d+(-\d)?(\.safetensors)?")
_PARTS: Final = "parts.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """Where a run was.

    Args:
        step: steps that the ledger held, lost ones included.
        updates: updates that the weights hold; `step` less the lost ones.
        ledger_head: hash of the ledger's last entry then; None for a run without a ledger.
        seconds: time spent training so far, to the minute.
        model: the model's `state_dict`.
        averages: "ema", "polyak", those that are kept -> name -> averaged parameter.
        optimizer: the optimizer's `state_dict`.
        clip_norms: clipping norms of the next step, if they adapt: computed from noised counts.
        parts: where the tensors are, if ranks wrote a part each; none are here before `filled` reads them.
    """

    step: int
    updates: int
    ledger_head: str | None
    seconds: float
    model: Mapping[str, Tensor] = field(repr=False)
    averages: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    optimizer: Mapping[str, Any] = field(repr=False)
    clip_norms: tuple[float, ...] = ()
    parts: Path | None = None

    @property
    def about(self) -> dict[str, Any]:
        """All but the tensors, as JSON values."""
        return {
            "format": _FORMAT,
            "step": self.step,
            "updates": self.updates,
            "ledger_head": self.ledger_head,
            "seconds": self.seconds,
            "clip_norms": list(self.clip_norms),
        }

    def flattened(self) -> tuple[dict[str, Tensor], Any]:
        """Every tensor under a name of its own, and the optimizer's state as JSON that names them."""
        tensors = {f"model/{name}": t for name, t in self.model.items()}
        for kind, average in self.averages.items():
            tensors |= {f"{kind}/{name}": t for name, t in average.items()}
        return tensors, _flatten(self.optimizer, "optimizer", tensors)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint durably, list it, and delete all but the last two.

    A crash at any instant leaves the list naming whole files only.

    Raises:
        CheckpointError[optimizer-state]: the optimizer's state holds something that is neither tensor
            nor JSON.
    """
    tensors, optimizer = checkpoint.flattened()
    if _is_listed(folder, checkpoint):
        return
    path = _free_path(folder, checkpoint.step, ".safetensors")
    save_tensors(path, tensors, header={**checkpoint.about, "optimizer": optimizer})
    _list(folder, path, _sha256(path), checkpoint)


def save_in_parts(folder: Path, checkpoint: Checkpoint, ranks: Shards | TensorParallel) -> None:
    """`save_checkpoint` where each rank has a part of the tensors; collective, in a folder that all see.

    Raises:
        CheckpointError[checkpoint-parts]: the leader does not see what the others wrote.
    """
    tensors, optimizer = checkpoint.flattened()
    if ranks.tell(ranks.first(lambda: _is_listed(folder, checkpoint))):
        return
    path = folder / ranks.tell(ranks.first(lambda: _free_path(folder, checkpoint.step, "").name))
    beside = path.with_name(f".{path.name}.part")

    def begin() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()

    def end() -> None:
        require_all_parts(beside, tensors)
        digests = {file.name: _sha256(file) for file in sorted(beside.iterdir())}
        write_json(beside / _PARTS, {**checkpoint.about, "optimizer": optimizer, "parts": digests})
        shutil.rmtree(path, ignore_errors=True)
        os.replace(beside, path)
        sync_folder(folder)
        _list(folder, path, _sha256(path / _PARTS), checkpoint)

    ranks.first(begin)
    with together(ranks, passing=True):
        ranks.write(beside, tensors)
    ranks.first(end)


def filled(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: Optimizer,
    averages: Mapping[str, Mapping[str, Tensor]],
) -> Checkpoint:
    """The checkpoint with its tensors as this process holds the model's: whole, or its shards of them.

    Raises:
        KeyError, ValueError: they do not fit.
    """
    of_model, params = model.state_dict(), [p for g in optimizer.param_groups for p in g["params"]]

    def like(name: str) -> Any:
        kind, _, rest = name.partition("/")
        if kind == "model":
            return of_model[rest]
        if kind in AVERAGES:
            return averages[kind][rest]
        of_param = re.match(r"optimizer/state/(\d+)/", name)
        return None if of_param is None else params[int(of_param[1])]

    if checkpoint.parts is None:
        tensors, raw = checkpoint.flattened()
        tensors = {name: sharded_like(t, like(name)) for name, t in tensors.items()}
    else:
        raw, tensors = checkpoint.optimizer["raw"], {}
        for name, (shape, dtype) in described_parts(checkpoint.parts).items():
            p = like(name)
            if p is not None and p.shape == shape:
                tensors[name] = torch.empty_like(p, dtype=dtype, requires_grad=False)
            elif name.startswith("optimizer/"):
                tensors[name] = torch.empty(shape, dtype=dtype)
            else:
                raise ValueError(f"another shape: {name}")
        read_parts(checkpoint.parts, tensors)
    return replace(
        checkpoint,
        model=_under(tensors, "model/"),
        averages=_averages(tensors),
        optimizer=_unflatten(raw, tensors),
    )


def _free_path(folder: Path, step: int, suffix: str) -> Path:
    """A name that is not listed: a crash while a listed one is written over would damage it."""
    listed = {e["file"] for e in _read_index(folder)} if (folder / _INDEX).exists() else set()
    names = (f"checkpoint-{step:06d}{again}{suffix}" for again in ("", "-2", "-3"))
    return folder / next(name for name in names if name not in listed)


def _is_listed(folder: Path, checkpoint: Checkpoint) -> bool:
    if not (folder / _INDEX).exists():
        return False
    newest = _read_index(folder)[0]
    same = ("step", "updates", "ledger_head")
    if any(newest[k] != checkpoint.about[k] for k in same):
        return False
    # With a ledger, no other has this head. Without, a run that went back from a damaged file comes again.
    path = folder / newest["file"]
    return checkpoint.ledger_head is not None or (path.is_file() and _sha256(path) == newest["sha256"])


def _list(folder: Path, path: Path, digest: str, checkpoint: Checkpoint) -> None:
    """Name a whole checkpoint as the newest one, and delete all but the last two."""
    entry = {"file": path.name, "sha256": digest, **checkpoint.about}
    older = [e for e in _read_index(folder) if e["file"] != path.name] if (folder / _INDEX).exists() else []
    entries = [entry, *older][:_KEPT]
    write_json(folder / _INDEX, {"format": _FORMAT, "checkpoints": entries})
    _delete_unlisted(folder, {e["file"] for e in entries})


def has_checkpoint(folder: Path) -> bool:
    """Whether a run goes on from a checkpoint: `load_checkpoint` then gives one, or refuses the folder."""
    return (folder / _INDEX).exists()


def load_checkpoint(folder: Path, *, say: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest whole checkpoint of a run.

    A damaged one is passed over in favour of the one before it, and `say` is told; the steps in
    between count as lost, and stay spent.

    Returns:
        The checkpoint, or None if the run never wrote one.

    Raises:
        CheckpointError[checkpoint-index]: the list of checkpoints is damaged or missing.
        CheckpointError[checkpoint-damaged]: no listed checkpoint is whole.
    """
    if not has_checkpoint(folder):
        if any(folder.glob("checkpoint-*")) and not _only_first(folder):
            raise CheckpointError(f"'{folder / _INDEX}' is missing.", code="checkpoint-index")
        return None
    problems: list[str] = []
    for entry in _read_index(folder):
        try:
            checkpoint = _read_one(folder, entry)
        except CheckpointError as e:
            problems.append(str(e.args[0]))
            continue
        for problem in problems:
            say(f"{problem} Going back to '{entry['file']}'; the steps since stay spent.")
        return checkpoint
    raise CheckpointError(
        f"No checkpoint of '{folder}' is whole: {' '.join(problems)} The steps in its ledger stay spent; "
        "restore a checkpoint from a backup, or start a new run with what is left of the budget.",
        code="checkpoint-damaged",
    )


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, header: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all; tensors that share memory are written apart."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        storage = t.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != t.nbytes
        apart[name] = t.clone() if shared else t
        seen.add(storage.data_ptr())
    metadata = None if header is None else {"reticent": json.dumps(header, allow_nan=False)}
    write_atomically(path, lambda beside: save_file(apart, beside, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file and our header in it."""
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata() or {}
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    return tensors, json.loads(metadata.get("reticent", "{}"))


def _only_first(folder: Path) -> bool:
    """Whether a crash between the first file and its list is all that happened."""
    return [p.stem for p in folder.glob("checkpoint-*")] == ["checkpoint-000000"]


def _read_index(folder: Path) -> list[dict[str, Any]]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        entries = index["checkpoints"]
        valid = index["format"] == _FORMAT and all(
            _FILE_NAME.fullmatch(e["file"]) and isinstance(e["sha256"], str) for e in entries
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(
            f"'{path}' is damaged ({type(e).__name__}). Restore it.", code="checkpoint-index"
        ) from e
    if not valid or not entries:
        raise CheckpointError(f"'{path}' is not a list of checkpoints of format 1.", code="checkpoint-index")
    return entries


def _read_one(folder: Path, entry: Mapping[str, Any]) -> Checkpoint:
    path = folder / entry["file"]
    in_parts = not path.name.endswith(".safetensors")
    try:
        if _sha256(path / _PARTS if in_parts else path) != entry["sha256"]:
            raise CheckpointError(f"'{path}' is damaged: its SHA-256 differs.", code="checkpoint-damaged")
        if in_parts:
            tensors: dict[str, Tensor] = {}
            header = json.loads((path / _PARTS).read_text(encoding="utf-8"))
            there = {file.name for file in path.iterdir()} - {_PARTS}
            if there != header["parts"].keys() or any(
                _sha256(path / name) != digest for name, digest in header["parts"].items()
            ):
                raise CheckpointError(
                    f"A part of '{path}' is damaged, missing, or not its own.", code="checkpoint-damaged"
                )
        else:
            tensors, header = load_tensors(path)
        if not _is_sane(header):
            raise ValueError("header")
        return Checkpoint(
            step=header["step"],
            updates=header["updates"],
            ledger_head=header["ledger_head"],
            seconds=header["seconds"],
            model=_under(tensors, "model/"),
            averages=_averages(tensors),
            optimizer={"raw": header["optimizer"]} if in_parts else _unflatten(header["optimizer"], tensors),
            parts=path if in_parts else None,
            clip_norms=tuple(float(norm) for norm in header.get("clip_norms", ())),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(
            f"'{path}' cannot be read ({type(e).__name__}).", code="checkpoint-damaged"
        ) from e


def _is_sane(header: Mapping[str, Any]) -> bool:
    """Whether a header's numbers are numbers: who wrote it could write its SHA-256 too."""
    head, seconds = header["ledger_head"], header["seconds"]
    return (
        all(type(header[name]) is int and header[name] >= 0 for name in ("step", "updates"))
        and (head is None or isinstance(head, str))
        and type(seconds) in (int, float)
        and 0.0 <= seconds < math.inf
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _averages(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found = {kind: _under(tensors, f"{kind}/") for kind in AVERAGES}
    return {kind: average for kind, average in found.items() if average}


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _delete_unlisted(folder: Path, listed: set[str]) -> None:
    for path in [*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*.part")]:
        if path.is_dir() and path.name not in listed:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in listed:
            path.unlink(missing_ok=True)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors go into `tensors` under names that start with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[k, _flatten(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_flatten(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise CheckpointError(
        f"The optimizer's state holds a {type(value).__name__} at '{name}', which is neither a tensor nor "
        "JSON. Use an optimizer whose state_dict() holds tensors, numbers and strings.",
        code="optimizer-state",
    )


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "float":
            return float(inner)
        case "dict":
            return {k: _unflatten(v, tensors) for k, v in inner}
        case "tuple":
            return tuple(_unflatten(v, tensors) for v in inner)
    raise ValueError(f"unknown kind {kind!r}")
