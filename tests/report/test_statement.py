"""The privacy statement: computed from the ledger, and refused where none holds."""

import json
import math
import shutil

import pytest

from reticent.account import epsilon
from reticent.records import EpsilonReport, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.report import read_run, state
from reticent.report._statement import guess_accuracy, unit_of
from tests.report.runs import make_run


def statement_of(folder, **settings):
    return state(read_run(make_run(folder, **settings)), num_points=3)


def test_epsilon_is_that_of_the_steps_in_the_ledger(tmp_path):
    found = statement_of(
        tmp_path / "run",
        num_steps=25,
        planned_steps=40,
        sampling_prob=4096 / 60_000,
        noise_multiplier=1.1,
    )
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=4096 / 60_000, noise_multiplier=1.1)
    wanted = epsilon([(step, 25)], delta=1e-5, relation=NeighbouringRelation.ZERO_OUT)
    assert found.private and found.why_not is None
    assert found.report == wanted


def test_the_curve_rises_to_the_reported_epsilon(tmp_path):
    found = statement_of(tmp_path / "run", sampling_prob=0.1, noise_multiplier=1.1)
    steps, values = zip(*found.curve, strict=True)
    assert steps == (4, 18, 40)
    assert list(values) == sorted(values) and values[0] > 0
    assert values[-1] == found.report.epsilon


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"reproducible": True}, "came from a seed"),
        ({"noise_multiplier": 0.0}, "Noise was off"),
        ({"private": False, "ledger": False}, "without clipping and noise"),
        ({"private": False}, "describes itself as not private"),
    ],
)
def test_no_guarantee_is_stated_where_none_holds(tmp_path, settings, reason):
    found = statement_of(tmp_path / "run", **settings)
    assert not found.private
    assert reason in found.why_not
    assert found.curve == ()


def test_a_run_that_has_not_begun_spent_nothing(tmp_path):
    found = statement_of(tmp_path / "run", num_steps=0, twin=False)
    assert found.private and found.report.epsilon == 0 and found.curve == ()


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"delta": 1e-3}, "larger than one over the number of examples"),
        ({"num_steps": 25}, "25 of 40 steps were performed"),
        ({"lost": 3}, "Steps lost in crashes: 3."),
        ({"noise_multiplier": 1.0}, "ε is above 10"),
    ],
)
def test_what_a_reader_must_see_beside_the_number(tmp_path, settings, warning):
    found = statement_of(tmp_path / "run", twin=False, **settings)
    assert [warning in told for told in found.warnings] == [True]


def test_an_ordinary_run_has_no_warnings(tmp_path):
    assert statement_of(tmp_path / "run", twin=False).warnings == ()


def test_a_twin_is_not_covered_by_epsilon_and_that_is_said(tmp_path):
    (warning,) = statement_of(tmp_path / "run", twin=True).warnings
    assert "in the folder twin: keep both to yourself" in warning
    shutil.rmtree(tmp_path / "run" / "twin")  # its scores stay in result.json
    assert state(read_run(tmp_path / "run"), num_points=1).warnings == (warning,)


def test_without_a_public_number_of_examples_none_is_compared(tmp_path):
    assert statement_of(tmp_path / "run", num_examples=None, delta=1e-3, twin=False).warnings == ()


def test_a_stored_epsilon_that_disagrees_with_the_ledger_is_pointed_out(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "result.json").write_text(json.dumps({"private": True, "epsilon": 0.5}), encoding="utf-8")
    assert any("result.json says ε = 0.5" in told for told in state(read_run(folder), num_points=1).warnings)


def test_a_plan_that_is_not_what_ran_is_pointed_out(tmp_path):
    folder = make_run(tmp_path / "run")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about["plan"]["noise_multiplier"] = 5.0
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    assert any("not the plan's" in told for told in state(read_run(folder), num_points=1).warnings)


@pytest.mark.parametrize(("eps", "delta"), [(0.0, 1e-5), (1.0, 1e-5), (3.0, 1e-6), (0.5, 0.01)])
def test_guess_accuracy_is_that_of_the_worst_mechanism_there_is(eps, delta):
    """Randomised response with probability delta of telling the truth outright attains the bound."""
    report = EpsilonReport(
        epsilon=eps,
        delta=delta,
        epsilon_rdp=None,
        epsilon_pld=None,
        neighbouring_relation=NeighbouringRelation.ADD_OR_REMOVE,
        accountant="",
        num_steps=1,
    )
    worst = delta + (1 - delta) * math.exp(eps) / (1 + math.exp(eps))
    assert guess_accuracy(report) == pytest.approx(worst, rel=1e-12)


@pytest.mark.parametrize(
    ("part", "entry", "warning"),
    [
        ("data", {"fallback_from": "fashion-mnist", "name": "digits"}, "trained on digits instead"),
        ("settings", {"show_loss": True}, "The training loss was shown"),
        ("data", {"model_note": "smollm2: rounded to 4 bits"}, "should say: smollm2: rounded to 4 bits"),
        ("data", {"scored": "validation rows, NOT private"}, "Scores were measured on validation rows"),
    ],
)
def test_replaced_data_and_shown_losses_are_pointed_out(tmp_path, part, entry, warning):
    folder = make_run(tmp_path / "run", twin=False)
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    about[part] = {**about.get(part, {}), **entry}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    assert [warning in told for told in state(read_run(folder), num_points=1).warnings] == [True]


@pytest.mark.parametrize("relation", list(NeighbouringRelation))
def test_the_relation_in_words_names_the_unit(relation):
    assert "example" in unit_of(relation) and "user" not in unit_of(relation)
    assert "one user, with all of their rows" in unit_of(relation, "user")
    assert "example" not in unit_of(relation, "user")
