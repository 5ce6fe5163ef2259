"""From settings and a public shape to a head and the stages that train it.

Room: recipes. May import torch and the floors below.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.optim import SGD, Adam, Optimizer

from reticent.optim import Lamb
from reticent.plan import Sampler
from reticent.records import Budget
from reticent.sample import FullBatchSampler, PoissonSampler
from reticent.train import mix_seed

from ._auto import chosen_for
from ._config import SAMPLED, LastLayerConfig
from ._rows import Preparation
from ._stage_plan import StagePlan, plan_stages
from ._stages import Centre, Descend, Head, LeastSquares, Newton, Precondition, Stage, Whiten

NO_CLIPPING: Final = 1e30  # max_norm of a run without privacy
NEAR_ZERO: Final = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicShape:
    """What is public about a feature set: N, D, K."""

    num_examples: int
    dim: int
    num_classes: int


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A head, the stages that train it, and their plan.

    Args:
        config: the settings, with what `auto` and a method's own defaults filled in.
        head: the classifier, at its first weights.
        optimizer: updates its weights, for methods that step.
        stages: in order.
        plan: how the budget is shared among them.
    """

    config: LastLayerConfig
    head: Head
    optimizer: Optimizer
    stages: tuple[Stage, ...]
    plan: StagePlan


# What a head is made of, beside its shape; a finished run notes them, as `auto` chose them.
HEAD_SETTINGS: Final = ("method", "scaling", "feature_norm", "intercept", "bias", "centre", "whiten")


def make_head(config: LastLayerConfig, *, dim: int, num_classes: int) -> Head:
    """The classifier at weights of zero; `config` is resolved."""
    return Head(
        dim=dim,
        num_classes=num_classes,
        preparation=Preparation(
            scaling=config.scaling, max_norm=config.feature_norm, intercept=config.intercept
        ),
        bias=config.bias,
        centred=config.centre == "private",
        whitened=config.whiten == "private",
        preconditioned=config.method == "fc",
    )


def make_method(config: LastLayerConfig, shape: PublicShape) -> Method:
    """Build a method; reads no data.

    Raises:
        ConfigError: settings do not fit the shape.
        AccountingError: no noise meets the budget.
    """
    config = resolved(config, shape)
    head = make_head(config, dim=shape.dim, num_classes=shape.num_classes)
    if config.init == "near-zero":
        generator = torch.Generator().manual_seed(mix_seed(config.seed, "weights"))
        with torch.no_grad():
            head.weight.normal_(std=NEAR_ZERO, generator=generator)
    optimizer = _optimizer(config, head)
    stages = tuple(_stages(config, optimizer))
    private = math.isfinite(config.epsilon)
    plan = plan_stages(
        stages,
        num_examples=shape.num_examples,
        sampler=_sampler(config, shape),
        budget=Budget(epsilon=config.epsilon, delta=config.delta) if private else None,
        delta=config.delta,
    )
    return Method(config, head, optimizer, stages, plan)


def resolved(config: LastLayerConfig, shape: PublicShape) -> LastLayerConfig:
    """The same settings with `auto` replaced by a method, and a method's own defaults filled in."""
    given: dict[str, Any] = {}
    if config.method == "auto":
        given = dict(
            chosen_for(
                num_examples=shape.num_examples,
                dim=shape.dim,
                num_classes=shape.num_classes,
                epsilon=config.epsilon,
                delta=config.delta,
            )
        )
        given["intercept"] = given.get("intercept", 0.0) * config.feature_norm
    method = given.get("method", config.method)
    lr, num_steps = _DEFAULTS[method]
    if config.lr is None:
        given.setdefault("lr", lr)
    if config.num_steps is None:
        given.setdefault("num_steps", num_steps)
    if config.max_norm is None:  # |r| |x| with |r| of one output that is wrong by 1
        bound = math.hypot(config.feature_norm, given.get("intercept", config.intercept))
        given.setdefault("max_norm", bound / (shape.num_classes if config.loss == "sigmoid" else 1))
    return config.model_copy(update=given)


# Method -> its learning rate and number of steps, where none are given.
_DEFAULTS: Final = {
    "one-step": (1.0, 1),
    "sgd": (20.0, 50),
    "adam": (0.3, 50),
    "lamb": (0.1, 50),
    "least-squares": (1.0, 1),
    "newton": (1.0, 2),
    "fc": (1.0, 10),
}


def _optimizer(config: LastLayerConfig, head: Head) -> Optimizer:
    assert config.lr is not None, "resolved"
    match config.method:
        case "adam":
            return Adam(head.parameters(), lr=config.lr)
        case "lamb":
            return Lamb(head.parameters(), lr=config.lr)
        case "sgd" | "fc":
            return SGD(head.parameters(), lr=config.lr, momentum=config.momentum)
        case _:
            return SGD(head.parameters(), lr=config.lr)


def _sampler(config: LastLayerConfig, shape: PublicShape) -> Sampler:
    if config.method in SAMPLED and config.expected_batch_size is not None:
        return PoissonSampler(num_examples=shape.num_examples, expected_batch_size=config.expected_batch_size)
    return FullBatchSampler(num_examples=shape.num_examples)


def _stages(config: LastLayerConfig, optimizer: Optimizer) -> list[Stage]:
    stages: list[Stage] = []
    left = 1.0
    if config.centre == "private":
        stages.append(Centre(share=config.centre_share))
        left -= config.centre_share
    if config.whiten == "private":
        stages.append(Whiten(share=config.whiten_share))
        left -= config.whiten_share
    return [*stages, *_own_stages(config, optimizer, left)]


def _own_stages(config: LastLayerConfig, optimizer: Optimizer, share: float) -> list[Stage]:
    assert config.num_steps is not None, "resolved"
    assert config.max_norm is not None, "resolved"
    max_norm = config.max_norm if math.isfinite(config.epsilon) else NO_CLIPPING
    match config.method:
        case "least-squares":
            return [
                LeastSquares(
                    class_weight=config.class_weight,
                    reg=config.reg,
                    gram_share=config.gram_share,
                    share=share,
                )
            ]
        case "newton":
            return [
                Newton(
                    optimizer=optimizer,
                    loss=config.loss,
                    max_norm=max_norm,
                    num_steps=config.num_steps,
                    reg=config.reg,
                    gram_share=config.gram_share,
                    share=share,
                )
            ]
        case "fc":
            gram = share * config.gram_share
            return [
                Precondition(share=gram, reg=config.reg),
                _descend(config, optimizer, max_norm, share - gram),
            ]
        case _:
            return [_descend(config, optimizer, max_norm, share)]


def _descend(config: LastLayerConfig, optimizer: Optimizer, max_norm: float, share: float) -> Descend:
    assert config.num_steps is not None, "resolved"
    return Descend(
        optimizer=optimizer,
        loss=config.loss,
        max_norm=max_norm,
        num_steps=config.num_steps,
        share=share,
        name=config.method,
        sampled=config.method in SAMPLED,
        repeatable=config.method != "one-step",
        preconditioned=config.method == "fc",
    )
