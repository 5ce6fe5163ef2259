"""What `reticent features extract` does: data, model, store.

Room: recipes. May import rich and the floors below.
"""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ._backbones import load_backbone
from ._extract import DEFAULT_BATCH_SIZE, extract
from ._inputs import load_inputs
from ._store import Precision


def run_extraction(
    *,
    model: str,
    data: str,
    out: Path,
    size: int | None = None,
    max_length: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    precision: Precision = "float16",
    console: Console | None = None,
) -> dict[str, Any]:
    """Extract the features of a data set with a model, both by name; see `extract`.

    Returns:
        What was done, as JSON values.
    """

    def report(text: str) -> None:
        if console is not None:
            console.print(text, markup=False, highlight=False)

    inputs = load_inputs(data, side=size, report=report, progress=console is not None)
    backbone = load_backbone(
        model,
        kind=inputs.kind,
        size=size,
        max_length=max_length,
        report=report,
        progress=console is not None,
    )
    began = time.perf_counter()
    store = extract(backbone, inputs, out=out, precision=precision, batch_size=batch_size, console=console)
    return {
        "store": str(store.path),
        "model": model,
        "data": data,
        "num_rows": dict(store.num_rows),
        "dim": store.dim,
        "precision": precision,
        "seconds": round(time.perf_counter() - began, 3),
    }
