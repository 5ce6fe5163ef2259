"""Rows to be predicted by a model on frozen features: features, or images and texts that are made into some.

Room: recipes. May import torch, `reticent.data` and the floors below.

Shape letters: N row, D feature.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.lib import format as npy

from reticent.data import read_image_files
from reticent.errors import DataError

from .._reader import Given, Watch, labels_of, table_of, text_lines
from ._backbones import Backbone, load_backbone
from ._extract import DEFAULT_BATCH_SIZE
from ._sources import public_shape, scale_of
from ._store import INDEX, check_labels

_ENDING: Final = ".features.npy"
_MADE_BY: Final = ("model", "weights", "preprocess")  # of a fingerprint: all but the data


def noted_shape(features: str, about: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """D and the classes' names, as the run noted them; of an older run from its features.

    Raises:
        ConfigError[unknown-features], DataError: an older run's features are gone, or not whole.
    """
    dim, classes = about.get("dim"), about.get("classes")
    if isinstance(dim, int) and isinstance(classes, list):
        return dim, tuple(map(str, classes))
    shape = public_shape(features)
    return shape.dim, tuple(map(str, range(shape.num_classes)))


def new_features(path: Path, *, features: str, about: Mapping[str, Any], watch: Watch) -> Given:
    """Features and labels of a file or folder.

    Args:
        path: a NumPy file of features, one split of a store among them; or, where a model made the run's
            features, images or texts for that model.
        features: the run's setting.
        about: what the run says of its data.
        watch: called with what is being done, how many rows are done, and of how many.

    Guarantee:
        Features are made as those that the run was trained on: by the same weights, from inputs prepared in
        the same way, rounded to the same precision. They are equal to rounding.

    Raises:
        DataError[data-missing]: there is no such file or folder.
        DataError[predict-data]: it is of another kind, or features of another number, or not finite.
        DataError[store-fingerprint]: another model made the features, or the model's weights have changed.
        DataError[predict-labels], DataError[data-labels], DataError[image-unreadable]: as `reticent.data`
            says.
        ConfigError[backbone-unknown]: the model that made the run's features is not here.
    """
    dim, classes = noted_shape(features, about)
    fingerprint = about.get("fingerprint") or {}
    if not path.exists():
        raise DataError(f"There is no file or folder '{path}'.", code="data-missing")
    if path.suffix.lower() == ".npy" and path.is_file():
        return _of_file(path, dim=dim, classes=classes, scale=scale_of(features), fingerprint=fingerprint)
    if (path / INDEX).is_file():
        raise DataError(
            f"'{path}' is a feature store: name the file of one of its splits, e.g. "
            f"'{path / f'test{_ENDING}'}'.",
            code="predict-data",
        )
    if "model" not in fingerprint:
        raise DataError(
            f"The model reads features, as '{features}' has them, and '{path}' is no NumPy file (.npy) of "
            f"{dim} numbers a row.",
            code="predict-data",
        )
    given = _inputs(path, classes, about, watch)
    x = _encoded(given, _backbone(fingerprint), str(about["precision"]), watch)
    return Given(
        names=given.names,
        column=given.column,
        rows=(x, given.rows[1]),
        labelled=given.labelled,
        left_out=given.left_out,
    )


def _of_file(
    path: Path, *, dim: int, classes: Sequence[str], scale: float, fingerprint: Mapping[str, Any]
) -> Given:
    index, beside = path.parent / INDEX, path.with_name(path.name.removesuffix(_ENDING) + ".labels.npy")
    stored = index.is_file() and path.name.endswith(_ENDING)
    if stored:
        try:
            theirs = json.loads(index.read_text(encoding="utf-8"))["fingerprint"]
            wrong = [name for name in _MADE_BY if theirs.get(name) != fingerprint.get(name)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"'{index}' cannot be read ({type(e).__name__}).", code="store-damaged") from e
        if wrong:
            raise DataError(
                f"The features in '{path}' were not made as those of the run: {', '.join(wrong)} differ. "
                "Extract them with the model that the run's were made with.",
                code="store-fingerprint",
            )
    x = _array(path)
    if x.ndim != 2 or x.shape[1] != dim or x.dtype.kind not in "fiu" or not len(x):
        raise DataError(
            f"The model reads rows of {dim} numbers, and '{path}' holds {x.dtype} of shape {x.shape}.",
            code="predict-data",
        )
    if not np.isfinite(x).all():
        raise DataError(f"'{path}' holds NaN or infinity. Leave such rows out.", code="predict-data")
    y, labelled = np.zeros(len(x), dtype=np.int64), stored and beside.is_file()
    if labelled:
        y = _array(beside)
        if y.shape != (len(x),):
            raise DataError(
                f"'{beside}' must hold {len(x)} labels, and has shape {y.shape}.", code="data-shape"
            )
        check_labels(y, len(classes), where=f"'{beside}'")
    # A store's rows stay as they are kept; others become what a data set's columns became.
    rows = x if stored else x.astype(np.float32) / np.float32(scale)
    return Given(
        names=[str(k + 1) for k in range(len(x))],
        column="row",
        rows=(rows, np.asarray(y, dtype=np.int64)),
        labelled=labelled,
    )


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            return npy.read_array(stream, allow_pickle=False)  # not numpy.load, which opens archives too
    except (OSError, ValueError, EOFError) as e:
        raise DataError(
            f"'{path}' cannot be read as a NumPy file ({type(e).__name__}). Save one array with numpy.save.",
            code="predict-data",
        ) from e


def _inputs(path: Path, classes: Sequence[str], about: Mapping[str, Any], watch: Watch) -> Given:
    """Images or texts, and labels."""
    preprocess = about["fingerprint"]["preprocess"]
    if "precision" not in about or ("size" in preprocess and about.get("side") is None):
        raise DataError(
            "The run's features were extracted by an older version, which did not note how inputs were "
            "brought to one size. Extract the new rows into a store, and name a split of it: "
            f"STORE/test{_ENDING}.",
            code="predict-data",
        )
    if "size" in preprocess:
        files = read_image_files(
            path,
            side=about["side"],
            class_names=classes,
            on_file=lambda done, total: watch("reading", done, total),
        )
        return Given(
            names=files.names,
            column="file",
            rows=(files, files.labels),
            labelled=files.labelled,
            left_out=files.left_out,
        )
    if path.suffix.lower() == ".txt":
        names, texts = text_lines(path)
        y = None
    else:
        table = table_of(path)
        texts, y = list(table.column("text", setting="text")), labels_of(table, "label", classes)
        names = [str(k + 1) for k in range(len(texts))]
    labels = np.zeros(len(texts), dtype=np.int64) if y is None else y
    return Given(names=names, column="row", rows=(texts, labels), labelled=y is not None)


def _backbone(fingerprint: Mapping[str, Any]) -> Backbone:
    """The model that made the run's features, its weights compared."""
    preprocess = dict(fingerprint["preprocess"])
    backbone = load_backbone(
        fingerprint["model"],
        kind="images" if "size" in preprocess else "texts",
        size=preprocess.get("size"),
        max_length=preprocess.get("max_length"),
        report=lambda line: None,
        progress=False,
    )
    mine = {"weights": backbone.weights_sha256(), "preprocess": json.loads(json.dumps(backbone.preprocess))}
    wrong = [name for name, value in mine.items() if value != fingerprint[name]]
    if wrong:
        raise DataError(
            f"'{fingerprint['model']}' is not what it was when it made the run's features: "
            f"{', '.join(wrong)} differ. Restore it.",
            code="store-fingerprint",
        )
    return backbone


@torch.no_grad()
def _encoded(given: Given, backbone: Backbone, precision: str, watch: Watch) -> np.ndarray:
    """Features (N, D), rounded as a store keeps them."""
    inputs, total = given.rows[0], len(given.names)
    images = backbone.kind == "images"
    parts = []
    for start in range(0, total, DEFAULT_BATCH_SIZE):
        stop = min(start + DEFAULT_BATCH_SIZE, total)
        some = [inputs[k][0] for k in range(start, stop)] if images else inputs[start:stop]
        found = backbone.encode(np.stack(some) if images else some)
        parts.append(found.float().numpy().astype(precision))
        watch("extracting", stop, total)
    return np.concatenate(parts)
