"""The learning rate of each step, and that the caller's optimizer keeps its own afterwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError
from reticent.recipes import request
from reticent.recipes._training import settings_of
from reticent.train import SilentWatcher, TrainSettings, fit, resume, train
from reticent.train._loop import _set_rates, rate_share
from tests.train.joint import cross_entropy, make_data, make_model, make_plan, make_private


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


def test_a_resumed_run_has_the_rates_of_one_that_never_stopped(tmp_path: Any) -> None:
    rates: list[tuple[int, float]] = []

    def watched(optimizer: Any, *, stop_at: int) -> Any:
        def losses(model: Any, batch: Any) -> Any:
            step = read_ledger(tmp_path / "run" / "ledger.jsonl").num_steps
            if step == stop_at:
                raise KeyboardInterrupt
            if (rate := (step, optimizer.param_groups[0]["lr"])) not in rates:
                rates.append(rate)
            return cross_entropy(model, batch)

        return losses

    def made() -> tuple[nn.Module, Any]:
        model = make_model()
        return model, torch.optim.SGD(model.parameters(), lr=1.0)

    model, optimizer = made()
    with pytest.raises(KeyboardInterrupt):
        train(
            model, optimizer, plan=make_plan(num_steps=8), dataset=make_data(), out=tmp_path / "run",
            loss_per_example=watched(optimizer, stop_at=6), check_batch=make_data()[:4],
            settings=TrainSettings(lr_decay_steps=8, checkpoint_every=4),
        )  # fmt: skip
    model, optimizer = made()
    resume(
        model, optimizer, dataset=make_data(), out=tmp_path / "run", check_batch=make_data()[:4],
        loss_per_example=watched(optimizer, stop_at=-1),
    )  # fmt: skip
    assert rates == [(k, 1 - k / 8) for k in range(8)]
    assert optimizer.param_groups[0]["lr"] == 1.0


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
