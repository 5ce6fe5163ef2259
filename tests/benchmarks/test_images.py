"""The benchmarks of images: each rung of the ladder is a run, and its table is what the runs say."""

import json
from typing import Any

import pytest

from benchmarks import augmult, ladder
from reticent.recipes import make_config, recipes


def test_every_rung_is_a_run_of_as_many_images():
    for index in range(len(ladder.LADDER)):
        config: Any = make_config(recipes()["cifar10"].config, ladder.settings_of(index))
        assert config.expected_batch_size * config.num_steps == ladder.IMAGES


def put(folder, accuracy):
    folder.mkdir(parents=True)
    result = {"test_accuracy": accuracy, "epsilon": 7.9, "seconds": 3.0}
    (folder / "result.json").write_text(json.dumps(result))


def test_a_gain_is_over_the_rung_before_seed_by_seed_and_nothing_runs_twice(tmp_path):
    for rung, accuracies in ((0, (0.3, 0.4)), (1, (0.35, 0.47)), (3, (0.5,))):
        for seed, accuracy in enumerate(accuracies):
            put(tmp_path / f"rung-{rung}-seed-{seed}", accuracy)
    found = list(ladder.results("cifar10", range(7), [0, 1], 8.0, tmp_path, new=0))
    rows = ladder.summary(found)
    assert [row["rung"] for row in rows] == [0, 1, 3]
    assert rows[1]["gain"] == pytest.approx(0.06)
    assert rows[1]["gain_spread"] == pytest.approx(0.02 / 2**0.5)
    assert rows[2]["gain"] is None and rows[2]["spread"] is None
    assert "| + group norm | 41.0 ± 8.5 | +6.0 ± 1.4 | 2 | 3 |" in ladder.table(rows)
    drawn = ladder.plot(rows, tmp_path, recipe="cifar10", epsilon=8.0)
    assert [path.name for path in drawn] == ["ladder-cifar10.svg", "ladder-cifar10.png"]


def test_steps_on_views_are_timed_beside_plain_ones():
    found = augmult.measure("mlp-8", batch=6, side=8, views=3, rounds=2, colour=0.1)
    assert found["views"] == 3 and found["time_ratio"] > 0
    assert 0 < found["augmentation_share"] < 1
