"""Where a last layer's features come from: a store on disk, or a small data set's own columns.

Room: recipes. May import numpy, `reticent.data` and the floors below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from reticent.data import ArrayPair, Dataset, load
from reticent.errors import ConfigError, DataError

from ._methods import PublicShape
from ._store import Split, check_labels, open_store


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """Features with labels, ready to train on.

    Args:
        train: private rows.
        test: held-out rows; what is measured on them is published.
        shape: N, D, K.
        about: name, source, licence and the like, for the run's description; nothing private.
    """

    train: Split
    test: Split
    shape: PublicShape
    about: Mapping[str, Any]


# Name -> public shape, and the public constant that the columns are divided by.
_EMBEDDED: Final[Mapping[str, tuple[PublicShape, float]]] = MappingProxyType(
    {
        "digits": (PublicShape(num_examples=1437, dim=64, num_classes=10), 16.0),
        "kdd-census": (PublicShape(num_examples=199523, dim=403, num_classes=2), 1.0),
        "adult": (PublicShape(num_examples=32561, dim=104, num_classes=2), 1.0),
    }
)


def scale_of(features: str) -> float:
    """The public constant that the columns are divided by, of features by name; 1 of a store's."""
    return _EMBEDDED[features][1] if features in _EMBEDDED else 1.0


def public_shape(features: str) -> PublicShape:
    """N, D and K of features by name or folder; reads no row.

    Raises:
        ConfigError[unknown-features]: no features of that name, and no such folder.
        DataError: the store cannot be used; see `open_store`.
    """
    if features in _EMBEDDED:
        return _EMBEDDED[features][0]
    if not Path(features).is_dir():
        raise ConfigError(
            f"No features are named {features!r}, and no folder has that name. Known: "
            f"{', '.join(_EMBEDDED)}; or give the folder that `reticent features extract --out` wrote.",
            code="unknown-features",
        )
    store = open_store(features)
    _check_splits(features, store.num_rows)
    return PublicShape(
        num_examples=store.num_rows["train"], dim=store.dim, num_classes=len(store.class_names)
    )


def load_features(features: str, *, report: Callable[[str], None], progress: bool) -> Features:
    """Open features by name or folder.

    Raises:
        ConfigError[unknown-features]: no features of that name, and no such folder.
        DataError: the store or the data set cannot be used.
    """
    shape = public_shape(features)
    if features in _EMBEDDED:
        return _columns_of(load(features, report=report, progress=progress), shape, _EMBEDDED[features][1])
    store = open_store(features)
    return Features(
        train=store.split("train"),
        test=store.split("test"),
        shape=shape,
        about={
            "name": store.fingerprint["data"],
            "source": "feature store",
            "licence": store.licence,
            # What rows to predict must be like: facts of the extraction and of the classes, none of rows.
            "dim": store.dim,
            "classes": list(store.class_names),
            "precision": store.precision,
            **({} if store.side is None else {"side": store.side}),
            # No checksum of private rows: whoever has a guess of them could confirm it.
            "fingerprint": {
                name: store.fingerprint[name] for name in ("model", "weights", "preprocess", "data")
            },
        },
    )


def _columns_of(data: Dataset, shape: PublicShape, scale: float) -> Features:
    def split(pair: ArrayPair, name: str) -> Split:
        check_labels(pair.y, shape.num_classes, where=f"the {name} split of '{data.name}'")
        return Split(pair.x.reshape(len(pair.y), -1).astype(np.float32) / np.float32(scale), pair.y)

    train, test = split(data.train, "train"), split(data.test, "test")
    if train.x.shape != (shape.num_examples, shape.dim):
        raise DataError(
            f"'{data.name}' must have {shape.num_examples} training rows of {shape.dim} columns; it has "
            f"shape {train.x.shape}.",
            code="data-shape",
        )
    return Features(
        train=train,
        test=test,
        shape=shape,
        about={
            "name": data.name,
            "source": data.source,
            "licence": data.licence,
            "dim": shape.dim,
            "classes": list(data.class_names),
            "fingerprint": {"data": data.name, "data_sha256": data.sha256},
        },
    )


def _check_splits(path: str, num_rows: Mapping[str, int]) -> None:
    if not {"train", "test"} <= num_rows.keys() or min(num_rows["train"], num_rows["test"]) < 1:
        raise DataError(
            f"The store '{path}' has the splits {dict(num_rows)}; a last layer needs rows in 'train' and "
            "'test'.",
            code="data-empty",
        )
