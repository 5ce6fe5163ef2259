"""Which parameters are clipped together, to what norm, and how a norm becomes a weight.

Room: clip. May import torch, `reticent.clipping`, `reticent.errors`.

Shape letters (this file): U unit.

Sources:
    [1] Abadi et al. 2016, arXiv:1607.00133 (flat, per-layer).
    [2] Bu et al. 2022, arXiv:2206.07136 (automatic).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from reticent.clipping import AutomaticClipping, FlatClipping, GroupedClipping, PerLayerClipping, groups
from reticent.errors import ConfigError

_LARGEST_WEIGHT: Final = 1e15
_SMALLEST_WEIGHT: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters whose gradients have one norm.

    Args:
        names: the parameters.
        max_norm: C of the group: a unit's weighted gradient has at most this norm over the group.
        stability: None: weight min(1, C / norm) [1]; else C / (norm + stability) [2].
    """

    names: tuple[str, ...]
    max_norm: float
    stability: float | None = None

    def weights(self, norm_U: Tensor, max_norm: Tensor | None = None) -> Tensor:
        """The weight of each unit; `norm_U` is not below the unit's norm, and finite.

        `max_norm` comes in place of the group's, where it is read anew in every run of a graph.

        Guarantee:
            weight times norm is at most `max_norm`, to rounding; a unit without gradient gets a finite
            weight.
        """
        bound = self.max_norm if max_norm is None else max_norm
        largest = 1.0 if self.stability is None else _LARGEST_WEIGHT
        weight_U = (bound / (norm_U + (self.stability or 0.0))).clamp_max(largest)
        # Where float32 has few digits left, or none, a weight could be rounded up.
        return torch.where(weight_U < _SMALLEST_WEIGHT, 0.0, weight_U)


def resolve(clipping: object, sizes: Mapping[str, int]) -> tuple[Group, ...]:
    """The groups that a clipping rule makes of a model's trainable parameters.

    Args:
        clipping: the rule of one step.
        sizes: name -> number of entries, of every trainable parameter, in the model's order.

    Raises:
        ConfigError[clipping]: not a clipping rule that the engine knows.
        ConfigError[clip-groups]: a pattern matches no parameter, or a parameter no pattern.
    """
    match clipping:
        case FlatClipping():
            return (Group(tuple(sizes), clipping.max_norm),)
        case AutomaticClipping():
            return (Group(tuple(sizes), clipping.max_norm, clipping.stability),)
        case PerLayerClipping() | GroupedClipping():
            return tuple(Group(g.parameters, g.max_norm) for g in groups(clipping, sizes))
    raise ConfigError(
        "The engine clips by FlatClipping, AutomaticClipping, PerLayerClipping or GroupedClipping, got "
        f"{type(clipping).__name__}. (An AdaptiveClipping is a rule for the joint: PrivateStep and train.)",
        code="clipping",
    )
