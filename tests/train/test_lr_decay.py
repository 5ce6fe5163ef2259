"""The learning rate of each step, and that the caller's optimizer keeps its own afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from reticent.errors import ConfigError
from reticent.recipes import request
from reticent.recipes._training import settings_of
from reticent.train import SilentWatcher, TrainSettings, fit
from reticent.train._loop import _set_rates, rate_share
from tests.train.joint import cross_entropy, make_data, make_plan, make_private


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


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    settings = TrainSettings(lr_decay_steps=8, lr_decay="cosine")
    assert [rate_share(settings, step) for step in (0, 4, 8, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert rate_share(settings, 2) == pytest.approx((1 + 0.5**0.5) / 2)


def test_a_warm_up_reaches_the_whole_rate_with_its_last_step() -> None:
    settings = TrainSettings(lr_warmup_steps=4)
    assert [rate_share(settings, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    both = TrainSettings(lr_warmup_steps=2, lr_decay_steps=4)
    assert [rate_share(both, step) for step in range(5)] == [0.5, 0.75, 0.5, 0.25, 0.0]


def test_a_recipe_s_schedule_is_relative_to_its_steps() -> None:
    config: Any = request("mnist", ["num_steps=40", "lr_decay=cosine", "lr_warmup=0.1"]).config
    settings = settings_of(config)
    assert (settings.lr_decay, settings.lr_decay_steps, settings.lr_warmup_steps) == ("cosine", 40, 4)


def test_an_unknown_decay_is_refused() -> None:
    with pytest.raises(ConfigError, match="lr_decay must be 'linear' or 'cosine'"):
        TrainSettings(lr_decay="step")  # type: ignore[arg-type]


def test_after_an_error_the_optimizer_has_its_own_rates_again(tmp_path: Any) -> None:
    plan = make_plan(num_steps=4)
    private = make_private(tmp_path, plan=plan)
    before = [group["lr"] for group in private.optimizer.param_groups]

    def breaks_later(model: Any, batch: Any) -> Any:
        if private.num_steps == 2:
            assert [group["lr"] for group in private.optimizer.param_groups] != before
            raise RuntimeError("here")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="here"):
        fit(
            private,
            plan.batches(make_data()),
            loss_per_example=breaks_later,
            folder=tmp_path,
            settings=TrainSettings(lr_decay_steps=4),
            watcher=SilentWatcher(),
        )
    assert [group["lr"] for group in private.optimizer.param_groups] == before
