"""The embedded digits: 8x8 images, 1,437 to train on, seconds, no network.

Room: recipes.
"""

from typing import Annotated, Final, Literal

from pydantic import Field
from torch import nn

from ._arrays import ArrayRecipe
from ._training_config import TrainingConfig


class DigitsConfig(TrainingConfig):
    """Settings of `digits`."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 120
    expected_batch_size: Annotated[
        float, Field(gt=0, le=1437, allow_inf_nan=False, description="examples in a step, on average")
    ] = 360
    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 0.1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 4.0
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 0.1
    model: Annotated[
        Literal["mlp", "cnn", "logistic"], Field(description="mlp, cnn (two convolutions) or logistic")
    ] = "mlp"


def _build(config: DigitsConfig) -> nn.Module:
    if config.model == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    if config.model == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


DIGITS: Final = ArrayRecipe(
    name="digits",
    summary="handwritten digits, 8x8, embedded: a small network in seconds",
    config=DigitsConfig,
    dataset="digits",
    size=1437,
    row_shape=(8, 8),
    num_classes=10,
    scale=16.0,
    make=_build,
)
