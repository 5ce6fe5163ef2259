"""Extraction: every input through a frozen model once, into a store that survives interruption.

Room: recipes. May import torch, rich, `reticent.data` and the floors below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from reticent.errors import ConfigError
from reticent.train import silent_or_bar

from .._origin import OWN_FOLDER, refuse_same_data
from ._backbones import Backbone, Kind
from ._store import FeatureStore, Fingerprint, Precision, Shape, StoreWriter, open_store

DEFAULT_BATCH_SIZE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What is extracted from. `x` and `y` meet only in the store.

    Args:
        name: of the data set.
        kind: what its inputs are.
        sha256: checksum of the data set.
        x: split -> inputs, by index or slice.
        y: split -> labels (N,).
        class_names: label -> name.
        licence: as the authors state it.
        folder: where they are, if they are a person's own.
        side: pixels of a side of the images; None of texts.
    """

    name: str
    kind: Kind
    sha256: str
    x: Mapping[str, Sequence[Any] | np.ndarray]
    y: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    licence: str
    folder: Path | None = None
    side: int | None = None


def fingerprint_of(backbone: Backbone, inputs: Inputs) -> Fingerprint:
    """What a store of these features says of itself."""
    return Fingerprint(
        model=backbone.name,
        weights=backbone.weights_sha256(),
        preprocess=dict(backbone.preprocess),
        data=inputs.name,
        data_sha256=inputs.sha256,
    )


def extract(
    backbone: Backbone,
    inputs: Inputs,
    *,
    out: Path,
    precision: Precision = "float16",
    batch_size: int = DEFAULT_BATCH_SIZE,
    console: Console | None = None,
) -> FeatureStore:
    """Fill a store, or finish one that was interrupted; a whole one is left as it is.

    Args:
        backbone: the frozen model.
        inputs: the data set.
        out: the store's folder.
        precision: of the features on disk.
        batch_size: inputs at once: speed and memory; features agree to rounding whatever it is.
        console: where to draw progress.

    Guarantee:
        The model is shown inputs only. A row's features depend on that row and the model alone.

    Raises:
        ConfigError[start-from]: the model lies in the folder of a run on this very data set.
        ConfigError[backbone-kind]: the model takes another kind of input.
        DataError: see `StoreWriter`.
    """
    if Path(backbone.name).is_dir():
        own = inputs.folder
        refuse_same_data(
            Path(backbone.name),
            about={"name": inputs.name if own is None else OWN_FOLDER},
            data=None if own is None else str(own),
        )
    if backbone.kind != inputs.kind:
        raise ConfigError(
            f"'{backbone.name}' takes {backbone.kind}, and '{inputs.name}' holds {inputs.kind}.",
            code="backbone-kind",
        )
    shape = Shape(
        num_rows={split: len(y) for split, y in inputs.y.items()},
        dim=_dim(backbone, inputs),
        precision=precision,
        class_names=inputs.class_names,
        licence=inputs.licence,
        side=inputs.side,
    )
    with StoreWriter.begin(out, fingerprint=fingerprint_of(backbone, inputs), shape=shape) as writer:
        if not writer.complete:
            _fill(writer, backbone.encode, inputs.x, batch_size=batch_size, console=console)
            for split, y in inputs.y.items():
                writer.put_labels(split, y)
            return writer.finish()
    return open_store(out)


@torch.no_grad()
def _dim(backbone: Backbone, inputs: Inputs) -> int:
    """D, from one input."""
    (first, *_) = inputs.x.values()
    return int(backbone.encode(first[:1]).shape[1])


@torch.no_grad()
def _fill(
    writer: StoreWriter,
    encode: Callable[[Any], torch.Tensor],
    x: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    batch_size: int,
    console: Console | None,
) -> None:
    """Compute and append the rows that are missing. No labels come here."""
    total = sum(len(rows) for rows in x.values())
    with silent_or_bar(console, "extracting", total) as watcher:
        before = 0
        for split, rows in x.items():
            for start in range(writer.num_done(split), len(rows), batch_size):
                features = encode(rows[start : start + batch_size])
                writer.append(split, features.float().numpy())
                watcher.step(before + start + len(features), None)
            before += len(rows)
