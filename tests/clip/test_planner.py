"""What the planner picks, why, and within what memory."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reticent as rt
from reticent.clip._shared import SharedInputs
from reticent.clipping import GroupedClipping, PerLayerClipping
from reticent.errors import ConfigError
from reticent.rules import Form, Outer
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


def _refused(engine: rt.ClipEngine, losses: Any, x: Any, **options: Any) -> str:
    with pytest.raises(ConfigError, match="memory_budget is") as refused:
        engine.clipped_sum(losses, x, **options)
    return str(refused.value)


def _kept_least(model: nn.Module, x: Tensor, **options: Any) -> int:
    """Bytes of all forms, by what keeps least of each; the first sum of an engine is planned so."""
    engine = rt.ClipEngine(model, max_norm=1.0, memory_budget=1, **options)
    with pytest.raises(ConfigError):
        engine.clipped_sum(_losses(model), x)
    return sum(min(held for _, held in layer.candidates.values()) for layer in engine.explain().layers)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.95])
def test_a_budget_that_cannot_be_met_says_by_how_much_and_how_many_units_fit(share: float) -> None:
    """The first layers that a backward meets are a small part of what is kept."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    x = torch.randn(50, 16, 64)
    least = _kept_least(model, x)
    budget = int(share * least)

    def engine() -> rt.ClipEngine:
        return rt.ClipEngine(model, max_norm=1.0, memory_budget=budget)

    text = _refused(engine(), _losses(model), x)
    assert f"must keep {least / 2**20:.1f} MiB" in text
    assert f"short by {(least - budget) / 2**20:.1f} MiB" in text
    found = re.search(r"(\d+) of these 50 units fit", text)
    assert found is not None
    fitting = int(found[1])
    assert 1 <= fitting < 50
    assert not engine().clipped_sum(_losses(model), x[:fitting]).norms.isnan().any()
    _refused(engine(), _losses(model), x[: fitting + 1])


def test_a_budget_below_one_unit_says_what_one_needs() -> None:
    model, x = _model(), torch.randn(64, 16, 8)
    text = _refused(rt.ClipEngine(model, max_norm=1.0, memory_budget=1000), _losses(model), x)
    found = re.search(r"Not even one unit fits: raise memory_budget to at least (\d+) bytes", text)
    assert found is not None
    enough = int(found[1])
    rt.ClipEngine(model, max_norm=1.0, memory_budget=enough).clipped_sum(_losses(model), x[:1])
    _refused(rt.ClipEngine(model, max_norm=1.0, memory_budget=enough - 1), _losses(model), x[:1])
    ghost = rt.ClipEngine(model, max_norm=1.0, memory_budget=1000, method="ghost")
    assert not ghost.clipped_sum(_losses(model), x).norms.isnan().any()


