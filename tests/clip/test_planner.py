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
        ConfigError,
        match=r"memory_budget is 0\.0 MiB: short by at least .* MiB.*more than \d+ of these 64 units.*ghost",
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


def _by_what(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **options: Any) -> Any:
    """An engine's call on so many units: by what it settles weights of 64 inputs and outputs."""
    from reticent.rules import Outer

    plain, used = Outer.settle, []
    engine = rt.ClipEngine(model, max_norm=1.0, **options)

    def settle(form: Outer, method: str) -> Any:
        if form.g_UPO.shape[2] == 64:
            used.append(method)
        return plain(form, method)

    def add(units: int, positions: int = 28) -> list[str]:
        used.clear()
        engine.clipped_sum(_losses(model), torch.randn(units, positions, 64))
        return list(used)

    monkeypatch.setattr(Outer, "settle", settle)
    return add


def test_another_number_of_units_is_settled_by_what_was_chosen_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What keeps least is not what is fastest, and Poisson batches are of another size each time."""
    add = _by_what(monkeypatch, nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)))
    assert add(6) == ["gram"]  # keeps least
    for units in (6, 5, 9, 1, 30):
        assert add(units) == ["keep"]
    assert add(6, positions=27) == ["gram"]  # a unit of another shape


def test_more_units_than_the_budget_was_shared_out_for_are_planned_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    room = 10 * (2 * 4 * 64 * 64 + 2 * 4 * 64)  # for ten units' gradients; of factors, for eleven units'
    add = _by_what(monkeypatch, model, memory_budget=room)
    least, fastest = ["gram", "gram"], ["keep", "keep"]
    assert add(9) == least and add(9) == add(8) == fastest
    assert add(10) == least and add(10) == add(9) == fastest
    assert add(11) == add(11) == least  # what was chosen for ten would be refused for eleven
    with pytest.raises(ConfigError, match="memory_budget"):
        add(12)
    assert add(11) == least


def test_what_is_remembered_does_not_grow_with_every_batch() -> None:
    model = nn.Linear(2, 2)
    engine = rt.ClipEngine(model, max_norm=1.0, planning="measure")
    for length in range(2, 90):
        engine.clipped_sum(_losses(model), torch.randn(1 + length % 3, length, 2))
    assert max(len(choices) for choices in engine._planner._chosen.values()) <= 64
    assert set(engine._planner._chosen) == {"weight", "bias"}
    for units in range(1, 40):
        engine.clipped_sum(_losses(model), torch.randn(units, 3, 2))
    shapes = {unit for choices in engine._planner._chosen.values() for unit in choices}
    assert len(shapes) <= 2 * 64


@pytest.mark.parametrize("planning", ["estimate", "measure"])
def test_a_convolution_of_more_rows_a_unit_is_planned_anew(planning: Any) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3)
    engine = rt.ClipEngine(model, max_norm=0.01, planning=planning)
    for length in (1, 2, 5, 2):
        x = torch.randn(4, length, 3, 6, 6)

        def losses(x: Tensor) -> Tensor:
            return model(x.flatten(0, 1)).square().unflatten(0, x.shape[:2]).mean((1, 2, 3, 4))

        got = engine.clipped_sum(losses, x)
        total, _ = oracle.loop_clipped_sum(model, losses, x, 0.01)
        assert oracle.distance(dict(got.total), total) < 1e-5 * 0.04
