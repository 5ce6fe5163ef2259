"""`reticent compare`: each run from its own ledger, what they spend together, where settings differ."""

import json
import math
import shutil

import pytest
from click.testing import CliRunner

from reticent.cli.compare import command
from reticent.errors import ConfigError, LedgerError
from reticent.report import compare
from tests.report.runs import make_run
from tests.report.test_page import outline, words


@pytest.fixture
def pair(tmp_path):
    one = make_run(tmp_path / "one", run_id="first")
    other = make_run(tmp_path / "other", run_id="second", noise_multiplier=20.0, num_steps=30, twin=False)
    return one, other


def compared(*arguments):
    shown = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert shown.exit_code == 0
    return json.loads(shown.output)


def test_each_epsilon_is_its_ledgers_and_the_runs_on_one_data_set_add_up(pair):
    told = compared(*pair)
    first, second = told["runs"]
    (together,) = told["together"]
    # 40 full batches at 10 and 30 at 20 are Gaussian mechanisms with mu^2 = 40/100 and 30/400.
    for epsilon, square in (
        (first["epsilon"], 40 / 100),
        (second["epsilon"], 30 / 400),
        (together["epsilon"], 40 / 100 + 30 / 400),
    ):
        assert delta_of_gaussian(epsilon, math.sqrt(square)) == pytest.approx(1e-5, rel=1e-3)
    assert together["runs"] == ["one", "other"]
    assert (first["test_accuracy"] > 0.86, second["twin_test_accuracy"]) == (True, None)


def delta_of_gaussian(epsilon, mu):
    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


def test_settings_that_differ_are_told_and_those_alike_are_not(pair):
    told = compared(*pair)["different"]
    assert told["twin"] == {"one": "yes", "other": "no"}
    assert told["plan.noise_multiplier"] == {"one": "10", "other": "20"}
    assert "seed" not in told and "plan.delta" not in told


def test_the_page_is_self_contained_and_marks_what_differs(pair, tmp_path):
    told = compared(*pair, "--out", tmp_path / "side.html")
    page = (tmp_path / "side.html").read_text(encoding="utf-8")
    assert told["page"] == str(tmp_path / "side.html")
    assert all(target.startswith("#") for target in outline(page).loads) and "<script" not in page
    assert "<mark>20</mark>" in page and "<mark>no</mark>" in page
    assert "one, other name the same data, fashion-mnist" in words(page)


def test_the_table_names_the_runs_and_where_the_page_is(pair):
    shown = CliRunner().invoke(command, list(map(str, pair)), catch_exceptions=False)
    assert shown.exit_code == 0
    assert all(part in shown.output for part in ("one", "other", "together, on fashion-mnist: epsilon"))
    assert str(pair[0].parent / "compare.html") in shown.output.replace("\n", "")


def test_a_run_that_is_not_private_has_no_epsilon_and_neither_have_they_together(pair, tmp_path):
    open_one = make_run(tmp_path / "open", run_id="third", reproducible=True)
    told = compared(pair[0], open_one)
    assert told["runs"][1]["epsilon"] is None and "seed" in told["runs"][1]["why_not"]
    assert told["together"][0]["epsilon"] is None
    assert "not private: open" in told["together"][0]["why_not"]
    page = (pair[0].parent / "compare.html").read_text(encoding="utf-8")
    assert page.index("NOT PRIVATE: open") < page.index("<h2")


def test_other_data_do_not_add_up_and_other_deltas_need_one_that_is_named(pair, tmp_path):
    elsewhere = make_run(tmp_path / "mnist", run_id="third", recipe="mnist")
    assert compared(pair[0], elsewhere)["together"] == []
    looser = make_run(tmp_path / "looser", run_id="fourth", delta=1e-4)
    (together,) = compared(pair[0], looser)["together"]
    assert together["epsilon"] is None and "different deltas" in together["why_not"]
    (together,) = compared(pair[0], looser, "--delta", "1e-5")["together"]
    assert together["epsilon"] > 0 and together["delta"] == 1e-5


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    folders = [make_run(tmp_path / name / "run", run_id=name) for name in ("x", "y")]
    assert [one.label for one in compare(folders).runs] == ["x/run", "y/run"]


def test_bad_input_is_said_in_a_line(pair, tmp_path):
    for folders, problem in (
        (pair[:1], r"1 was given, and a comparison needs two runs or more.*\[compare-runs\]"),
        ((pair[0], tmp_path), r"has no run\.json\. \[not-a-run\]"),
        ((pair[0], shutil.copytree(pair[0], tmp_path / "copy")), r"or a copy of it.*\[compare-runs\]"),
    ):
        with pytest.raises(ConfigError, match=problem):
            CliRunner().invoke(command, list(map(str, folders)), catch_exceptions=False)
    ledger = pair[1] / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":20', '"noise_multiplier":90'))
    with pytest.raises(LedgerError, match=str(ledger)):
        CliRunner().invoke(command, list(map(str, pair)), catch_exceptions=False)
