"""Settings of image recipes.

Room: recipes. May import pydantic; no torch.
"""

import math
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from .._training_config import TrainingConfig

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class VisionConfig(TrainingConfig):
    """What every image recipe can be told."""

    model: Annotated[
        str, Field(description="network: wrn-16-4, small-cnn, timm:NAME, transformers:FOLDER, ...")
    ]
    pretrained: Annotated[
        bool, Field(description="of timm: and transformers: begin with the public weights of that name")
    ] = False
    batch_norm: Annotated[
        Literal["refuse", "group-norm", "freeze"],
        Field(description="what becomes of batch normalisation, which mixes the images of a batch"),
    ] = "refuse"
    features: Annotated[
        Literal["none", "scattering"],
        Field(description="scattering: fixed wavelet features that no data chose, in the pixels' place"),
    ] = "none"
    mirror: Annotated[
        bool,
        Field(description="of scattering: the mean of an image's features and its mirror image's"),
    ] = False
    standardise: Annotated[
        Literal["groups", "pink-noise"],
        Field(
            description="of scattering: each image within groups of coefficients, or coefficients by how "
            "they vary in noise with a photograph's spectrum, and then each image"
        ),
    ] = "groups"
    augmult: Annotated[
        int,
        Field(ge=0, le=64, description="views of each image in a step, averaged before clipping; 0: none"),
    ] = 0
    crop_pad: Annotated[int, Field(ge=0, le=16, description="of views: random crops, edges mirrored")] = 4
    flip: Annotated[bool, Field(description="of views: half of them left to right")] = True
    colour: Annotated[
        float,
        Field(ge=0, le=1, description="of views: brightness, contrast and saturation by up to this share"),
    ] = 0.0
    hue: Annotated[
        float, Field(ge=0, le=0.5, description="of views: hue by up to this share of the circle")
    ] = 0.0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target spread over all classes")
    ] = 0.0
    rescale: Annotated[
        bool, Field(description="take gradients over max_norm, so that lr does not depend on it")
    ] = False
    validation: Annotated[
        int,
        Field(
            ge=0, description="the last so many training rows are scored instead of trained on: NOT private"
        ),
    ] = 0
    start_from: Annotated[
        str | None, Field(description="weights to begin with, a .safetensors file, e.g. of another run")
    ] = None
    reset_head: Annotated[
        bool,
        Field(description="of start_from and pretrained: the head is made anew, whatever the weights hold"),
    ] = True
    train_only: Annotated[
        str,
        Field(description="parameters to train, by name patterns with commas; head: the head; *: all"),
    ] = "*"

    @property
    def gradient_scale(self) -> float:
        """The clipping norm where `rescale` asks for gradients of norm 1; not without privacy."""
        return self.max_norm if self.rescale and math.isfinite(self.epsilon) else 1.0

    def ignored(self, settings: Collection[str]) -> list[str]:
        problems = super().ignored(settings)
        if self.rescale and self.optimizer != "sgd":
            problems.append(
                f"rescale is a setting of sgd: updates of {self.optimizer} do not depend on the size of "
                "gradients. Set rescale = false"
            )
        if not self.augmult:
            problems += [
                f"{name} would be ignored: augmult is 0, so no views are made. Set augmult, or leave it out"
                for name in ("crop_pad", "flip", "colour", "hue")
                if name in settings
            ]
        if self.features == "none" and self.mirror:
            problems.append(
                "mirror is a setting of features = 'scattering', and there are none: leave it out"
            )
        if self.features == "none" and self.standardise != "groups":
            problems.append(
                f"standardise = {self.standardise} is a setting of features = 'scattering', and there are "
                "none: leave it out, or set groups"
            )
        if self.features == "scattering" and self.augmult:
            problems.append(
                "augmult makes views of pixels, and features is 'scattering': set either, not both"
            )
        if self.pretrained and not self.model.startswith(("timm:", "transformers:")):
            problems.append(
                f"pretrained is a setting of timm: and transformers: networks, and model is {self.model!r}: "
                "give start_from = FILE instead"
            )
        if self.batch_norm == "freeze" and self.start_from is None and not self.pretrained:
            problems.append(
                "batch_norm = freeze would keep statistics that no weights came with: mean 0 and variance 1 "
                "normalise nothing. Set batch_norm = group-norm, or give weights: pretrained or start_from"
            )
        if self.pretrained and self.start_from is not None:
            problems.append("start_from would replace the weights of pretrained: set either, not both")
        if "reset_head" in settings and self.start_from is None and not self.pretrained:
            problems.append(
                "reset_head would be ignored: no start_from is given, and pretrained is false. Leave it out"
            )
        return problems
