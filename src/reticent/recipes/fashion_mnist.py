"""Fashion-MNIST from scratch: a small tanh network, the classic of private training.

Room: recipes.

Sources:
    [1] Papernot et al. 2020, arXiv:2007.14191 (tanh; the architecture).
    [2] Tramèr, Boneh 2021, arXiv:2011.11660 (large batches; 86.1 % at epsilon 2.7).
    [3] De et al. 2022, arXiv:2204.13650 (group normalisation).
"""

from typing import Annotated, Final, Literal

from pydantic import Field
from torch import Tensor, nn

from ._arrays import ArrayRecipe
from ._training_config import TrainingConfig


class FashionMnistConfig(TrainingConfig):
    """Settings of `fashion-mnist`."""

    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 600
    expected_batch_size: Annotated[
        float, Field(gt=0, le=60_000, allow_inf_nan=False, description="examples in a step, on average")
    ] = 2048
    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 0.1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 4.0
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 0.1
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations; 0: only at the end")] = 100
    model: Annotated[
        Literal["tanh-cnn", "tanh-cnn-gn"], Field(description="tanh-cnn-gn or, without group norm, tanh-cnn")
    ] = "tanh-cnn-gn"


class _AddChannel(nn.Module):
    """(B, H, W) -> (B, 1, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)


def _build(config: FashionMnistConfig) -> nn.Module:
    """Two convolutions and two linear layers with tanh between [1, Table 1]: 26,010 parameters.

    "tanh-cnn-gn" adds group normalisation after each convolution, as in [3]: 26,106.
    """

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels) if config.model == "tanh-cnn-gn" else nn.Identity()

    return nn.Sequential(
        _AddChannel(),
        nn.Conv2d(1, 16, 8, stride=2, padding=2),
        norm(16),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        norm(32),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


FASHION_MNIST: Final = ArrayRecipe(
    name="fashion-mnist",
    summary="Fashion-MNIST from scratch: a small tanh network in minutes",
    config=FashionMnistConfig,
    dataset="fashion-mnist",
    size=60_000,
    row_shape=(28, 28),
    num_classes=10,
    scale=255.0,
    make=_build,
    fallback="digits",
)
