"""`reticent audit`: a claim held up or refuted, from a run, a recipe or a function."""

import json
import sys
import textwrap

import pytest
from click.testing import CliRunner

from reticent.cli._app import main
from reticent.recipes import request, run

CONTRACT = {"epsilon_claimed", "epsilon_lower_bound", "confidence", "method"}
SMALL = ["--canaries", "60", "--steps", "8", "--no-probes"]
SURE = ["--confidence", "0.999999"]  # so seldom is a right trainer refuted


def audit(*args):
    done = CliRunner().invoke(main, ["audit", *args], standalone_mode=True)
    found = json.loads(done.stdout.splitlines()[-1]) if "--json" in args and done.exit_code in (0, 1) else {}
    return done, found


@pytest.fixture
def trainers(tmp_path, monkeypatch):
    """A module with trainers in the working directory."""
    (tmp_path / "my_trainers.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            import torch
            from tests.audit import planted

            right = planted.trainer()
            silent = planted.trainer(noise=planted.no_noise)
            number = 3

            def two(problem, more):
                pass

            def forgets(rows):
                return torch.nn.Linear(64, 10)

            def remembers(rows):
                seen = {(x.tobytes(), int(y)) for x, y in zip(rows.x, rows.y)}
                return lambda asked: np.array(
                    [(x.tobytes(), int(y)) not in seen for x, y in zip(asked.x, asked.y)], dtype=float
                )
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("my_trainers", None)


def test_a_recipe_is_audited_without_its_data(monkeypatch):
    monkeypatch.setattr("reticent.recipes._arrays.load", None)
    done, found = audit("digits", *SMALL, *SURE, "--json")
    assert done.exit_code == 0, done.stderr
    assert found.keys() >= CONTRACT
    assert 0.0 <= found["epsilon_lower_bound"] <= found["epsilon_claimed"] <= 3.0
    assert "taken for granted" in found["method"] and found["confidence"] == 0.999999
    assert found["audit"] is None


@pytest.mark.parametrize("kind", [[], ["--inputs", "mislabelled"]])
def test_a_recipe_is_audited_by_inputs_without_its_data(monkeypatch, kind):
    monkeypatch.setattr("reticent.recipes._arrays.load", None)
    settings = ["--set", "num_steps=2", "--set", "ema=0.9", "--seed", "1"]
    done, found = audit("digits", "--how", "inputs", *kind, "--canaries", "20", *settings, "--json")
    assert done.exit_code == 0, done.stderr
    assert found["epsilon_lower_bound"] <= found["epsilon_claimed"]
    assert found["canaries"] == f"inputs, {'mislabelled' if kind else 'out of distribution'}"
    assert (found["num_steps"], found["exposure"]) == (2, None)


def test_a_run_is_held_against_its_ledger_and_keeps_the_audit(tmp_path):
    asked = request("digits", ["num_steps=4", "expected_batch_size=20", "model=logistic"])
    run(asked, out=tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("an old page")
    inputs = ["--how", "inputs", "--canaries", "20", "--seed", "1"]
    by_inputs, found = audit(str(tmp_path / "run"), *inputs, "--json")
    assert by_inputs.exit_code == 0, by_inputs.stderr
    assert found["num_steps"] == 4 and found["canaries"] == "inputs, out of distribution"
    done, found = audit(str(tmp_path / "run"), *SURE, "--json")  # of 60 canaries, none might take part
    assert done.exit_code == 0, done.stderr
    kept = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert found["audit"] == str(tmp_path / "run" / "audit.json")
    assert kept["epsilon_claimed"] == json.loads((tmp_path / "run" / "result.json").read_text())["epsilon"]
    assert kept["claim"]["num_steps"] == 4 and kept["curve"]["measured"]
    assert ">Audit</h2>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert {p["name"] for p in kept["probes"]} >= {"sensitivity", "noise size", "sampling rate"}


def test_a_function_that_adds_no_noise_is_refuted_with_status_1(trainers, tmp_path):
    args = ["--canaries", "60", "--claimed-steps", "8", "--no-probes"]
    done, found = audit("my_trainers:silent", *args, "--json", "--out", str(tmp_path / "a.json"))
    assert done.exit_code == 1
    assert found["epsilon_lower_bound"] > found["epsilon_claimed"] == 8.0
    assert json.loads((tmp_path / "a.json").read_text())["refuted"]
    right, _ = audit("my_trainers:right", *args, *SURE)
    assert right.exit_code == 0, right.stderr
    assert "nothing found against the claim" in right.stdout


def test_strange_inputs_tell_memory_from_none(trainers):
    args = ["--how", "inputs", "--canaries", "300", "--epsilon", "1", "--json"]
    remembers, found = audit("my_trainers:remembers", *args)
    assert remembers.exit_code == 1 and found["epsilon_lower_bound"] > 1.5
    forgets, found = audit("my_trainers:forgets", *args)
    assert forgets.exit_code == 0 and found["epsilon_lower_bound"] < 0.5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-recipe"], "unknown-recipe"),
        (["my_trainers:nothing"], "has no 'nothing'. [audit-target]"),
        (["no_such_module:train"], "[audit-target]"),
        (["my_trainers:number"], "is a int, not a function. [audit-function]"),
        (["my_trainers:two"], "cannot be called with one argument"),
        (["my_trainers:two", "--set", "a=1"], "the target is none"),
        (["digits", "--epsilon", "3"], "--epsilon"),
        (["digits", "--how", "inputs", "--directions", "random"], "--directions is of gradient canaries"),
        (["digits", "--inputs", "mislabelled"], "read with --how inputs"),
        (["digits", "--how", "inputs", "--inputs", "random-tokens"], "out of distribution, or mislabelled"),
        (["my_trainers:right", "--how", "inputs", "--inputs", "random-tokens"], "[audit-subject]"),
        (["digits", "--how", "one-run", "--steps", "3"], "leave --steps out"),
        (["my_trainers:right", "--steps", "3"], "--claimed-steps"),
        (["digits", "--confidence", "95"], "[audit-confidence]"),
        (["digits", "--set", "epsilon=inf"], "[audit-subject]"),
        (["last-layer", "--set", "features=x"], "["),
        (["my_trainers:right", "--sampling-prob", "2"], "[sampling-prob]"),
        (["my_trainers:right", "--how", "one-run", "--canaries", "2", "--seed", "1"], "[audit-saw-nothing]"),
    ],
)
def test_bad_targets_and_options_are_refused_in_one_line(trainers, args, words):
    done, _ = audit(*args)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done, _ = audit(str(tmp_path))
    assert done.exit_code == 2 and "[not-a-run]" in done.stderr
