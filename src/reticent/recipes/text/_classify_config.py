"""Settings of `text-classify`: their types, what excludes what, and defaults that the plan's facts decide.

Room: recipes.text. May import pydantic; no torch, no transformers.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .._training_config import TrainingConfig
from ._labelled import KNOWN, LabelledFile, num_rows
from ._suggest import Suggestion, suggest
from ._templates import PRESETS

_DEMONSTRATIONS: Final = (
    "demonstrations would put other people's rows into every example: its gradient, clipped or not, would "
    "depend on rows that its bound does not cover. Leave it out"
)
_PREFIX: Final = (
    "adaptation = prefix is not offered: a prefix cannot be merged into the weights, so that the kept model "
    "would not load with transformers alone, and of the ways that the paper compares it keeps the least "
    "quality (BLEU 47.8 against 61.5 in full at epsilon 3). Take lora"
)
_WAYS: Final = ("full", "lora", "ia3", "bias", "attention", "last-layer")


def _words(value: Any) -> Any:
    """`a,b` and `["a", "b"]` as a tuple of words."""
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        return tuple(str(word).strip() for word in value)
    return value


_Words = Annotated[tuple[str, ...] | None, BeforeValidator(_words)]


class TextClassifyConfig(TrainingConfig):
    """Settings of `text-classify`."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 60
    expected_batch_size: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="examples in a step, on average")
    ] = 512
    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 0.1
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
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the weights' average; 0: none")] = 0.0
    physical_batch_size: int | str = 32
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
    adaptation: Annotated[
        str, Field(description=f"which weights are trained, beside a new head: {', '.join(_WAYS)}")
    ] = "full"
    lora_rank: Annotated[int | None, Field(ge=1, description="of lora; default 8")] = None
    freeze_embeddings: Annotated[bool, Field(description="of full: embeddings stay as they are")] = False
    freeze_layers: Annotated[
        int, Field(ge=0, description="of full, bias, attention: embeddings and so many first layers stay")
    ] = 0
    init: Annotated[
        Literal["pretrained", "random"], Field(description="random: the ablation without pretraining")
    ] = "pretrained"

    @model_validator(mode="after")
    def _offered(self) -> Self:
        if self.demonstrations:
            raise ValueError(_DEMONSTRATIONS)
        if self.adaptation.startswith("prefix"):
            raise ValueError(_PREFIX)
        if self.adaptation not in _WAYS:
            raise ValueError(
                f"adaptation: {self.adaptation!r} is not offered here; {', '.join(_WAYS)} are. Other "
                "adapters of peft are trained in Python (docs/peft.md says which are exact)"
            )
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
            labels=None if self.objective == "regression" else self.labels or (),
            test_data=self.test_data,
            test_split=self.test_split,
            test_fraction=self.test_fraction,
        )

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        own = self.data not in KNOWN
        whole = self.adaptation in ("full", "bias", "attention")
        reads = {
            **dict.fromkeys(("text_column", "pair_column", "label_column", "test_data", "test_split"), own),
            "labels": own and self.objective != "regression",
            "test_fraction": own and self.test_data is None and self.test_split is None,
            "template": self.worded,
            "label_words": self.worded,
            "lora_rank": self.adaptation == "lora",
            "freeze_embeddings": self.adaptation == "full" and not self.freeze_layers,
            "freeze_layers": whole,
        }
        problems += [
            f"{name} would be ignored with the other settings: leave it out"
            for name, read in reads.items()
            if name in settings and not read
        ]
        if own and "data" in settings and not Path(self.data).exists():
            problems.append(f"data: '{self.data}' is no file or folder, and none of {', '.join(KNOWN)}")
        if own and self.objective != "regression" and not self.labels:
            problems.append(
                "labels is missing: name all labels of your file in order, e.g. labels=negative,positive. "
                "They are not read from the file: a label that one row alone has would give that row away"
            )
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            problems.append("labels must be at least two different ones")
        if self.test_split == "train" or (
            self.test_data is not None and Path(self.test_data).resolve() == Path(self.data).resolve()
        ):
            problems.append("test_data, test_split: these are the private rows, whose scores are not public")
        if self.test_data is not None and self.test_split is not None:
            problems.append("test_data and test_split exclude each other: leave one out")
        if not own and self.objective == "regression":
            problems.append(f"objective = regression learns numbers, and '{self.data}' has classes")
        if self.init == "random" and (self.adaptation != "full" or self.freeze_embeddings):
            problems.append(
                "init = random trains everything: leave adaptation, freeze_embeddings and freeze_layers out"
            )
        return problems

    def suggestion(self) -> Suggestion:
        """What suits private training of these rows; reads no more of a file than how many there are."""
        return suggest(
            num_examples=num_rows(self.data, self.file),
            epsilon=self.epsilon,
            delta=self.delta,
            adaptation=self.adaptation,
            model=self.model,
        )

    def completed(self, settings: Collection[str]) -> Self:
        """Steps, batch, rates and delta as suit the data's public size and the budget."""
        found = self.suggestion().values
        left = {name: value for name, value in found.items() if name not in settings}
        if math.isinf(self.epsilon) and "lr" not in settings:
            left["lr"] = found["twin_lr"]
        return self.model_copy(update=left)
