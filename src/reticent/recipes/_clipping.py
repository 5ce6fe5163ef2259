"""A recipe's clipping, from its settings.

Room: recipes. May import `reticent.clipping`; no torch.
"""

from collections.abc import Mapping
from typing import Any

from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    Clipping,
    FlatClipping,
    PerLayerClipping,
)

from ._training_config import TrainingConfig


def clipping_of(config: TrainingConfig) -> Clipping:
    """The clipping that a recipe's settings ask for; what they leave out is as the record has it.

    Raises:
        ConfigError[clip-norm]: `max_norm` is out of range.
    """
    match config.clipping:
        case "automatic":
            return AutomaticClipping(max_norm=config.max_norm, **_given({"stability": config.stability}))
        case "per-layer":
            return PerLayerClipping(max_norm=config.max_norm, **_given({"split": config.split}))
        case "adaptive":
            return AdaptiveClipping(
                initial_max_norm=config.max_norm,
                **_given(
                    {
                        "target_quantile": config.target_quantile,
                        "learning_rate": config.clip_lr,
                        "count_noise_multiplier": config.count_noise_multiplier,
                        "per_layer": config.adapt_per_layer,
                    }
                ),
            )
        case _:
            return FlatClipping(max_norm=config.max_norm)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
