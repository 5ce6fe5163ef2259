"""`benchmarks.steps`: whole private steps beside non-private ones."""

import json
import sys

import pytest

from benchmarks import steps


def test_both_kinds_of_step_are_timed_and_train_the_model() -> None:
    found = steps.measure("tiny", 2, chunks=3, warm=1, ways=(steps.BASE, "private"))
    assert found["seconds"].keys() == {"non-private", "private"}
    (ratio,) = found["ratios"].values()
    assert 0 < ratio["least"] <= ratio["median"] <= ratio["largest"]
    assert 0 < found["noise_share"] < 1


def test_a_step_without_privacy_moves_the_weights_by_the_mean_of_its_chunks() -> None:
    once, twice = (steps._work("tiny", "cpu") for _ in range(2))
    steps.plain_step(once, 1, compile=False)()
    steps.plain_step(twice, 2, compile=False)()
    begun = steps._work("tiny", "cpu").trainable()
    for name, weight in once.trainable().items():
        assert (weight != begun[name]).any()
        assert weight.sub(twice.trainable()[name]).abs().max() < 1e-7


def test_figures_are_printed_and_written(monkeypatch, capsys, tmp_path) -> None:
    command = "steps --case tiny --eager --rounds 1 --warm 0 --json".split()
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "steps.json")])
    steps.main()
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "steps.json").read_text())


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--chunks", "0"], ["--warm", "-1"], ["--case", "x"]])
def test_what_cannot_be_timed_is_refused(monkeypatch, wrong: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["steps", *wrong])
    with pytest.raises(SystemExit) as stopped:
        steps.main()
    assert stopped.value.code == 2
