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

from reticent.errors import ConfigError, UnsupportedModel
from reticent.train import silent_or_bar

from .._origin import OWN_FOLDER, folder_named, refuse_same_data
from ._backbones import Backbone, Kind
from ._store import FeatureStore, Fingerprint, Precision, Shape, StoreWriter, open_store

DEFAULT_BATCH_SIZE: Final = 32
NUM_CHECKED: Final = 4  # rows encoded alone and together before anything is stored


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
        The model is shown inputs only. A row's features depend on that row and the model alone: a few
        rows are compared, alone and beside others, before anything is stored.

    Raises:
        UnsupportedModel[backbone-output]: a row's features depend on the rows beside it.
        ConfigError[start-from]: the model lies in the folder of a run on this very data set.
        ConfigError[backbone-kind]: the model takes another kind of input.
        DataError: see `StoreWriter`.
    """
    weights = folder_named(backbone.name)
    if weights is not None:
        own = inputs.folder
        refuse_same_data(
            weights,
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
            _check_apart(backbone, inputs)
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
def _check_apart(backbone: Backbone, inputs: Inputs) -> None:
    """Refuse a model that gives a row other features when others share its batch.

    A few rows spread over the first split are compared; of texts also a short one, and all beside one
    that is longer than each, so that they are padded. Rows that are not finite are the store's to refuse.
    """
    (first, *_) = inputs.x.values()
    spread = np.linspace(0, len(first) - 1, min(NUM_CHECKED, len(first))).astype(int).tolist()
    given = [first[k : k + 1] for k in spread]
    if backbone.kind == "texts":
        texts = ["a", *(str(text) for rows in given for text in rows if str(text).strip())]
        alone = [backbone.encode([text]) for text in texts]
        together = backbone.encode([*texts, " ".join(2 * texts)])[:-1]
    else:
        alone = [backbone.encode(rows) for rows in given]
        together = backbone.encode(np.concatenate(given))
    alone_BD = torch.cat(alone)
    rounding = max(1e-3, 8.0 * torch.finfo(alone_BD.dtype).eps)
    norms = torch.linalg.vector_norm(alone_BD.double(), dim=1)
    moved = torch.linalg.vector_norm(together.double() - alone_BD.double(), dim=1)
    if (moved > rounding * norms).any():
        raise UnsupportedModel(
            f"'{backbone.name}' gives a row other features when other rows share its batch, so that one row "
            "would change those of many. Features of each row must depend on that row alone: choose "
            "another model, or one whose padding changes nothing.",
            code="backbone-output",
        )


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
