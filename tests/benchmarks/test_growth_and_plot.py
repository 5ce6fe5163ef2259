"""Exponents of growth, and what is drawn and printed from results."""

import json
from pathlib import Path

import pytest

from benchmarks import growth, plot
from benchmarks.cases import AXES, find
from benchmarks.engines import ENGINES

FIGURE = {
    "seconds": 1.0,
    "time_ratio": 1.25,
    "time_ratio_range": [1.1, 1.4],
    "memory_mib": 10.0,
    "memory_ratio": 2.0,
    "max_error": 1e-6,
}


def result(case: str, **engines: dict) -> dict:
    found = {e: {"skipped": "not picked"} for e in ENGINES}
    return {
        "case": case,
        **found,
        "non-private": FIGURE,
        **{n.replace("_", "-"): v for n, v in engines.items()},
    }


def test_the_exponent_of_a_power_is_found() -> None:
    sizes = (2, 4, 8, 16)
    assert growth.exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert growth.exponent(sizes, [None, 4.0, 16.0, 64.0]) == pytest.approx(2.0)
    assert growth.exponent(sizes, [None, None, 16.0, 64.0]) is None


@pytest.mark.parametrize("axis", list(AXES))
def test_every_axis_makes_work_of_its_size(axis: str) -> None:
    pytest.importorskip("transformers")
    small = AXES[axis][0]
    work = find(f"grown:{axis}={small}").build()
    config = work.model.config  # pyright: ignore
    seen = {
        "batch": work.batch.shape[0],
        "length": work.batch.shape[1],
        "width": config.n_embd,
        "depth": config.n_layer,
        "vocabulary": config.vocab_size,
    }
    assert seen[axis] == small


def test_an_unknown_axis_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["--axis", "colour"])
    assert "length" in capsys.readouterr().err


@pytest.mark.slow
def test_growth_is_measured_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "growth.json"
    sizes = ["--sizes", "1", "2", "3"]
    growth.main(
        ["--axis", "depth", *sizes, "--rounds", "1", "--engines", "reticent-flat,fastdp", "--out", str(out)]
    )
    assert "reticent-flat" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["sizes"] == [1, 2, 3]
    flat = results["engines"]["reticent-flat"]
    assert len(flat["seconds"]) == 3 and isinstance(flat["time_exponent"], float)
    assert len(results["engines"]["fastdp"]["skipped"]) == 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_results_become_a_table_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text(json.dumps(result("gpt2", reticent_flat=FIGURE, opacus={"skipped": "wrong by 4.5 C"})))
    two.write_text(json.dumps(result("mlp", reticent_flat={**FIGURE, "memory_ratio": None})))
    picture = tmp_path / "ratios.png"
    plot.main([str(one), str(two), "--out", str(picture)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "| case | reticent-flat | opacus |"
    assert said[2] == "| gpt2 | 1.25 / 2.0 | wrong |"
    assert said[3] == "| mlp | 1.25 / - |  |"
    assert "- opacus: wrong by 4.5 C (gpt2)" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    several = tmp_path / "several.json"
    several.write_text(json.dumps({"cases": [json.loads(f.read_text()) for f in (one, two)]}))
    plot.main([str(several)])
    assert capsys.readouterr().out.splitlines() == said[: len(said)]


def test_a_later_file_adds_and_replaces_engines(tmp_path: Path) -> None:
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text(json.dumps(result("gpt2", reticent_flat=FIGURE, opacus=FIGURE)))
    better = {**FIGURE, "time_ratio": 1.1}
    two.write_text(json.dumps(result("gpt2", reticent_flat=better)))
    (found,) = plot.load([one, two]).values()
    assert (found["reticent-flat"], found["opacus"]) == (better, FIGURE)
    assert plot.markdown({"gpt2": found}).splitlines()[2] == "| gpt2 | 1.10 / 2.0 | 1.25 / 2.0 |"


def test_a_file_that_is_no_result_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    with pytest.raises(SystemExit):
        plot.main([str(other)])
    assert "other.json" in capsys.readouterr().err
