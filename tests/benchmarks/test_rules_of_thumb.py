"""The sweeps of the rules of thumb, on random features: each point is private, and each rule is drawn."""

import json

import numpy as np
import pytest

from benchmarks import rules_of_thumb as rules
from reticent.plan import Plan


@pytest.fixture
def short(monkeypatch):
    """One run a point, of two steps."""
    whole = Plan.calibrate
    rules._plan.cache_clear()
    monkeypatch.setattr(rules, "TIMES", 1)
    monkeypatch.setattr(rules.Plan, "calibrate", lambda **given: whole(**{**given, "num_steps": 2}))
    yield
    rules._plan.cache_clear()


def data():
    """Features of as many rows as the sweeps have, whose first number is their class."""
    draw = np.random.default_rng(0)
    made = {}
    for name, size in (("train", rules.NUM_TRAIN), ("test", rules.NUM_TEST)):
        made[f"{name}_y"] = draw.integers(0, 2, size)
        made[f"{name}_x"] = draw.normal(size=(size, 8))
        made[f"{name}_x"][:, 0] = 16.0 * made[f"{name}_y"] - 8.0
    return made


def test_a_point_is_trained_privately_and_scored_on_the_other_rows(short):
    rows = data()
    point = rules.Point("minilm", 512, 0.1, 0.1)
    found = rules.measured(point, rows)
    assert 0 < found["epsilon"] <= 3.0 and found["spread"] == 0.0
    assert found["accuracy"] > 0.95, "Adam moves all 8 weights alike, and the first feature is the class"
    assert rules.measured(point, rows | {"test_y": 1 - rows["test_y"]})["accuracy"] < 0.05


def test_the_usual_setting_is_a_point_of_every_rule():
    for model in rules.MODELS:
        usual = rules.Point(model, **rules.USUAL)
        assert [name for name, point in rules.points() if point == usual] == list(rules.SWEPT)
    assert len({p.key for _, p in rules.points()}) == len({p for _, p in rules.points()})


def test_every_rule_is_drawn_from_kept_results(tmp_path):
    results = {p.key: {"accuracy": 0.7, "spread": 0.01, "epsilon": 2.9} for _, p in rules.points()}
    for k, name in enumerate(rules.ADAPTATIONS):
        results[f"minilm {name}"] = {"accuracy": 0.7 + k / 100, "epsilon": 2.9, "num_trainable": 10**k}
    drawn = rules.draw(json.loads(json.dumps(results)), tmp_path)
    names = {path.stem for path in drawn}
    assert {f"rules-{rule}" for rule in (*rules.SWEPT, "adaptation")} <= names
    assert all(path.stat().st_size > 0 for path in drawn)
    results.pop("minilm lora")
    with pytest.raises(KeyError, match="minilm lora"):
        rules.draw(results, tmp_path)
