"""What a run of an image recipe takes: operations counted on a network without numbers.

Room: recipes. May import torch, `reticent.plan`.
"""

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from .._parts import plan_of
from .._recipe import Request

if TYPE_CHECKING:
    from ._recipe import VisionRecipe

_RATE: Final = 1e13  # operations a second: an assumption to compare runs by, no measurement


def what_it_takes(recipe: "VisionRecipe", asked: Request) -> dict[str, Any]:
    """Epsilon by RDP alone and by PLD alone, parameters, and operations of the whole run.

    Operations are those of plain training: three times the forward pass, for every view of every expected
    example. What clipping adds is not in them. `device_hours` divides them by 1e13 a second, an
    assumption that is written beside it.
    """
    config: Any = asked.config
    with torch.device("meta"):
        model = recipe.build(recipe.unloaded(config))
        x, _ = recipe.random_rows(config.model_copy(update={"augmult": 0}), 1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    views = max(config.augmult, 1)
    total = 3.0 * counter.get_total_flops() * views * config.expected_batch_size * config.num_steps
    private = math.isfinite(asked.config.epsilon) and asked.config.noise_seed is None
    report = plan_of(asked).epsilon() if private else None
    return {
        "epsilon_rdp": None if report is None else report.epsilon_rdp,
        "epsilon_pld": None if report is None else report.epsilon_pld,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "operations": total,
        "device_hours": total / _RATE / 3600,
        "device_hours_assume": "1e13 operations a second",
    }
