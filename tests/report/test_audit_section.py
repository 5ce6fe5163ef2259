"""The page's audit section: what was measured beside what is claimed, and what neither means."""

import json

import pytest
from PIL import Image

from reticent.errors import ConfigError
from reticent.report import write_report
from tests.report.runs import make_run
from tests.report.test_page import outline

FOUND = {
    "format": 1,
    "target": "runs/a",
    "passed": True,
    "refuted": False,
    "epsilon_claimed": 2.99962,
    "epsilon_lower_bound": 2.1,
    "epsilon_attack_at_most": 3.4,
    "confidence": 0.999,
    "delta": 1e-5,
    "method": "step-level white-box canaries: 1000 canaries",
    "canaries": "gradients, dirac directions",
    "num_canaries": 1000,
    "num_steps": 100,
    "probes": [{"name": "noise size", "passed": True, "finding": "1.001 of the claimed standard deviation"}],
    "curve": {
        "about": "one step",
        "claimed": [[1e-3, 0.01], [1e-2, 0.05], [1.0, 1.0]],
        "measured": [[1e-3, 0.009, 0.0, 0.011], [1e-2, 0.045, 0.04, 0.05], [1.0, 1.0, 0.99, 1.0]],
    },
    "pictures": [],
}


def page(tmp_path, **changes):
    folder = make_run(tmp_path / "run")
    (folder / "audit.json").write_text(json.dumps({**FOUND, **changes}))
    return write_report(folder).path.read_text(encoding="utf-8")


def test_the_section_states_claim_bound_and_what_they_mean(tmp_path):
    seen = outline(page(tmp_path))
    text = " ".join(" ".join(seen.text).split())
    for words in (
        "ε claimed 3 at δ = 1e-05",
        "2.1 at 99.9 % confidence",
        "2.1 to 3.4",
        "no proof that none does",
        "noise size agrees with the plan",
        "made-up rows",
    ):
        assert words in text, words
    assert "does not hold" not in text
    assert {"audit-roc-title", "audit-trade-off-title"} <= set(seen.ids)


def test_a_refuted_claim_and_a_failed_probe_are_loud(tmp_path):
    refuted = page(tmp_path / "a", passed=False, refuted=True, epsilon_lower_bound=9.5)
    assert "The claim does not hold" in refuted and "9.5" in refuted
    failed = page(
        tmp_path / "b", passed=False, probes=[{"name": "sensitivity", "passed": False, "finding": "1.4"}]
    )
    assert "A probe failed" in failed and "FAILED: 1.4" in failed


def test_what_was_not_tested_does_not_agree_with_the_plan(tmp_path):
    rare = {"name": "sampling", "passed": True, "finding": "too few draws", "tested": False}
    text = page(tmp_path, probes=[rare])
    assert "not tested: too few draws" in text and "agrees with the plan: too few" not in text


def test_the_exposure_of_random_tokens_is_told(tmp_path):
    exposure = {"bits_in": 4.25, "bits_out": 1.4, "rank_in": 51, "rank_out": 480, "num_references": 1000}
    text = page(tmp_path, canaries="inputs, random tokens", exposure=exposure)
    assert "4.25 bits" in text and "1.44 bits on average" in text and "finished model's losses" in text


def test_without_an_audit_there_is_no_section(tmp_path):
    folder = make_run(tmp_path / "run")
    assert ">Audit</h2>" not in write_report(folder).path.read_text(encoding="utf-8")


def test_bounds_that_are_infinite_and_audits_without_curves_are_shown(tmp_path):
    text = page(tmp_path, epsilon_lower_bound=None, epsilon_attack_at_most=None, refuted=True, curve=None)
    assert "at least ∞" in text and "audit-roc" not in text


def test_pictures_are_embedded_and_only_from_the_folder(tmp_path):
    named = [{"file": "side-by-side.png", "caption": "original <and> reconstruction"}]
    (tmp_path / "a").mkdir()
    folder = make_run(tmp_path / "a" / "run")
    Image.new("L", (4, 4)).save(folder / "side-by-side.png")
    (folder / "audit.json").write_text(json.dumps({**FOUND, "pictures": named}))
    text = write_report(folder).path.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text and "original &lt;and&gt; reconstruction" in text
    for bad in ("../secret.png", "missing.png", "run.json"):
        (folder / "audit.json").write_text(json.dumps({**FOUND, "pictures": [{"file": bad}]}))
        with pytest.raises(ConfigError, match="not a PNG") as caught:
            write_report(folder)
        assert caught.value.code == "run-folder"


def test_a_damaged_audit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"audit.json' is not in the format") as caught:
        page(tmp_path, epsilon_claimed="three")
    assert caught.value.code == "run-folder"
