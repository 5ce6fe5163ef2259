"""What a recipe says of how a model of its own reads new rows and answers; shared parts of saying it.

Room: recipes. May import torch, `reticent.{train,data}` and the floors below.

Shape letters: B row, K class.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from safetensors import SafetensorError
from torch import Tensor, nn

from reticent.data import ImageFiles, Table, read_table
from reticent.errors import CheckpointError, ConfigError, DataError
from reticent.train import load_tensors

# A class; any number of classes; a number.
Answer = Literal["one", "several", "number"]
# Called with what is being done, how many rows are done, and of how many.
Watch = Callable[[str, int, int], None]
FILES: Final = MappingProxyType({"last": "weights.safetensors", "ema": "ema.safetensors"})
TABLES: Final = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """Rows to be predicted.

    Args:
        names: what each row is called in the answer.
        column: what these names are, "file" or "row".
        rows: as the recipe's scores take them, in any form that `reticent.train` takes; labels come last, and
            are zeros where nobody said any.
        labelled: whether the labels were said.
        left_out: files of a folder that are not read.
    """

    names: Sequence[str]
    column: Literal["file", "row"]
    rows: Any
    labelled: bool
    left_out: int = 0


def given_images(files: ImageFiles, rows: Any) -> Given:
    """Images, in the form that the recipe's model takes."""
    return Given(
        names=files.names, column="file", rows=rows, labelled=files.labelled, left_out=files.left_out
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reader:
    """How new rows are read and answered, as the run's own evaluation did it.

    Args:
        classes: label -> its name; empty if the answer is a number.
        answer: what the outputs say.
        load: the run's folder, "last" or "ema" -> the model with these weights.
        read: a file or folder -> rows.
        outputs: model, rows -> (B, K): logits, or numbers with K = 1.
        batch_size: rows at once, as in the run's evaluation.
    """

    classes: tuple[str, ...]
    answer: Answer
    load: Callable[[Path, str], nn.Module]
    read: Callable[[Path, Watch], Given]
    outputs: Callable[[nn.Module, Any], Tensor]
    batch_size: int = 1024


def outputs_of_inputs(model: nn.Module, rows: Any) -> Tensor:
    """Of rows that are inputs and labels."""
    return model(rows[0])


def with_weights(model: nn.Module, folder: Path, weights: str) -> nn.Module:
    """The model with weights that a run left.

    Args:
        model: changed in place.
        folder: the run's.
        weights: "last" or "ema".

    Raises:
        ConfigError[no-weights]: the run left none.
        CheckpointError[weights-damaged]: the file is no whole safetensors file.
        CheckpointError[weights-mismatch]: they are those of another model.
    """
    tensors = released(folder, weights)
    own = model.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if wrong:
        raise CheckpointError(
            f"The weights in '{folder / FILES[weights]}' are not of the model that '{folder / 'run.json'}' "
            f"describes: {len(wrong)} differ in name or shape, e.g. {wrong[0]}. Restore both files.",
            code="weights-mismatch",
        )
    model.load_state_dict(tensors)
    return model


def released(folder: Path, weights: str) -> Mapping[str, Tensor]:
    """Name -> tensor, of the weights that a run left.

    Raises:
        ConfigError[no-weights], CheckpointError[weights-damaged]: as `with_weights`.
    """
    path = folder / FILES[weights]
    if not path.is_file():
        raise no_weights(folder, path.name)
    try:
        return load_tensors(path)[0]
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(
            f"'{path}' is damaged ({type(e).__name__}). Restore it; `reticent verify {folder}` says what "
            "else of the run is.",
            code="weights-damaged",
        ) from e


def weights_sha256(folder: Path, weights: str) -> dict[str, str]:
    """File -> SHA-256 of what predictions are made from: a run's weights, or what transformers loads of it.

    Args:
        folder: the run's.
        weights: "last" or "ema".
    """
    return _digests(folder, sorted((folder / "model").glob("*.safetensors")) or [folder / FILES[weights]])


def adapter_sha256(folder: Path) -> dict[str, dict[str, str]]:
    """The same of adapters kept beside the model, as `adapter_sha256`; nothing where there are none."""
    found = _digests(folder, sorted((folder / "adapter").glob("*.safetensors")))
    return {"adapter_sha256": found} if found else {}


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    found = {}
    for path in files:
        if path.is_file():
            with path.open("rb") as stream:
                name = path.relative_to(folder).as_posix()
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check_weights(folder: Path, weights: str, noted: Any) -> None:
    """Refuse files that are not those which the run noted when it ended; an older run noted none.

    Raises:
        ConfigError[no-weights]: one that it noted is gone.
        CheckpointError[weights-damaged]: one is another than it was, or was not there.
    """
    if not isinstance(noted, dict):
        return
    missing = [name for name in noted if not (folder / name).is_file()]
    if missing:
        raise no_weights(folder, missing[0])
    now = weights_sha256(folder, weights)
    added = sorted(now.keys() - noted.keys())
    if added:
        raise CheckpointError(
            f"'{folder / added[0]}' is no file that the run left: it noted the weights {', '.join(noted)}. "
            f"Take it away; `reticent verify {folder}` says what else is wrong.",
            code="weights-damaged",
        )
    wrong = sorted(name for name, digest in now.items() if noted[name] != digest)
    if wrong:
        raise CheckpointError(
            f"'{folder / wrong[0]}' is not the file that the run left: its SHA-256 is another. It was "
            f"damaged, or is another run's. Restore it; `reticent verify {folder}` says what else is wrong.",
            code="weights-damaged",
        )


def no_weights(folder: Path, missing: str) -> ConfigError:
    return ConfigError(
        f"The run in '{folder}' is over and holds no '{missing}', so there is no model to predict with. "
        "Restore it from where the run was written.",
        code="no-weights",
    )


def table_of(path: Path) -> Table:
    """Rows of a file, or of one split that `datasets` saved.

    Raises:
        DataError[data-missing]: there is no such file.
        DataError[predict-data]: it is no table, or a folder of several splits, of which none is named.
        DataError[data-format], DataError[data-empty]: it cannot be read, or holds no rows.
    """
    if (path / "dataset_dict.json").is_file():
        splits = sorted(sub.name for sub in path.iterdir() if sub.is_dir())
        raise DataError(
            f"'{path}' holds the splits {', '.join(splits)}: name one, e.g. '{path / splits[-1]}'."
            if splits
            else f"'{path}' holds no split.",
            code="predict-data",
        )
    if path.exists() and not (path / "state.json").is_file() and path.suffix.lower() not in TABLES:
        raise DataError(
            f"The model reads rows of a table, and '{path}' is none: {', '.join(TABLES)}, or a folder that "
            "datasets' save_to_disk made.",
            code="predict-data",
        )
    return read_table(path)


def text_lines(path: Path) -> tuple[list[str], list[str]]:
    """Numbers and texts of the lines of a file that are not blank.

    Raises:
        DataError[data-missing], DataError[data-format], DataError[data-empty]: there is no such file, it is
            not UTF-8, or has no such line.
        DataError[predict-data]: it is a folder, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise DataError(f"There is no file or folder '{path}'.", code="data-missing") from e
    except UnicodeDecodeError as e:
        raise DataError(f"'{path}' is not UTF-8. Convert it first.", code="data-format") from e
    except OSError as e:
        said = "is a folder: name a file in it" if path.is_dir() else f"cannot be read ({e.strerror})"
        raise DataError(f"'{path}' {said}.", code="predict-data") from e
    lines = [(str(k), line) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"'{path}' holds no text.", code="data-empty")
    return [name for name, _ in lines], [line for _, line in lines]


def labels_of(table: Table, column: str, classes: Sequence[str]) -> np.ndarray | None:
    """Each row's label, int64 (N,); None if there is no such column.

    Raises:
        DataError[data-labels]: some are none of the classes.
    """
    if column not in table.columns:
        return None
    index = {name: k for k, name in enumerate(classes)}
    found = [index.get(str(value)) for value in table.columns[column]]
    if None in found:
        raise DataError(
            f"Labels of '{table.name}', column '{column}', must be one of {', '.join(classes)}; some are "
            "not. Mend them, or leave the column out.",
            code="data-labels",
        )
    return np.asarray(found, dtype=np.int64)
