"""What a person asks of a sweep, and which runs that makes."""

import math

import pytest

from reticent.errors import ConfigError
from reticent.sweep import read_sweep


def test_a_grid_is_every_combination_and_shared_settings_are_in_each():
    asked = read_sweep("digits", ["num_steps=5"], ["lr=1,2", "epsilon=1,4"])
    assert asked.private_settings() == [
        {"num_steps": 5, "lr": lr, "epsilon": epsilon} for lr in (1, 2) for epsilon in (1, 4)
    ]


def test_runs_without_privacy_drop_what_only_private_runs_read_and_the_private_rate():
    asked = read_sweep(
        "digits", ["num_steps=5", "clipping=automatic"], ["lr=1,2", "max_norm=0.1,1", "ema=0,0.9"]
    )
    assert asked.plain_settings() == [
        {"epsilon": math.inf, "num_steps": 5, "ema": 0},
        {"epsilon": math.inf, "num_steps": 5, "ema": 0.9},
    ]


def test_settings_that_only_go_together_stay_together_without_privacy(tmp_path):
    """Labels are asked for with a file of one's own, and refused without: neither may be lost."""
    rows = tmp_path / "mine.csv"
    rows.write_text("text,label\n" + 20 * "good,yes\nbad,no\n")
    own = {"data": str(rows), "labels": "no,yes", "model": "minilm"}
    shared = [*(f"{k}={v}" for k, v in own.items()), "delta=1e-3", "num_steps=4"]
    asked = read_sweep("text-classify", shared, ["max_norm=0.1,1"])
    assert asked.plain_settings() == [{"epsilon": math.inf, **own, "num_steps": 4}]


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_left_out_without_privacy_does_not_depend_on_the_order(order):
    shared = ["max_norm=1", "twin=true", "twin_lr=0.1", "num_steps=3"][::order]
    asked = read_sweep("digits", shared, ["epsilon=1,3"])
    assert asked.plain_settings() == [{"epsilon": math.inf, "num_steps": 3}]


def test_a_recipe_that_needs_a_file_is_swept(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("a,label\n1,no\n2,yes\n")
    own = {"data": str(rows), "labels": "no,yes", "columns": "a=0..3"}
    asked = read_sweep("table", [*(f"{k}={v}" for k, v in own.items()), "delta=1e-3"], ["method=sgd,adam"])
    assert [settings["method"] for settings in asked.private_settings()] == ["sgd", "adam"]
    for settings in asked.plain_settings():
        assert {name: settings[name] for name in own} == own and "delta" not in settings


def test_runs_without_privacy_have_rates_of_their_own():
    asked = read_sweep("digits", [], ["lr=1,2"], ["lr=0.1,0.5"])
    assert [settings["lr"] for settings in asked.plain_settings()] == [0.1, 0.5]
    assert [settings["lr"] for settings in asked.private_settings()] == [1, 2]


def test_epsilon_of_infinity_in_the_grid_is_a_run_without_privacy():
    asked = read_sweep("digits", [], ["epsilon=1,inf"])
    assert [settings["epsilon"] for settings in asked.private_settings()] == [1]


def test_equal_settings_run_once():
    asked = read_sweep("digits", [], ["lr=1,1,2"])
    assert len(asked.private_settings()) == 2


def test_a_file_may_hold_several_grids(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'recipe = "digits"\nx = "expected_batch_size"\nseries = "optimizer"\n[set]\nnum_steps = 3\n'
        '[[grid]]\noptimizer = "sgd"\nlr = [1.0, 2.0]\n[[grid]]\noptimizer = "lamb"\nlr = [0.01]\n'
        "[[plain]]\nlr = [0.1]\n"
    )
    asked = read_sweep(str(path), ["epsilon=2"], ["seed=0,1"])
    assert (asked.x, asked.series) == ("expected_batch_size", ("optimizer",))
    assert len(asked.private_settings()) == 2 * (2 + 1)
    assert {settings["epsilon"] for settings in asked.private_settings()} == {2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("digits",), "varies something"),
        (("digits", [], ["lr"]), "not key=value,value"),
        (("digits", [], ["lr=,"]), "not key=value,value"),
        (("digits", [], ["learning_rate=1,2"]), "No combination of the grid can run: unknown setting"),
        (("digitz", [], ["lr=1,2"]), "No recipe is named 'digitz'"),
    ],
)
def test_what_makes_no_sweep_is_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        read_sweep(*arguments)


def test_an_axis_that_no_setting_has_is_refused():
    with pytest.raises(ConfigError, match="'batch' is no setting") as refused:
        read_sweep("digits", [], ["lr=1,2"], x="batch")
    assert refused.value.code == "sweep"


def test_an_unknown_key_of_a_file_is_refused(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text('recipe = "digits"\nrows = "lr"\n')
    with pytest.raises(ConfigError, match="Unknown in the sweep's file: rows"):
        read_sweep(str(path))


def test_a_series_may_be_several_settings_shown_where_they_are_set():
    from reticent.sweep import _table

    asked = read_sweep("digits", [], ["lr=1,2"], series="optimizer, momentum", x="expected-batch-size")
    assert (asked.series, asked.x) == (("optimizer", "momentum"), "expected_batch_size")
    entries = [
        {"settings": settings, "private": True, "score": 0.5, "spread": 0.0, "num_seeds": 1}
        for settings in ({"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "sgd", "momentum": 0.9},
                         {"optimizer": "lamb"})
    ]  # fmt: skip
    assert [line["series"] for line in _table.lines(asked, entries)] == ["sgd 0.0", "sgd 0.9", "lamb"]
