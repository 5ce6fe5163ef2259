"""Settings chosen at small batches: by held-out rows, one budget for all, and on from where it stopped."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.data import ArrayPair
from reticent.errors import ConfigError, DataError
from reticent.recipes import _training, make_config
from reticent.recipes.vision import _recipe
from reticent.sweep import _simulations, _trial, read_simulations, simulate_each
from tests.support.made_up import made_up

LARGE = ["expected_batch_size=600", "num_steps=2", "noise_multiplier=2", "epsilon=3", "model=mlp-4", "ema=0"]
HELD_OUT = [*LARGE, "validation=200"]
LEARNS = [*HELD_OUT, "num_steps=12", "model=mlp-32"]


def images(count, rng):
    """Rows of which the label is told by where they are bright."""
    y = rng.integers(0, 10, count)
    x = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    x[np.arange(count), 2 * y + 3] += 190
    return ArrayPair(x, y)


@pytest.fixture(scope="module")
def mnist():
    rng = np.random.default_rng(0)
    return made_up("mnist", images(60_000, rng), images(20, rng))


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, mnist):
    monkeypatch.setattr(_recipe, "load", lambda *_, **__: mnist)


def simulate(*arguments, settings=HELD_OUT):
    sets = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(main, ["simulate", "mnist", "--batch-size", "150", *sets, *arguments])


def test_the_best_by_held_out_rows_is_told_with_its_large_runs_plan(tmp_path, in_process):
    out = tmp_path / "out"
    done = simulate(
        "--try", "lr=1e-6,0.5", "--try", "max_norm=1", "--out", str(out), "--json", settings=LEARNS
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert [trial["settings"]["lr"] for trial in said["trials"]] == [0.5, 1e-6]
    first, last = said["trials"]
    assert first["score"] > last["score"]
    assert first["score"] == said["result"]["test_accuracy"] and "NOT private" in said["result"]["scored"]
    assert said["private"] is False and "NOT private" in said["note"]
    assert said["stands_for"]["expected_batch_size"] == 600 and said["stands_for"]["epsilon"] <= 3
    assert said["simulation"]["noise_multiplier"] == 2 * 150 / 600
    assert "--set lr=0.5" in said["command"] and "expected_batch_size=600" in said["command"]
    assert "validation" in said["command"] and "validation" not in said["command_on_all_rows"]
    assert "--set lr=0.5" in said["command_on_all_rows"]
    small = json.loads((out / "trials" / "0001" / "run.json").read_text())["config"]
    assert (small["expected_batch_size"], small["noise_multiplier"], small["lr"]) == (150, 0.5, 0.5)
    assert json.loads((out / "trials" / "0001.json").read_text())["private"] is False
    again = simulate("--try", "lr=1e-6,0.5", "--try", "max_norm=1", "--out", str(out), settings=LEARNS)
    assert in_process == [0, 1]  # nothing ran twice
    assert "Tried, NOT private" in again.stdout and "reticent train mnist" in again.stdout
    assert again.stdout.index("held-out accuracy") < again.stdout.index("stands for")
    assert "or on all rows" in again.stdout


def test_seeds_of_one_setting_are_averaged(tmp_path, in_process):
    asked = read_simulations("mnist", HELD_OUT, ["lr=1,2", "seed=1,2"], batch_size=150)
    said = simulate_each(asked, out=tmp_path / "out")
    assert [len(trial["runs"]) for trial in said["trials"]] == [2, 2]
    scores = [
        json.loads((tmp_path / "out" / "trials" / f"{k:04d}.json").read_text())["result"]["test_accuracy"]
        for k in range(4)
    ]
    means = {1: np.mean(scores[:2]), 2: np.mean(scores[2:])}
    assert {trial["settings"]["lr"]: trial["score"] for trial in said["trials"]} == pytest.approx(means)


def test_an_interrupted_one_goes_on_and_another_is_refused(tmp_path, in_process, monkeypatch):
    asked = read_simulations("mnist", HELD_OUT, ["lr=0.5,1,2"], batch_size=150)
    real = _trial.run_trial

    def interrupted(recipe, trial, threads):
        if trial.index == 1:
            raise KeyboardInterrupt
        real(recipe, trial, threads)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_trial, "run_trial", interrupted)
        simulate_each(asked, out=tmp_path / "out")
    kept = (tmp_path / "out" / "trials" / "0000" / "ledger.jsonl").read_bytes()
    assert len(simulate_each(asked, out=tmp_path / "out")["trials"]) == 3
    assert in_process == [0, 1, 1, 2]
    assert (tmp_path / "out" / "trials" / "0000" / "ledger.jsonl").read_bytes() == kept
    other = read_simulations("mnist", HELD_OUT, ["lr=0.5,1"], batch_size=150)
    with pytest.raises(ConfigError, match="another simulation") as e:
        simulate_each(other, out=tmp_path / "out")
    assert e.value.code == "simulation"


def test_a_bad_trial_is_told_and_the_others_are_ranked(tmp_path, in_process):
    done = simulate("--try", "model=mlp-4,wrn-11-1", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "failed: A Wide ResNet's depth" in " ".join(done.stdout.split())
    assert "--set model=mlp-4" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("settings", "tried", "code", "why"),
    [
        (LARGE, "lr=1,2", "simulation-choice", "scores of the test rows.*set validation=N"),
        (HELD_OUT, "epsilon=1,2", "simulation-choice", "one budget.*give epsilon by --set"),
        (LARGE, "validation=100,200", "simulation-choice", "same rows"),
        (HELD_OUT, "lr", "sweep", "--try 'lr' is not key=value,value"),
        (HELD_OUT, "lr=1,-1", "config", "lr: input should be greater than 0"),
        (HELD_OUT, "expected_batch_size=600,100", "simulation", "below the run's, 100"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_trained(tmp_path, settings, tried, code, why):
    out = tmp_path / "out"
    done = simulate("--try", tried, "--out", str(out), settings=settings)
    assert done.exit_code != 0 and not out.exists()
    with pytest.raises(ConfigError, match=why) as e:
        read_simulations("mnist", settings, [tried], batch_size=150)
    assert e.value.code == code


@pytest.mark.parametrize("tried", ["test_fraction=0.1,0.3", "user_column=none,author", "max_examples=20,40"])
def test_what_decides_the_rows_is_not_tried(tried):
    with pytest.raises(ConfigError, match="on the same rows") as e:
        read_simulations("text-generate", ["data=rows.jsonl"], [tried], batch_size=8)
    assert e.value.code == "simulation-choice"


def test_other_numbers_of_rows_are_refused_whatever_the_setting(monkeypatch):
    monkeypatch.setattr(_simulations, "_SHARED", ())
    with pytest.raises(ConfigError, match="how many rows there are") as e:
        read_simulations("mnist", HELD_OUT, ["validation=100,200"], batch_size=150)
    assert e.value.code == "simulation-choice"


def test_a_recipe_that_holds_no_rows_out_is_refused():
    with pytest.raises(ConfigError, match="'digits' has no setting that holds training rows out") as e:
        read_simulations("digits", [], ["lr=1,2"], batch_size=60)
    assert e.value.code == "simulation-choice"


def test_the_outcome_of_a_recipe_that_replaced_this_one_is_none(tmp_path, in_process, monkeypatch):
    def unreachable(*_, **__):
        raise DataError("no source", code="data-sources")

    def short(kind, settings):
        return make_config(kind, {**settings, "num_steps": 1})

    asked = read_simulations("fashion-mnist", HELD_OUT, ["lr=1,2"], batch_size=150)
    with monkeypatch.context() as patch:
        patch.setattr(_recipe, "load", unreachable)
        patch.setattr(_training, "make_config", short)
        with pytest.raises(DataError, match="simulates nothing"):
            simulate_each(asked, out=tmp_path / "out")
    assert simulate_each(asked, out=tmp_path / "out")["result"]["recipe"] == "fashion-mnist"
    assert in_process == [0, 0, 1]


def test_a_dry_run_says_what_each_would_be_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = json.loads(simulate("--try", "lr=1,2", "--dry-run", "--json").stdout)
    assert [trial["settings"] for trial in said["trials"]] == [{"lr": 1}, {"lr": 2}]
    assert said["trials"][0]["simulation"]["noise_multiplier"] == 0.5
    assert "NOT private" in said["note"] and list(tmp_path.iterdir()) == []


def test_options_of_a_choice_alone_are_refused():
    assert "--try" in simulate("--score", "loss").output
