"""The model card: made from the ledger, beside every kept model, and silent about paths."""

import hashlib
import json
import math

import pytest
import yaml

from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.report import verify_run, write_report
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
    assert "0.0123" not in card and "| ε |" not in card
    assert "do not agree" in card  # of two numbers that differ, none is stated


@pytest.mark.parametrize("kind", ["model", "adapter"])
@pytest.mark.parametrize("what", ["changed", "added", "outside", "missing"])
def test_a_card_states_no_epsilon_for_weights_that_the_run_did_not_leave(tmp_path, kind, what):
    folder = with_model(make_run(tmp_path / "run"), kind)
    weights = folder / kind / "x.safetensors"
    weights.write_bytes(b"as trained")
    noted = {f"{kind}/x.safetensors": hashlib.sha256(b"as trained").hexdigest()}
    key = "weights_sha256" if kind == "model" else "adapter_sha256"
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {key: noted}))
    assert "| ε |" in card_of(folder, kind) and "model" in verify_run(folder).checks
    match what:
        case "changed":
            weights.write_bytes(b"of another run")
        case "added":
            (folder / kind / "y.safetensors").write_bytes(b"of another run")
        case "outside":
            more = {"../x.safetensors": "0" * 64}
            (folder / "result.json").write_text(json.dumps(result | {key: noted | more}))
        case "missing":
            weights.unlink()
            assert "not there" in verify_run(folder).left_out["model"] and verify_run(folder).sound
            return
    written = write_report(folder)
    assert any(problem.startswith("model: ") for problem in written.verification.problems)
    assert "states no ε until they do" in written.path.read_text(encoding="utf-8")
    card = (folder / kind / "README.md").read_text(encoding="utf-8")
    assert "| ε |" not in card and "no privacy guarantee" in card
    assert "differential-privacy" not in front_matter(card)["tags"]


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