def test_nothing_is_added_or_kept_beyond_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    x = torch.randn(50, 16, 64)
    engine = rt.ClipEngine(model, max_norm=1.0, memory_budget=_kept_least(model, x) // 2)
    alive: list[int] = []
    plain = Outer.settle

    def settle(form: Outer, method: str) -> Any:
        alive.append(1)
        return plain(form, method)

    monkeypatch.setattr(Outer, "settle", settle)
    _refused(engine, _losses(model), x, out=total)
    assert not any(bool(t.any()) for t in total.values())
    assert len(alive) <= 4, "norms go on after the budget is exceeded"


def test_a_plan_for_other_shapes_that_does_not_fit_these_is_made_anew() -> None:
    """Each of two layers was planned beside a small other one; both large ones do not fit so."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})

    def losses(x: dict[str, Tensor]) -> Tensor:
        return sum((model[k](x[k]).square().mean((1, 2)) for k in "ab"), torch.zeros(()))

    def rows(a: int, b: int) -> dict[str, Tensor]:
        return {"a": torch.randn(10, a, 64), "b": torch.randn(10, b, 64)}

    kept = 10 * 4 * (64 * 64 + 64)  # a layer's gradients; factors of 20 positions: 0.6 of it, of 4: an eighth
    engine = rt.ClipEngine(model, max_norm=0.1, memory_budget=int(1.75 * kept))
    for a, b in ((20, 4), (4, 20), (20, 20), (20, 20)):
        x = rows(a, b)
        for _ in range(2):
            got = engine.clipped_sum(losses, x)
            assert engine._planner._count.most <= int(1.75 * kept)
            want = rt.ClipEngine(model, max_norm=0.1).clipped_sum(losses, x)
            assert oracle.distance(dict(got.total), dict(want.total)) < 1e-6


def _halves(model: nn.Module) -> GroupedClipping:
    return GroupedClipping(max_norms=(("[01].*", 0.1), ("*", 0.1)))


def test_a_budget_limits_what_groups_of_several_layers_keep() -> None:
    """Of two groups one is kept at a time: half of what one group keeps."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    x = torch.randn(40, 16, 64)
    options: dict[str, Any] = {"clipping": _halves(model)}
    half = _kept_least(model, x) // 2
    want = rt.ClipEngine(model, **options).clipped_sum(_losses(model), x)
    got = rt.ClipEngine(model, **options, memory_budget=half).clipped_sum(_losses(model), x)
    assert oracle.distance(dict(got.total), dict(want.total)) < 1e-6 * 40
    short = rt.ClipEngine(model, **options, memory_budget=half - 1)
    text = _refused(short, _losses(model), x)
    assert "39 of these 40 units fit" in text
    short.clipped_sum(_losses(model), x[:39])


def test_a_budget_counts_a_table_that_waits_for_its_other_use() -> None:
    torch.manual_seed(0)
    table, inner = nn.Embedding(50, 16), nn.Linear(16, 16)
    model = nn.ModuleDict({"table": table, "inner": inner})
    x = torch.randint(0, 50, (8, 12))

    def losses(x: Tensor) -> Tensor:
        return (inner(table(x)) @ table.weight.mT).square().mean((1, 2))

    clipping = PerLayerClipping(max_norm=0.1)
    waits = 4 * 8 * 12 * (16 + 50)  # inputs and outputs of the last product
    rt.ClipEngine(model, clipping=clipping, memory_budget=waits).clipped_sum(losses, x)
    text = _refused(rt.ClipEngine(model, clipping=clipping, memory_budget=waits - 1), losses, x)
    assert "7 of these 8 units fit" in text


@pytest.mark.parametrize(
    "options", [{"method": "ghost", "max_norm": 1.0}, {"clipping": PerLayerClipping(max_norm=1.0)}]
)
def test_the_table_says_that_two_backwards_and_layers_keep_nothing(options: Any) -> None:
    model = _model()
    engine = rt.ClipEngine(model, memory_budget=1, **options)
    for _ in range(2):
        engine.clipped_sum(_losses(model), torch.randn(4, 16, 8))
    for layer in engine.explain().layers:
        assert layer.held == 0 and all(held == 0 for _, held in layer.candidates.values())


@pytest.mark.parametrize("planning", ["estimate", "measure"])
def test_two_backwards_form_no_gradient_to_keep_it_for_nobody(
    planning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many positions, narrow layers: kept gradients are the best for one backward."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    add = _by_what(monkeypatch, model, method="ghost", planning=planning)
    assert add(6, positions=200) and "keep" not in add(6, positions=200)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2))
    engine = rt.ClipEngine(model, max_norm=1.0, method="ghost", planning=planning)
    engine.clipped_sum(_losses(model), torch.randn(4, 3, 12, 12))
    (weight,) = (layer for layer in engine.explain().layers if layer.name == "0.weight")
    assert not any(method.startswith("keep") for method in weight.candidates)
    assert "memory budget" not in weight.why


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
        def settle(self: Planner, name: str, form: Any, *, stays: str, like: Tensor) -> Any:
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
    plain, used = SharedInputs.settle, []
    engine = rt.ClipEngine(model, max_norm=1.0, **options)

    def settle(shared: SharedInputs, form: Form, method: str) -> Any:
        if isinstance(form, Outer) and form.g_UPO.shape[2] == 64:
            used.append(method)
        return plain(shared, form, method)

    def add(units: int, positions: int = 28) -> list[str]:
        used.clear()
        engine.clipped_sum(_losses(model), torch.randn(units, positions, 64))
        return list(used)

    monkeypatch.setattr(SharedInputs, "settle", settle)
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


def test_a_tied_table_is_kept_where_it_is_smaller_than_what_it_is_made_of() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(40, 16)

    def losses(ids: Tensor) -> Tensor:
        return (table(ids).tanh() @ table.weight.T).square().mean((1, 2))

    engine, ids = rt.ClipEngine(table, max_norm=0.01), torch.randint(0, 40, (4, 200))
    for _ in range(2):
        got = engine.clipped_sum(losses, ids)
    (layer,) = engine.explain().layers
    assert layer.method == "keep" and layer.held == 4 * 4 * 40 * 16  # 4 tables; the factors hold 6 times that
    want, _ = oracle.loop_clipped_sum(table, losses, ids, 0.01)
    assert oracle.distance(got.total, want) < 1e-6
    few = torch.randint(0, 40, (4, 3))
    for _ in range(2):
        engine.clipped_sum(losses, few)
    assert engine.explain().layers[0].method == "gram"
