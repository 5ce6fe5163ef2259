"""`reticent sweep` from the command line."""

import json

import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.errors import ConfigError
from tests.sweep.conftest import in_process  # noqa: F401 (a fixture)
from tests.sweep.test_sweep import QUICK

SHARED = [part for setting in QUICK for part in ("--set", setting)]


def run(*arguments):
    return CliRunner().invoke(main, ["sweep", *arguments], standalone_mode=False)


def test_json_is_the_last_line_and_names_table_and_plot(tmp_path, in_process):  # noqa: F811
    done = run("digits", *SHARED, "--grid", "epsilon=1,4", "--out", str(tmp_path / "out"), "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["trials"] == {"done": 3, "failed": 0, "refused": 0}
    assert (tmp_path / "out" / "table.md").exists()
    assert result["plot"].endswith("plot.svg")


def test_people_read_that_tuning_costs_privacy(tmp_path, in_process):  # noqa: F811
    done = run("digits", *SHARED, "--grid", "lr=1,2", "--no-plain", "--out", str(tmp_path / "out"))
    assert "of all 2 together" in done.stdout
    assert "tuning on the private data" in done.stdout


def test_a_choice_states_its_epsilon(tmp_path, in_process):  # noqa: F811
    done = run(
        *("digits", *SHARED, "--grid", "lr=1,2", "--set", "epsilon=1", "--out", str(tmp_path / "out")),
        *("--validation", "public", "--trials-distribution", "poisson", "--mean-trials", "2"),
    )
    assert "epsilon of the choice: " in done.stdout


def test_a_sweep_without_a_grid_is_refused(tmp_path):
    refused = run("digits", "--out", str(tmp_path / "out"))
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.code == "sweep"
    with pytest.raises(ConfigError, match="varies something"):
        raise refused.exception
