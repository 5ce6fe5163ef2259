"""Data sets as inputs of an extraction: by name, or a folder of images.

Room: recipes. May import numpy, Pillow and `reticent.data`.
"""

from collections.abc import Callable

import numpy as np

from reticent.data import load, names
from reticent.errors import DataError

from ._extract import Inputs


def load_inputs(data: str, *, report: Callable[[str], None], progress: bool) -> Inputs:
    """Load a data set of images or texts.

    Args:
        data: a name that `reticent.data` knows.
        report: is told what is fetched.
        progress: draw download bars.

    Raises:
        DataError[data-unknown]: no data set of that name.
        DataError[data-kind]: it holds neither images nor texts.
    """
    if data not in names():
        raise DataError(f"No data set is named {data!r}. Known: {', '.join(names())}.", code="data-unknown")
    found = load(data, report=report, progress=progress)
    x = found.train.x
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        kind = "images"
    elif x.dtype.kind in "UO":
        kind = "texts"
    else:
        raise DataError(
            f"'{data}' holds columns of numbers, which are features already: train on them with "
            f"`reticent train last-layer --set features={data}`.",
            code="data-kind",
        )
    return Inputs(
        name=found.name,
        kind=kind,
        sha256=found.sha256,
        x={"train": found.train.x, "test": found.test.x},
        y={"train": found.train.y, "test": found.test.y},
        class_names=found.class_names,
        licence=found.licence,
    )
