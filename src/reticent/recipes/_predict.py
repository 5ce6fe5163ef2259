"""A finished run's model, and what it says of new rows.

Room: recipes. May import torch, `reticent.{train,data}` and the floors below.

Shape letters: N row, B row of a batch, K class.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reticent.errors import CheckpointError, ConfigError
from reticent.train import eval_mode, in_chunks, read_run

from ._config import restore_config
from ._going_on import read_result
from ._reader import FILES, Answer, Given, Reader, Watch, check_weights
from ._table import recipes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """What a model says of rows, in their order. The repr shows no row.

    Args:
        column: what `names` are, "file" or "row".
        names: what each row is called: its file from the folder on, or its number from 1.
        classes: label -> its name; empty if the answers are numbers.
        answer: "one" class for a row, "several", or a "number".
        values: (N, K) float64, the probability of each class; or (N, 1), numbers.
        predicted: each row's likeliest class; of several, those that are likelier there than not, with bars
            between; or its number.
        labels: the same of what the data said; None if they said nothing.
        accuracy: share of right labels, as the run's `test_accuracy`; None without labels, and of numbers.
        squared_error: of numbers with labels: the mean squared error, as the run's `test_loss`.
        left_out: files of the folder that were not read, because their endings are not of images.
    """

    column: str
    names: Sequence[str] = field(repr=False)
    classes: tuple[str, ...]
    answer: Answer
    values: np.ndarray = field(repr=False)
    predicted: Sequence[str] = field(repr=False)
    labels: Sequence[str] | None = field(repr=False)
    accuracy: float | None
    squared_error: float | None
    left_out: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def header(self) -> list[str]:
        """Names of the columns that `lines` has."""
        said = [] if self.labels is None else ["label"]
        return [self.column, "predicted", *said, *(f"p({name})" for name in self.classes)]

    def lines(self) -> Iterator[list[str]]:
        """Each row as texts: its name, the prediction, its label if it has one, and the probabilities."""
        for k, name in enumerate(self.names):
            said = [] if self.labels is None else [self.labels[k]]
            chances = [f"{p:.6g}" for p in self.values[k]] if self.classes else []
            yield [name, self.predicted[k], *said, *chances]

    def records(self) -> list[dict[str, Any]]:
        """Each row as JSON values: its name, `predicted`, `label`, and `probabilities` by class."""
        found = []
        for k, name in enumerate(self.names):
            said = {} if self.labels is None else {"label": self.labels[k]}
            chances = dict(zip(self.classes, self.values[k].tolist(), strict=True)) if self.classes else None
            shown = {} if chances is None else {"probabilities": chances}
            found.append({self.column: name, "predicted": self.predicted[k], **said, **shown})
        return found

    def write(self, path: str | Path) -> None:
        """Write all rows as CSV, whole or not at all; a file of that name is replaced."""
        path, text = Path(path), io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.lines()])
        beside = path.with_name(f".{path.name}.part")
        beside.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(beside, path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """The model of a finished run. Made by `load_model`.

    Args:
        run: the run's folder.
        recipe: its recipe's name.
        weights: "ema" (the average) or "last", whichever the run's scores are of.
        module: the network in eval mode, on the CPU; what it takes and gives is the recipe's own.
        classes: label -> its name; empty if the model answers numbers.
    """

    run: Path
    recipe: str
    weights: str
    module: nn.Module
    classes: tuple[str, ...]
    _reader: Reader = field(repr=False)

    def predict(
        self, data: str | Path, *, batch_size: int | None = None, watch: Watch | None = None
    ) -> Predictions:
        """Predict rows of a file or folder, read and prepared as the run's own test rows were.

        Args:
            data: what the recipe reads: images (a file, a folder of them, or one with a folder for each
                class), a table with the run's columns, texts (a table, or one a line), or features.
            batch_size: rows at once; by default as many as in the run's evaluation. Fewer where memory runs
                out.
            watch: called with what is being done, how many rows are done, and of how many.

        Guarantee:
            On the run's own test rows in their order, with the default `batch_size` and on the machine that
            trained, accuracy (or squared error) is the run's, to the last bit; to rounding where
            adapters were merged into the weights, and where a model makes the features anew. A
            label in the data has no say in any prediction. Nothing of the training data is read, and nothing
            is spent: predictions are computed from weights that were already released.

        Raises:
            DataError[predict-data]: the data are not of the kind that the model reads.
            DataError[predict-labels], DataError[data-labels]: labels are not those of the run.
            DataError[data-missing]: there is no such file or folder.
            DataError[data-column], DataError[table-cells]: they are not as the run's settings say.
            DataError[data-format], DataError[data-empty], DataError[image-unreadable]: files cannot be read,
                or hold nothing. All of this before anything is predicted.
        """
        watch = watch or (lambda what, done, total: None)
        given = self._reader.read(Path(data), watch)
        return self._answered(given, batch_size or self._reader.batch_size, watch)

    @torch.no_grad()
    def _answered(self, given: Given, batch_size: int, watch: Watch) -> Predictions:
        reader, total = self._reader, len(given.names)
        outputs: list[Tensor] = []
        labels: list[Tensor] = []
        score, done = 0.0, 0
        device = next(self.module.parameters()).device

        def answer(rows: Any) -> tuple[Tensor, Tensor]:
            assert isinstance(rows, tuple), "labels come last"
            return reader.outputs(self.module, rows).cpu(), rows[-1].cpu()

        with eval_mode(self.module):
            for found, said in in_chunks(given.rows, answer, size=batch_size, device=device):
                outputs.append(found)
                labels.append(said)
                # Summed batch by batch, as `reticent.train.evaluate` does: the same number to the last bit.
                score += float(_score(reader, outputs[-1], labels[-1]).double().sum())
                done += len(outputs[-1])
                watch("predicting", done, total)
        mean = score / total if given.labelled else None
        return _predictions(reader, given, torch.cat(outputs), torch.cat(labels), mean)


def load_model(run: str | Path) -> TrainedModel:
    """The model of a finished run, from its folder: settings, public preprocessing and released weights.

    Weights are read from safetensors files; nothing is unpickled. The training data need not be there.

    Args:
        run: the run's folder, as `reticent train` left it.

    Returns:
        The model, with the weights that the run's scores are of.

    Raises:
        ConfigError[not-a-run]: the folder holds no run of a recipe.
        ConfigError[run-unfinished]: the run has not come to its end.
        ConfigError[no-predictions]: the recipe's model does not label rows: it continues texts.
        ConfigError[no-weights]: the weights are not in the folder.
        CheckpointError[weights-damaged]: they cannot be read, are not those that the run noted at its end by
            their SHA-256, or are not finite.
        CheckpointError[weights-mismatch]: they are of another model than the settings describe.
    """
    folder = Path(run)
    about = read_run(folder)
    name = about["recipe"]
    if not isinstance(name, str) or name not in recipes():
        raise ConfigError(
            f"'{folder}' is no run of a recipe, so its model is not known here. Load it in Python: "
            f"model.load_state_dict(safetensors.torch.load_file('{folder / FILES['last']}')).",
            code="not-a-run",
        )
    recipe = recipes()[name]
    reader = recipe.reader(restore_config(recipe.config, about["config"]), about, folder)
    result = read_result(folder, concluded=True)
    if result is None or result["weights"] not in FILES:
        raise ConfigError(
            f"The run in '{folder}' has not come to its end: it has no whole result.json. Go on with it: "
            f"reticent resume {folder}",
            code="run-unfinished",
        )
    check_weights(folder, result["weights"], result.get("weights_sha256"))
    module = reader.load(folder, result["weights"]).eval()
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise CheckpointError(
            f"The weights of the run in '{folder}' hold numbers that are not finite: its training diverged, "
            "or the file is damaged. There is nothing to predict with.",
            code="weights-damaged",
        )
    return TrainedModel(
        run=folder,
        recipe=name,
        weights=result["weights"],
        module=module,
        classes=reader.classes,
        _reader=reader,
    )


def _score(reader: Reader, outputs_BK: Tensor, labels: Tensor) -> Tensor:
    """Each row's accuracy or squared error, (B,), as the recipes score it."""
    match reader.answer:
        case "one":
            return outputs_BK.argmax(1) == labels
        case "several":
            return ((outputs_BK > 0) == (labels == 1)).double().mean(1)
        case _:
            return (outputs_BK[:, 0] - labels).square()


