"""`reticent report RUN`."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from reticent.cli.report import command
from reticent.errors import ConfigError
from tests.report.runs import make_run


def test_it_prints_where_the_page_is(tmp_path):
    folder = make_run(tmp_path / "run")
    shown = CliRunner().invoke(command, [str(folder)], catch_exceptions=False)
    assert (shown.exit_code, shown.output) == (0, f"{folder / 'report.html'}\n")
    assert (folder / "report.html").is_file()


def test_json_is_one_object_with_the_number_from_the_ledger(tmp_path):
    folder = make_run(tmp_path / "run", lost=2)
    shown = CliRunner().invoke(command, [str(folder), "--json"], catch_exceptions=False)
    told = json.loads(shown.output)
    assert told["private"] is True and 0 < told["epsilon"] < 10
    assert (told["num_steps"], told["planned_steps"], told["lost_steps"]) == (40, 40, 2)
    assert told["neighbouring_relation"] == "zero-out-one"
    assert told["report"] == str(folder / "report.html")
    assert (told["sound"], told["problems"]) == (True, [])


@pytest.mark.parametrize("settings", [{"reproducible": True}, {"private": False, "ledger": False}])
def test_json_has_no_epsilon_where_none_holds(tmp_path, settings):
    folder = make_run(tmp_path / "run", **settings)
    told = json.loads(CliRunner().invoke(command, [str(folder), "--json"], catch_exceptions=False).output)
    assert told["private"] is False and told["epsilon"] is None


def test_a_bad_folder_is_our_error(tmp_path):
    with pytest.raises(ConfigError, match="There is no run folder"):
        CliRunner().invoke(command, [str(tmp_path / "nowhere")], catch_exceptions=False)


def test_as_a_program_a_bad_folder_is_one_line_and_status_two(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "reticent", "report", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "There is no run folder" in done.stderr and "[not-a-run]" in done.stderr
