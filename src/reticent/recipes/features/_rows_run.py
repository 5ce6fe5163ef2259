"""A last layer fitted to rows that are in memory, for callers that have no store and no test rows.

Room: recipes. May import torch and the floors below.
"""

from pathlib import Path

from reticent.account.ledger import LedgerView, read_ledger
from reticent.errors import ConfigError
from reticent.train import SilentWatcher, new_folder, new_run_id, removed_unless_spent

from ._config import LastLayerConfig
from ._methods import PublicShape, make_method
from ._stage_run import run_stages
from ._stages import Head
from ._store import Split, check_labels
from .last_layer import new_ledger, noise_of, settings_of, stream_of


def fit_rows(
    config: LastLayerConfig, rows: Split, *, num_classes: int, folder: Path
) -> tuple[Head, LedgerView]:
    """Fit a private linear classifier; nothing is kept but the ledger, checkpoints and metrics.

    Args:
        config: settings of `last-layer`; `features` is not read.
        rows: private rows (N, D) float32 with labels from 0 to K - 1; N is public.
        num_classes: K, public.
        folder: new or empty; the ledger is `ledger.jsonl` in it.

    Returns:
        The fitted head, and its ledger as read back from disk.

    Guarantee:
        The head was computed from releases that the ledger held, durably, before their noise was drawn.

    Raises:
        ConfigError[last-layer-rows]: epsilon is infinite, or the settings ask for test rows or averages.
        ConfigError[out-exists]: `folder` is not empty.
        DataError[data-labels]: a label is not from 0 to K - 1.
    """
    if not config.epsilon < float("inf") or config.ema or config.eval_every or config.twin:
        raise ConfigError(
            "Rows in memory are fitted privately, and there are no test rows: leave out ema, eval_every, "
            "twin and an infinite epsilon.",
            code="last-layer-rows",
        )
    check_labels(rows.y, num_classes, where="the rows")
    shape = PublicShape(num_examples=len(rows), dim=rows.x.shape[1], num_classes=num_classes)
    method = make_method(config, shape)
    folder = new_folder(folder)
    with removed_unless_spent(folder), new_ledger(folder, method, new_run_id()) as ledger:
        run_stages(
            method,
            rows,
            ledger=ledger,
            noise=noise_of(config, 0),
            stream=stream_of(config, 0, private=True),
            folder=folder,
            settings=settings_of(method),
            watcher=SilentWatcher(),
            evaluation=None,
            checkpoint=None,
        )
    return method.head, read_ledger(folder / "ledger.jsonl")