def _predictions(
    reader: Reader, given: Given, outputs_NK: Tensor, labels: Tensor, score: float | None
) -> Predictions:
    match reader.answer:
        case "one":
            values, chosen = outputs_NK.double().softmax(1), outputs_NK.argmax(1)
        case "several":
            values, chosen = outputs_NK.double().sigmoid(), outputs_NK > 0
        case _:
            values, chosen = outputs_NK.double(), outputs_NK[:, 0]
    numbers = reader.answer == "number"
    return Predictions(
        column=given.column,
        names=tuple(given.names),
        classes=reader.classes,
        answer=reader.answer,
        values=values.numpy(),
        predicted=_in_words(chosen, reader),
        labels=_in_words(labels, reader) if given.labelled else None,
        accuracy=None if numbers else score,
        squared_error=score if numbers else None,
        left_out=given.left_out,
    )


def _in_words(found: Tensor, reader: Reader) -> tuple[str, ...]:
    """Labels (N,), labels (N, K) of zeros and ones, or numbers (N,), as texts."""
    match reader.answer:
        case "one":
            return tuple(reader.classes[k] for k in found.tolist())
        case "several":
            rows = found.bool().tolist()
            return tuple(
                "|".join(n for n, has in zip(reader.classes, row, strict=True) if has) for row in rows
            )
        case _:
            return tuple(f"{number:.6g}" for number in found.tolist())
