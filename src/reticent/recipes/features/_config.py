"""Settings of the recipe `last-layer`.

Room: recipes. May import pydantic and `reticent.errors`; no torch.
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from .._config import RecipeConfig
from ._auto import CENTRE_SHARE

Method = Literal["auto", "one-step", "sgd", "adam", "lamb", "least-squares", "newton", "fc"]
ITERATIVE: Final = ("sgd", "adam", "lamb", "fc")
SAMPLED: Final = ("sgd", "adam", "lamb")

CHOSEN_TOO: Final = ("centre", "centre_share", "intercept")  # by method=auto, beside those of READ_BY

# Features are float32, and what bounds them is far from its limits: only their scale would change with it.
LEAST: Final = 1e-6
LARGEST: Final = 1e6

_Norm = Annotated[float, Field(ge=LEAST, le=LARGEST, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, lt=1)]

# Setting -> the methods that read it; a setting that is not here, all do.
READ_BY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "loss": ("one-step", "newton", *ITERATIVE),
        "bias": ("one-step", "newton", *ITERATIVE),
        "max_norm": ("one-step", "newton", *ITERATIVE),
        "init": ("one-step", "newton", *ITERATIVE),
        "lr": ("one-step", "newton", *ITERATIVE),
        "num_steps": ("newton", *ITERATIVE),
        "momentum": ("sgd", "fc"),
        "expected_batch_size": SAMPLED,
        "lr_decay": ("newton", *ITERATIVE),
        "ema": ("newton", *ITERATIVE),
        "eval_every": ("newton", *ITERATIVE),
        "reg": ("least-squares", "newton", "fc"),
        "gram_share": ("least-squares", "newton", "fc"),
        "class_weight": ("least-squares",),
    }
)


class LastLayerConfig(RecipeConfig):
    """Settings of `last-layer`. Where a default is none, the method has its own."""

    features: Annotated[str, Field(description="a feature store's folder, or digits, adult, kdd-census")] = (
        "digits"
    )
    method: Annotated[Method, Field(description="how the last layer is found; auto chooses")] = "auto"
    scaling: Annotated[
        Literal["normalise", "clip"],
        Field(description="normalise: every row gets norm feature_norm; clip: only longer ones"),
    ] = "normalise"
    feature_norm: Annotated[_Norm, Field(description="bound on a row's norm")] = 1.0
    intercept: Annotated[
        float,
        Field(ge=0, le=LARGEST, allow_inf_nan=False, description="constant appended as a feature; 0: none"),
    ] = 0.0
    centre: Annotated[
        Literal["none", "private"], Field(description="private: release the mean with noise, and subtract it")
    ] = "none"
    whiten: Annotated[
        Literal["none", "private"],
        Field(description="private: release second moments with noise, and whiten"),
    ] = "none"
    centre_share: Annotated[_Share, Field(description="of the budget, for centre=private")] = CENTRE_SHARE
    whiten_share: Annotated[_Share, Field(description="of the budget, for whiten=private")] = 0.5
    loss: Annotated[
        Literal["softmax", "sigmoid"],
        Field(description="sigmoid: a binary loss a class, averaged over the classes"),
    ] = "softmax"
    bias: Annotated[
        float, Field(allow_inf_nan=False, description="added to every output, not trained; e.g. -10")
    ] = 0.0
    max_norm: Annotated[
        float | None,
        Field(
            ge=LEAST,
            le=LARGEST,
            allow_inf_nan=False,
            description="clipping norm of one example's gradient; none: from feature_norm and loss",
        ),
    ] = None
    num_steps: Annotated[int | None, Field(ge=1, description="steps of an iterative method")] = None
    expected_batch_size: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="examples in a step, on average; none: all of them"),
    ] = None
    lr: Annotated[float | None, Field(gt=0, le=1e30, description="learning rate")] = None
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd and fc")] = 0.0
    lr_decay: Annotated[
        Literal["none", "linear"], Field(description="linear: falls to zero by the last step")
    ] = "none"
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of the weights' average; 0 turns it off")] = (
        0.0
    )
    init: Annotated[
        Literal["zero", "near-zero"], Field(description="first weights; near-zero: normal, of size 1e-8")
    ] = "zero"
    reg: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="added to the second moments; none: from the noise"),
    ] = None
    gram_share: Annotated[_Share, Field(description="of the budget, for second moments")] = 0.5
    class_weight: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="alpha of DP-LS; none: one system for all classes"),
    ] = None
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations; 0: only at the end")] = 0
    checkpoint_every: Annotated[
        int, Field(ge=1, description="steps between checkpoints, and after each stage")
    ] = 10
    twin: Annotated[bool, Field(description="also fit logistic regression without privacy, to compare")] = (
        False
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        centred = self.method == "auto" or self.centre == "private"
        if centred and self.whiten == "private":
            if self.centre_share + self.whiten_share >= 1.0:
                raise ValueError("centre_share and whiten_share must leave some budget: their sum is below 1")
        if 0.0 < self.intercept < LEAST:
            raise ValueError(f"intercept must be 0, for none, or at least {LEAST:g}, got {self.intercept:g}")
        if math.isinf(self.epsilon) and self.twin:
            raise ValueError(
                "twin is a run without privacy beside a private one; with epsilon = inf leave it out"
            )
        return self

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        method = self.method
        problems += [
            f"{name} is no setting of method={method}: leave it out, or choose one of {', '.join(methods)}"
            for name, methods in READ_BY.items()
            if name in settings and method != "auto" and method not in methods
        ]
        problems += [
            f"{name} would be chosen by method=auto: leave it out, or name a method"
            for name in (*READ_BY, *CHOSEN_TOO)
            if name in settings and method == "auto"
        ]
        problems += [
            f"{name}_share is only read with {name}=private"
            for name in ("centre", "whiten")
            if f"{name}_share" in settings and getattr(self, name) == "none"
        ]
        if math.isinf(self.epsilon):
            problems += [
                f"{name} would be ignored: epsilon = inf turns privacy off. Leave it out"
                for name in ("max_norm", "gram_share", "centre_share", "whiten_share")
                if name in settings
            ]
        return problems
