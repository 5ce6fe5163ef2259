"""The recipe `head`: a small network on frozen features, trained by private gradient steps.

Room: recipes. May import torch and the floors below.

Where `last-layer` has closed forms, this one goes the way of whole models: any optimizer, clipping
and batch size of `reticent.train`, a hidden layer or none. Rows are read into memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from .._arrays import accuracy_and_loss, cross_entropy
from .._parts import scored_at_once
from .._reader import Given, Reader, Watch, outputs_of_inputs, with_weights
from .._training import Material, TrainingRecipe
from .._training_config import TrainingConfig
from ._new_rows import new_features, noted_shape
from ._sources import Features, Split, load_features, public_shape


class HeadConfig(TrainingConfig):
    """Settings of `head`."""

    features: Annotated[str, Field(description="a feature store's folder, or digits, adult")] = "digits"
    hidden: Annotated[int, Field(ge=0, le=65536, description="units of the hidden layer; 0: none")] = 64
    scaling: Annotated[
        Literal["normalise", "none"],
        Field(description="normalise: every row gets the length that a row of ones has"),
    ] = "normalise"
    num_steps: Annotated[int, Field(ge=1, description="updates in the whole run")] = 100
    expected_batch_size: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="examples in a step, on average")
    ] = 512
    max_norm: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="clipping norm of one example's gradient")
    ] = 1.0
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False, description="learning rate")] = 0.5
    twin_lr: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="learning rate without privacy")
    ] = 0.1


class HeadRecipe(TrainingRecipe):
    """A private network of one or two layers on frozen features."""

    name = "head"
    summary = "a network of one or two layers on frozen features, by private gradient steps"
    config: type[HeadConfig] = HeadConfig

    def num_examples(self, config: HeadConfig) -> int:
        return public_shape(config.features).num_examples

    def fetch(self, config: HeadConfig, *, report: Callable[[str], None], progress: bool) -> Features:
        return load_features(config.features, report=report, progress=progress)

    def prepare(self, config: HeadConfig, fetched: Features) -> Material:
        return Material(
            train=_rows(fetched.train, config), test=_rows(fetched.test, config), about=dict(fetched.about)
        )

    def build(self, config: HeadConfig) -> nn.Module:
        shape = public_shape(config.features)
        return _network(config, shape.dim, shape.num_classes)

    def reader(self, config: HeadConfig, about: Mapping[str, Any], folder: Path) -> Reader:
        dim, classes = noted_shape(config.features, about["data"])

        def read(path: Path, watch: Watch) -> Given:
            given = new_features(path, features=config.features, about=about["data"], watch=watch)
            return replace(given, rows=_rows(Split(*given.rows), config))

        return Reader(
            classes=classes,
            answer="one",
            load=lambda run, weights: with_weights(_network(config, dim, len(classes)), run, weights),
            read=read,
            outputs=outputs_of_inputs,
            batch_size=scored_at_once(self, config),
        )

    def random_rows(self, config: HeadConfig, num_rows: int) -> tuple[Tensor, Tensor]:
        shape, generator = public_shape(config.features), torch.Generator().manual_seed(0)
        x = torch.randn((num_rows, shape.dim), generator=generator)
        return x, torch.randint(shape.num_classes, (num_rows,), generator=generator)

    def loss_per_example(self, config: HeadConfig) -> Callable[[nn.Module, Any], Tensor]:
        return cross_entropy

    def scores(self, config: HeadConfig) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
        return accuracy_and_loss


def _network(config: HeadConfig, dim: int, num_classes: int) -> nn.Module:
    if not config.hidden:
        return nn.Linear(dim, num_classes)
    return nn.Sequential(nn.Linear(dim, config.hidden), nn.Tanh(), nn.Linear(config.hidden, num_classes))


def _rows(split: Split, config: HeadConfig) -> TensorDataset:
    """Each row from itself alone: nothing about the others is read."""
    x = torch.tensor(split.x, dtype=torch.float32)
    if config.scaling == "normalise":
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x.div_(norms.clamp_min(torch.finfo(x.dtype).tiny)).mul_(x.shape[1] ** 0.5)
    return TensorDataset(x, torch.tensor(split.y, dtype=torch.int64))


HEAD: Final = HeadRecipe()
