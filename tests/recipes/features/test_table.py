"""The recipe `table`: a person's own columns, encoded by what is public, and a private layer on them."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.errors import ConfigError, DataError
from reticent.recipes import describe, go_on, request, run
from reticent.recipes.features._columns import columns_of, table_features

SAID = "columns=age=18..99,bmi=10..60.1,smoker=no|yes|was"  # no cell lies in the middle


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "bmi", "smoker", "ill"], *rows])
    return path


def people(count=600, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        age, bmi, smoker = rng.integers(18, 98), rng.normal(27, 5), rng.choice(["no", "yes", "was"])
        ill = (age - 58) / 20 + (bmi - 27) / 5 + (smoker == "yes") + rng.normal(0, 0.5) > 0.3
        rows.append([int(age), f"{bmi:.1f}", str(smoker), int(ill)])
    return rows


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "people.csv", people())


def asked_for(table, *more):
    return request("table", [f"data={table}", "label_column=ill", "labels=0,1", SAID, *more])


def encoded(rows):
    """What the page says of the encoding, cell by cell; nothing of ours in it."""
    return [
        [
            2 * (min(max(float(age), 18), 99) - 18) / 81 - 1,
            2 * (min(max(float(bmi), 10), 60.1) - 10) / 50.1 - 1,
            *(float(smoker == value) for value in ("no", "yes", "was")),
        ]
        for age, bmi, smoker, _ in rows
    ]


def test_cells_become_what_the_page_says_whichever_part_they_are_in(tmp_path, table):
    rows = [*people(100), [5, "99.5", "yes", 1]]  # outside of the limits
    features = table_features(asked_for(write(tmp_path / "a.csv", rows)).config.file)
    assert (len(features.train), len(features.test), features.shape.dim) == (91, 10, 5)
    found = np.concatenate([features.train.x, features.test.x])
    expected = np.float32(encoded(rows))
    order = [np.lexsort(part.T) for part in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-6)
    labels = np.concatenate([features.train.y, features.test.y])
    assert labels[order[0]].tolist() == [rows[k][-1] for k in order[1]]


def test_a_row_has_no_say_in_any_other_row_s_features(tmp_path):
    rows = people(60)
    before = table_features(asked_for(write(tmp_path / "a.csv", rows)).config.file)
    for k in range(0, 60, 7):
        changed = [*rows[:k], [1e9, "-1e9", "was", 1 - rows[k][-1]], *rows[k + 1 :]]
        after = table_features(asked_for(write(tmp_path / f"{k}.csv", changed)).config.file)
        moved = sum(
            int((one.x != other.x).any(axis=1).sum())
            for one, other in ((before.train, after.train), (before.test, after.test))
        )
        assert moved == 1


def test_a_file_becomes_a_private_model_in_one_command(tmp_path, table, seeded):
    arguments = ["train", "table", "--out", str(tmp_path / "run"), "--json"]
    for setting in (f"data={table}", "label_column=ill", "labels=0,1", SAID, "epsilon=3", "twin=true"):
        arguments += ["--set", setting]
    shown = CliRunner().invoke(main, arguments, catch_exceptions=False)
    result = json.loads(shown.stdout.splitlines()[-1])
    assert result["private"] and 2.9 < result["epsilon"] <= 3.0
    assert result["recipe"] == "table"
    assert result["test_accuracy"] > 0.75 and result["twin"]["test_accuracy"] > 0.8
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["plan"]["num_examples"] == 540
    assert "NOT private" in about["data"]["scored"]
    assert (tmp_path / "run" / "report.html").exists()
    assert go_on(tmp_path / "run")["epsilon"] == result["epsilon"]
    for command in (["verify"], ["account"]):
        assert CliRunner().invoke(main, [*command, str(tmp_path / "run")]).exit_code == 0


def test_another_file_to_score_on_is_public_and_all_rows_are_trained_on(tmp_path, table):
    other = write(tmp_path / "other.csv", people(50, seed=1))
    result = run(asked_for(table, f"test_data={other}"), out=tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["plan"]["num_examples"] == 600 and "scored" not in about["data"]
    assert result["private"]


def test_delta_is_below_one_over_the_number_of_rows_unless_it_is_given(tmp_path, table, monkeypatch):
    assert describe(asked_for(table))["delta"] == 1e-5
    monkeypatch.setattr("reticent.recipes.features.table.num_rows", lambda file: 1_000_000)
    assert asked_for(table).config.delta == 1_000_000**-1.1
    assert asked_for(table, "delta=1e-6").config.delta == 1e-6


@pytest.mark.parametrize(
    ("place", "cell", "column"),
    [(0, "", "age"), (0, "old", "age"), (1, "nan", "bmi"), (2, "", "smoker"), (2, "No", "smoker")],
)
def test_holes_are_counted_and_refused_or_become_zeros(tmp_path, place, cell, column):
    rows = people(40)
    rows[5][place] = cell
    write(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=rf"in '{column}' \(1\)") as e:
        asked_for(tmp_path / "a.csv")
    assert e.value.code == "table-cells"
    assert cell == "" or f" {cell} " not in str(e.value)
    taken = asked_for(tmp_path / "a.csv", "missing=zero").config.file
    features = table_features(taken)
    found = np.concatenate([features.train.x, features.test.x])
    own = slice(place, place + 1) if place < 2 else slice(2, 5)
    assert int((found[:, own] == 0).all(axis=1).sum()) == 1


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"data": None}, "data: is missing"),
        ({"data": "nothing.csv"}, "is no file or folder"),
        ({"labels": None}, "labels must be two"),
        ({"labels": "0"}, "labels must be two"),
        ({"columns": None}, r"columns is missing.*The file has: age, bmi, smoker"),
        ({"columns": "age=98..18"}, "columns: 'age=98..18' is neither"),
        ({"columns": "age=0..inf"}, "columns: 'age=0..inf' is neither"),
        ({"columns": "age"}, "columns: 'age' is neither"),
        ({"columns": "smoker=no|no"}, "is neither"),
        ({"columns": "age=18..98,age=18..99"}, "names a column twice"),
        ({"columns": "ill=0|1"}, "names the labels' column 'ill'"),
        ({"features": "digits"}, "features is of last-layer"),
        ({"test_data": "people.csv"}, "these are the private rows"),
        ({"test_data": "other.csv", "test_fraction": "0.2"}, "test_fraction would be ignored"),
    ],
)
def test_what_is_not_said_or_cannot_be_is_a_problem_with_the_way_out(table, changed, problem, monkeypatch):
    monkeypatch.chdir(table.parent)
    said = {"data": "people.csv", "label_column": "ill", "labels": "'0,1'", "columns": SAID[8:], **changed}
    with pytest.raises(ConfigError, match=problem) as e:
        request("table", [f"{name}={value}" for name, value in said.items() if value is not None])
    assert e.value.code == "config"


@pytest.mark.parametrize(
    ("data", "test"), [("both", "both/train"), ("both/train", "both"), ("linked", "both")]
)
def test_the_training_split_of_a_folder_is_not_scored_as_public(tmp_path, data, test):
    (tmp_path / "both" / "train").mkdir(parents=True)
    (tmp_path / "both" / "dataset_dict.json").write_text("{}")
    (tmp_path / "linked").symlink_to(tmp_path / "both")
    with pytest.raises(ConfigError, match="these are the private rows"):
        asked_for(tmp_path / data, f"test_data={tmp_path / test}")


def test_a_column_or_label_that_is_not_there_is_named_without_values(table):
    with pytest.raises(DataError, match="no column 'height'; it has: age") as e:
        table_features(asked_for(table, "columns=height=1..3").config.file)
    assert e.value.code == "data-column"
    with pytest.raises(DataError, match="must be one of no, yes") as e:
        table_features(asked_for(table, "labels=no,yes").config.file)
    assert e.value.code == "data-labels"


def test_columns_are_read_with_blanks_signs_and_exponents():
    columns, problems = columns_of(" a b = -1.5 .. 1e3 , c = x | y z ")
    assert problems == []
    assert [(c.name, c.limits, c.values) for c in columns] == [
        ("a b", (-1.5, 1000.0), ()),
        ("c", None, ("x", "y z")),
    ]
