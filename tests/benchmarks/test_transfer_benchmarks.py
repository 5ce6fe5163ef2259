"""The benchmarks of transfer: what they compare is what their tables say."""

import json
import math

import numpy as np
import pytest

from benchmarks import defaults, last_layer_curves, plot_last_layer, plot_tables
from benchmarks.features_runs import read, repeated
from benchmarks.optimizers import RATES, comparison
from benchmarks.peers import ibm_diffprivlib


def test_every_optimizer_runs_the_same_epochs_at_every_batch_size_private_and_not():
    shared = {"epsilon": 2.0, "max_norm": 1.0}
    asked = comparison("digits", 1437, batches=[64, 1437], epochs=10, shared=shared, optimizers=list(RATES))
    private, plain = asked.private_settings(), asked.plain_settings()
    assert len(private) == len(plain) == 4 * 2 * 3
    assert {(s["expected_batch_size"], s["num_steps"]) for s in private} == {(64.0, 225), (1437.0, 10)}
    assert all(s["epsilon"] == math.inf and "max_norm" not in s and "lr" in s for s in plain)


def test_a_repeated_run_has_a_mean_and_the_largest_epsilon():
    data = read("digits")
    found = repeated("digits", data, {"method": "least-squares", "epsilon": 1.0}, times=2)
    assert 0.5 < found["test_accuracy"] < 1.0
    assert found["test_accuracy_spread"] >= 0.0  # of 360 rows: two runs are equal now and then
    assert found["test_loss_spread"] > 0.0
    assert 0.99 < found["epsilon"] <= 1.0


def test_every_swept_setting_is_a_run():
    from reticent.recipes import make_config, recipes

    for settings in defaults.SWEPT:
        make_config(recipes()["last-layer"].config, settings)


def test_a_table_becomes_plots(tmp_path):
    row = {"test_accuracy": 0.8, "test_auc": 0.9, "test_accuracy_spread": 0.01, "test_auc_spread": 0.0}
    found = {
        "features": "adult", "N": 10, "D": 2, "without_privacy": row, "diffprivlib": None,
        "reticent": [{**row, "settings": {"epsilon": e}} for e in (0.1, 8.0)],
    }  # fmt: skip
    path = tmp_path / "adult.json"
    path.write_text(json.dumps(found))
    drawn = plot_tables.draw(path, tmp_path)
    assert [p.name for p in drawn] == [
        "adult-accuracy.svg", "adult-accuracy.png", "adult-auc.svg", "adult-auc.png",
    ]  # fmt: skip


def test_without_its_interpreter_the_peer_is_skipped(monkeypatch):
    monkeypatch.delenv(ibm_diffprivlib.VARIABLE, raising=False)
    rows = np.zeros((2, 3)), np.array([0, 1])
    assert ibm_diffprivlib.logistic_regression(rows, rows, epsilons=[1.0], times=1) is None


def test_curves_go_on_where_they_were_and_become_plots(tmp_path, capsys):
    out = tmp_path / "digits.json"
    asked = ["--times", "1", "--variants", "one-step;least-squares", "--out", str(out)]
    last_layer_curves.main([*asked, "--epsilons", "8"])
    first = json.loads(out.read_text())
    last_layer_curves.main([*asked, "--epsilons", "4,8"])
    found = json.loads(out.read_text())
    assert found["runs"]["one-step"]["8"] == first["runs"]["one-step"]["8"]  # not run again
    assert all(0.99 * 4 < run["epsilon"] <= 4.0 for run in found["runs"]["least-squares"]["4"])
    assert "| least-squares | " in capsys.readouterr().out
    stems = [path.stem for path in plot_last_layer.draw(out, tmp_path)]
    assert stems[::2] == ["last-layer-digits-methods", "last-layer-digits-one-step"]


def test_curves_of_something_else_are_not_mixed_in(tmp_path):
    out = tmp_path / "digits.json"
    out.write_text(json.dumps({"features": "adult"}))
    with pytest.raises(SystemExit, match="holds figures of something else"):
        last_layer_curves.main(["--features", "digits", "--out", str(out)])
