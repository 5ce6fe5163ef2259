"""Settings that `text-classify` and `text-generate` share: whose rows they are, which weights are trained.

Room: recipes.text. May import pydantic; no torch, no transformers.
"""

from collections.abc import Collection
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from .._training_config import TrainingConfig

_PREFIX: Final = (
    "adaptation = prefix is not offered: a prefix cannot be merged into the weights, so that the kept model "
    "would not load with transformers alone, and of the ways that the paper compares it keeps the least "
    "quality (BLEU 47.8 against 61.5 in full at epsilon 3). Take lora"
)
WAYS: Final = ("full", "lora", "ia3", "bias", "attention", "last-layer")
_ROWS_PER_USER: Final = 4


class TextConfig(TrainingConfig):
    """Settings of a recipe that fine-tunes a pretrained model on texts."""

    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 0.1
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the weights' average; 0: none")] = 0.0
    user_column: Annotated[
        str | None, Field(description="of a file: whose a row is; the guarantee is then a user's")
    ] = None
    rows_per_user: Annotated[
        int | None, Field(ge=1, description="with users: the most rows of one that take part; default 4")
    ] = None
    adaptation: Annotated[
        str, Field(description=f"which weights are trained, beside a new head: {', '.join(WAYS)}")
    ] = "full"
    freeze_embeddings: Annotated[bool, Field(description="of full: embeddings stay as they are")] = False
    freeze_layers: Annotated[
        int, Field(ge=0, description="of full, bias, attention: embeddings and so many first layers stay")
    ] = 0
    init: Annotated[
        Literal["pretrained", "random"], Field(description="random: the ablation without pretraining")
    ] = "pretrained"

    @model_validator(mode="after")
    def _known_way(self) -> Self:
        if self.adaptation.startswith("prefix"):
            raise ValueError(_PREFIX)
        if self.adaptation not in WAYS:
            raise ValueError(
                f"adaptation: {self.adaptation!r} is not offered here; {', '.join(WAYS)} are. Other "
                "adapters of peft are trained in Python (docs/peft.md says which are exact)"
            )
        return self

    @property
    def rows_each(self) -> int:
        """The most rows of one unit that take part."""
        return 1 if self.user_column is None else self.rows_per_user or _ROWS_PER_USER

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        reads = {
            "lora_rank": self.adaptation == "lora",
            "freeze_embeddings": self.adaptation == "full" and not self.freeze_layers,
            "freeze_layers": self.adaptation in ("full", "bias", "attention"),
            "rows_per_user": self.user_column is not None,
        }
        problems += unread(settings, reads)
        frozen = self.adaptation != "full" or self.freeze_embeddings or self.freeze_layers
        if self.init == "random" and frozen:
            problems.append(
                "init = random trains everything: set adaptation = full, and leave freeze_embeddings and "
                "freeze_layers out"
            )
        return problems


def unread(settings: Collection[str], reads: dict[str, bool]) -> list[str]:
    """A problem for each setting that the person made and nothing reads."""
    return [
        f"{name} would be ignored with the other settings: leave it out"
        for name, read in reads.items()
        if name in settings and not read
    ]
