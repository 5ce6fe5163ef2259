"""The benchmark of last layers: every figure is there, and the sums it times are real ones."""

import json

import pytest

from benchmarks import last_layer


@pytest.mark.parametrize("name", last_layer.STATISTICS)
def test_a_pass_over_a_small_store_gives_every_figure(tmp_path, name):
    last_layer.make_store(tmp_path / "store", 300, 16, 3, "float16")
    figures = last_layer.one_pass(name, tmp_path / "store", 1)
    assert figures.keys() == {"seconds", "limit_seconds", "ratio", "cpu_ratio", "noise_seconds", "peak_mib"}
    assert all(value > 0 for value in figures.values())


def test_the_command_writes_its_results_and_leaves_no_store(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--rows", "200", "--dim", "8", "--classes", "2", "--statistics", "one-step"]
    last_layer.main([*arguments, "--folder", str(tmp_path), "--out", str(out)])
    assert json.loads(out.read_text())["statistics"]["one-step"]["200"]["seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
