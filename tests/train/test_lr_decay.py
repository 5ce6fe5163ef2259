"""The learning rate of each step, and that the caller's optimizer keeps its own afterwards."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reticent.errors import ConfigError
from reticent.train import TrainSettings
from reticent.train._loop import _set_rates


def test_linear_decay_starts_at_the_whole_rate_and_would_end_at_zero() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=4.0)
    settings = TrainSettings(lr_decay_steps=8)
    seen = []
    for step in (0, 4, 7, 8, 9):
        _set_rates(optimizer, [4.0], settings, step)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [4.0, 2.0, 0.5, 0.0, 0.0]


def test_without_decay_every_step_runs_at_the_rate_given() -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}, {"lr": 2.0}])
    _set_rates(optimizer, [1.0, 2.0], TrainSettings(), 5)  # type: ignore[arg-type]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]


@pytest.mark.parametrize("steps", [-1, 1.5, True])
def test_a_number_of_steps_that_is_none_is_refused(steps: object) -> None:
    with pytest.raises(ConfigError, match="lr_decay_steps must be an integer >= 0"):
        TrainSettings(lr_decay_steps=steps)  # type: ignore[arg-type]
