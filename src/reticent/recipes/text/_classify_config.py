"""Settings of `text-classify`: their types, what excludes what, and defaults that the plan's facts decide.

Room: recipes.text. May import pydantic; no torch, no transformers.
"""

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .._stamp import same_rows
from .._training_config import PhysicalBatchSize
from ._labelled import KNOWN, LabelledFile, num_units
from ._suggest import Suggestion, suggest
from ._templates import PRESETS
from ._text_config import TextConfig, unread

_DEMONSTRATIONS: Final = (
    "demonstrations would put other people's rows into every example: its gradient, clipped or not, would "
    "depend on rows that its bound does not cover. Leave it out"
)


def _words(value: Any) -> Any:
    """`a,b` and `["a", "b"]` as a tuple of words."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        return tuple(str(word).strip() for word in value)
    return value


_Words = Annotated[tuple[str, ...] | None, BeforeValidator(_words)]


class TextClassifyConfig(TextConfig):
    """Settings of `text-classify`."""

    measure_norm: Annotated[
        bool | None,
        Field(
            description="begin with max_norm as the median gradient norm of made-up rows; default: where "
            "max_norm is not set"
        ),
    ] = None
    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 60
    expected_batch_size: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="examples in a step, on average")
    ] = 512
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 5e-4
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 1e-4
    lr_decay: Annotated[
        Literal["none", "linear"],
        Field(description="linear: the learning rate falls to zero by the last step"),
    ] = "linear"
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "lamb"], Field(description="what updates the weights")
    ] = "adam"
    physical_batch_size: PhysicalBatchSize = 32
    model: Annotated[str, Field(description="minilm, mpnet, smollm2, or a folder of transformers")] = "minilm"
    data: Annotated[
        str, Field(description="rotten-tomatoes, imdb, spam-assassin, brown, or a file of labelled rows")
    ] = "rotten-tomatoes"
    text_column: Annotated[str, Field(description="of a file: the texts")] = "text"
    pair_column: Annotated[str | None, Field(description="of a file: second texts, where rows are pairs")] = (
        None
    )
    label_column: Annotated[str, Field(description="of a file: the labels")] = "label"
    labels: Annotated[
        _Words, Field(description="of a file: all labels that there are, in order, e.g. negative,positive")
    ] = None
    test_data: Annotated[
        str | None, Field(description="another file to score on, with the same columns; taken as public")
    ] = None
    test_split: Annotated[
        str | None, Field(description="of a datasets folder: the split to score on, e.g. validation")
    ] = None
    test_fraction: Annotated[
        float, Field(gt=0, lt=1, description="of a file without either: share held out and scored")
    ] = 0.1
    objective: Annotated[
        Literal["head", "mask", "prompt", "regression"],
        Field(
            description="head: a new classification head; mask: the label's word where a mask stands "
            "(encoders); prompt: the label's word comes next (decoders); regression: a number"
        ),
    ] = "head"
    template: Annotated[
        str | None,
        Field(description=f"of mask and prompt: {', '.join(PRESETS)}, or e.g. '{{text}} It was {{mask}}.'"),
    ] = None
    label_words: Annotated[
        _Words, Field(description="of mask and prompt: a word for each label, in the labels' order")
    ] = None
    demonstrations: Annotated[int, Field(ge=0, description="always 0: refused, as the paper explains")] = 0
    max_length: Annotated[int, Field(ge=4, description="tokens of a row; longer texts are cut")] = 64
    lora_rank: Annotated[int | None, Field(ge=1, description="of lora; default 8")] = None

    @model_validator(mode="after")
    def _offered(self) -> Self:
        if self.demonstrations:
            raise ValueError(_DEMONSTRATIONS)
        return self

    @property
    def worded(self) -> bool:
        """Whether labels are predicted as words."""
        return self.objective in ("mask", "prompt")

    @property
    def file(self) -> LabelledFile | None:
        """Where a person's own rows are; None for data by name."""
        if self.data in KNOWN:
            return None
        return LabelledFile(
            path=self.data,
            text_column=self.text_column,
            pair_column=self.pair_column,
            label_column=self.label_column,
            user_column=self.user_column,
            labels=None if self.objective == "regression" else self.labels or (),
            test_data=self.test_data,
            test_split=self.test_split,
            test_fraction=self.test_fraction,
        )

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        own = self.data not in KNOWN
        reads = {
            **dict.fromkeys(("text_column", "pair_column", "label_column", "test_data", "test_split"), own),
            "user_column": own,
            "labels": own and self.objective != "regression",
            "test_fraction": own and self.test_data is None and self.test_split is None,
            "template": self.worded,
            "label_words": self.worded,
        }
        problems += unread(settings, reads)
        if self.measure_norm and "max_norm" in settings:
            problems.append("max_norm and measure_norm = true exclude each other: leave one out")
        if own and "data" in settings and not os.path.exists(self.data):  # false of a name too long, too
            problems.append(f"data: '{self.data}' is no file or folder, and none of {', '.join(KNOWN)}")
        if own and self.objective != "regression" and not self.labels:
            problems.append(
                "labels is missing: name all labels of your file in order, e.g. labels=negative,positive. "
                "They are not read from the file: a label that one row alone has would give that row away"
            )
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            problems.append("labels must be at least two different ones")
        test = self.test_data or (self.test_split and Path(self.data) / self.test_split)
        if self.test_split == "train" or (test and same_rows(self.data, test)):
            problems.append("test_data, test_split: these are the private rows, whose scores are not public")
        if self.test_data is not None and self.test_split is not None:
            problems.append("test_data and test_split exclude each other: leave one out")
        if not own and self.objective == "regression":
            problems.append(f"objective = regression learns numbers, and '{self.data}' has classes")
        return problems

    def suggestion(self) -> Suggestion:
        """What suits private training of these rows or users; reads of a file only how many there are."""
        return suggest(
            num_examples=num_units(self.data, self.file),
            epsilon=self.epsilon,
            delta=self.delta,
            adaptation=self.adaptation,
            model=self.model,
            freeze_embeddings=self.adaptation == "full"
            and not self.worded
            and not self.freeze_layers  # which freezes them too
            and self.init == "pretrained",
        )

    def completed(self, settings: Collection[str]) -> Self:
        """Steps, batch, rates and delta as suit the data's public size and the budget."""
        found = self.suggestion().values
        left = {name: value for name, value in found.items() if name not in settings}
        if math.isinf(self.epsilon) and "lr" not in settings:
            left["lr"] = found["twin_lr"]
        if self.measure_norm is None:
            left["measure_norm"] = "max_norm" not in settings and self.clipping != "automatic"
        return self.model_copy(update=left).with_mean()
