"""What the planner picks, why, and within what memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reticent as rt
from reticent.errors import ConfigError
from tests.support import oracle


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 8))


def _losses(model: nn.Module) -> Any:
    return lambda x: model(x).square().mean((1, 2))


def test_the_table_names_every_parameter_with_its_method_and_reason() -> None:
    model = _model()
    engine = rt.ClipEngine(model, max_norm=1.0)
    assert str(engine.explain()) == "Nothing is planned before the first sum."
    engine.clipped_sum(_losses(model), torch.randn(4, 16, 8))
    explained = engine.explain()
    assert {layer.name for layer in explained.layers} == {n for n, _ in model.named_parameters()}
    table = str(explained)
    for word in ("layer", "shapes", "method", "why", "ms", "MiB kept", "3.weight"):
        assert word in table
    for layer in explained.layers:
        assert layer.method in layer.candidates
        assert layer.why


def test_timing_the_candidates_changes_no_result() -> None:
    model = _model()
    x = torch.randn(6, 16, 8)
    by_costs = rt.ClipEngine(model, max_norm=0.01)
    by_time = rt.ClipEngine(model, max_norm=0.01, planning="measure")
    for _ in range(2):
        want, got = by_costs.clipped_sum(_losses(model), x), by_time.clipped_sum(_losses(model), x)
        assert oracle.distance(dict(got.total), dict(want.total)) < 1e-6 * 0.01 * 6
    assert any(layer.measured for layer in by_time.explain().layers)


def test_a_budget_that_cannot_be_met_says_by_how_much() -> None:
    model = _model()
    engine = rt.ClipEngine(model, max_norm=1.0, memory_budget=1000)
    with pytest.raises(
        ConfigError, match=r"memory_budget is 0\.0 MiB: short by at least .* MiB.*method='ghost'"
    ):
        engine.clipped_sum(_losses(model), torch.randn(64, 16, 8))
    assert (
        not rt.ClipEngine(model, max_norm=1.0, memory_budget=1000, method="ghost")
        .clipped_sum(_losses(model), torch.randn(64, 16, 8))
        .norms.isnan()
        .any()
    )


def test_a_smaller_budget_keeps_less() -> None:
    model = _model()
    x = torch.randn(64, 32, 8)

    def held(budget: int | None) -> int:
        engine = rt.ClipEngine(model, max_norm=1.0, memory_budget=budget)
        for _ in range(2):
            engine.clipped_sum(_losses(model), x)
        return sum(layer.held for layer in engine.explain().layers)

    roomy = held(1 << 30)
    least = held(None)
    assert least <= roomy
    assert held(least) <= least


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, "1GiB"])
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match="memory_budget must be a positive number of bytes"):
        rt.ClipEngine(_model(), max_norm=1.0, memory_budget=budget)


def test_an_unknown_planning_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'estimate', 'measure'"):
        rt.ClipEngine(_model(), max_norm=1.0, planning="guess")  # type: ignore[arg-type]


def test_every_choice_of_methods_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods differ in speed and memory only: force each in turn on every layer that has it."""
    from reticent.clip._planner import Planner

    model = nn.Sequential(
        _model(), nn.Unflatten(1, (1, 16)), nn.Conv2d(1, 3, 3, 2, 1), nn.Flatten(1)
    ).double()
    x = torch.randn(5, 16, 8, dtype=torch.float64)

    def losses(x: Tensor) -> Tensor:
        return model(x).square().sum(1)

    want = rt.ClipEngine(model, max_norm=0.1, method="loop").clipped_sum(losses, x)
    names: set[str] = set()

    def forced(wanted: str) -> Any:
        def settle(self: Planner, name: str, form: Any, *, holding: bool, like: Tensor) -> Any:
            methods = [m.name for m in form.methods()]
            names.update(methods)
            return form.settle(wanted if wanted in methods else methods[0])

        return settle

    tried: set[str] = set()
    while todo := (names - tried or ({"default"} if not tried else set())):
        method = sorted(todo)[0]
        tried.add(method)
        monkeypatch.setattr(Planner, "settle", forced(method))
        got = rt.ClipEngine(model, max_norm=0.1).clipped_sum(losses, x)
        assert oracle.distance(dict(got.total), dict(want.total)) < 1e-9, method
    assert len(tried) > 1, "more than one method was tried"
