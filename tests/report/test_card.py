"""The model card: made from the ledger, beside every kept model, and silent about paths."""

import json
import math

import pytest
import yaml

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.report import write_report
from tests.report.runs import make_run


def with_model(folder, *kinds):
    for kind in kinds or ("model",):
        (folder / kind).mkdir()
        name = "adapter_config.json" if kind == "adapter" else "config.json"
        (folder / kind / name).write_text("{}")
    return folder


def card_of(folder, kind="model"):
    write_report(folder)
    return (folder / kind / "README.md").read_text(encoding="utf-8")


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_card_states_the_epsilon_of_the_ledger(tmp_path):
    folder = with_model(make_run(tmp_path / "run"))
    card = card_of(folder)
    book = read_ledger(folder / "ledger.jsonl")
    true = epsilon(tuple(book.segments()), delta=book.delta, relation=book.relation).epsilon
    (row,) = [line for line in card.splitlines() if line.startswith("| ε |")]
    stated = float(row.split("|")[2])
    assert true <= stated <= true * 1.001
    assert "| δ | 1e-05 |" in card and "zero-out-one" in card and "norm C = 0.5" in card
    assert "differential-privacy" in front_matter(card)["tags"]


def test_the_card_does_not_believe_the_result_file(tmp_path):
    folder = with_model(make_run(tmp_path / "run"))
    wrong = json.loads((folder / "result.json").read_text()) | {"epsilon": 0.0123}
    (folder / "result.json").write_text(json.dumps(wrong))
    card = card_of(folder)
    assert "| ε | 0.0123 |" not in card
    assert "result.json says" in card  # and it says that they disagree


@pytest.mark.parametrize(
    "words", ["pretrained model", "A person whose texts", "choice of settings", "prompts"]
)
def test_the_card_says_what_is_not_protected(tmp_path, words):
    card = card_of(with_model(make_run(tmp_path / "run")))
    assert words in card.split("## What is not protected")[1]


@pytest.mark.parametrize(
    "settings", [{"reproducible": True}, {"private": False, "ledger": False}, {"noise_multiplier": 0.0}]
)
def test_a_run_without_a_guarantee_says_so_and_shows_no_epsilon(tmp_path, settings):
    card = card_of(with_model(make_run(tmp_path / "run", **settings)))
    assert "no privacy guarantee" in card and "may reveal single training examples" in card
    assert "| ε |" not in card and "differential-privacy" not in front_matter(card)["tags"]


def test_adapters_get_a_card_of_their_own(tmp_path):
    folder = with_model(make_run(tmp_path / "run"), "model", "adapter")
    assert "PeftModel" in card_of(folder, "adapter") and "PeftModel" not in card_of(folder)
    assert front_matter(card_of(folder, "adapter"))["library_name"] == "peft"


def test_a_run_without_a_kept_model_gets_no_card(tmp_path):
    folder = make_run(tmp_path / "run")
    assert write_report(folder).cards == ()
    assert not (folder / "model").exists()


def test_lost_steps_and_warnings_stand_on_the_card(tmp_path):
    card = card_of(with_model(make_run(tmp_path / "run", lost=3)))
    assert "3 lost in crashes and still counted" in card and "lost in crashes: 3" in card


def test_the_base_model_is_named_but_no_path(tmp_path):
    folder = with_model(make_run(tmp_path / "run"))
    about = json.loads((folder / "run.json").read_text())
    for name, base in (("smollm2", "smollm2"), ("/home/zoe/model", None)):
        about["config"]["model"] = name
        about["config"]["data"] = "/home/zoe/mails.jsonl"
        (folder / "run.json").write_text(json.dumps(about))
        card = card_of(folder)
        assert front_matter(card).get("base_model") == base
        assert "zoe" not in card


def test_markup_in_names_is_not_markup_on_the_card(tmp_path):
    card = card_of(with_model(make_run(tmp_path / "run", recipe="x](http://a) <script>|\n# y")))
    assert "<script>" not in card and "](http" not in card and "\n# y" not in card


def test_a_run_of_many_epsilons_stays_finite(tmp_path):
    card = card_of(with_model(make_run(tmp_path / "run", noise_multiplier=0.5, num_steps=3, planned_steps=3)))
    (row,) = [line for line in card.splitlines() if line.startswith("| ε |")]
    assert math.isfinite(float(row.split("|")[2])) and "weak" in card
