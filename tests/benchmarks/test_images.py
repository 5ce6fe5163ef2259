"""The benchmarks of images: each rung of the ladder is a run, and its table is what the runs say."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import augmult, finetune, ladder, runs
from reticent.data import ArrayPair
from reticent.errors import ConfigError
from reticent.recipes import make_config, recipes, request, run
from reticent.train import load_tensors
from tests.support.made_up import made_up


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_every_rung_is_a_run(name):
    recipe: Any = recipes()[name]
    for index in range(len(ladder.LADDER)):
        config = make_config(recipe.config, ladder.settings_of(index))
        assert ladder.LADDER[index].weights == "last" or config.ema > 0
        model, rows = recipe.build(config), recipe.random_rows(config, 2)
        assert recipe.loss_per_example(config)(model, rows).shape == (2,)


def test_a_gain_is_over_the_rung_before_seed_by_seed(tmp_path):
    found = [
        (rung, seed, {"scores": {"last": {"accuracy": accuracy}}, "epsilon": 7.9, "seconds": 3.0})
        for rung, accuracies in ((0, (0.3, 0.4)), (1, (0.35, 0.47)), (3, (0.5,)))
        for seed, accuracy in enumerate(accuracies)
    ]
    rows = ladder.summary(found)
    assert [row["rung"] for row in rows] == [0, 1, 3]
    assert rows[1]["gain"] == pytest.approx(0.06)
    assert rows[1]["gain_spread"] == pytest.approx(0.02 / 2**0.5)
    assert rows[2]["gain"] is None and rows[2]["spread"] is None
    assert "| + group norm | 41.0 ± 8.5 | +6.0 ± 1.4 | 2 | 3 |" in ladder.table(rows)
    drawn = ladder.plot(rows, tmp_path, recipe="cifar10", epsilon=8.0)
    assert drawn.name == "ladder-cifar10.png" and drawn.read_bytes().startswith(b"\x89PNG")


def test_an_average_of_weights_is_scored_in_the_run_of_the_rung_below(tmp_path, monkeypatch):
    taken = []

    def trained(recipe, settings, folder):
        taken.append((folder.name, settings["augmult"]))
        scores = {"last": {"accuracy": 0.5}, "ema": {"accuracy": 0.6}}
        return {"scores": scores, "epsilon": 7.9, "seconds": 3.0}

    monkeypatch.setattr(ladder, "trained", trained)
    index = next(i for i, rung in enumerate(ladder.LADDER) if rung.weights == "ema")
    new = float("inf")
    found = list(ladder.results("cifar10", [index - 1, index, index + 1], [1], 8.0, tmp_path, new=new))
    assert [name for name, _ in taken] == [f"rung-{index - 1}-seed-1"] * 2 + [f"rung-{index + 1}-seed-1"]
    assert [row["mean"] for row in ladder.summary(found)] == [0.5, 0.6, 0.6]


def test_a_kept_run_is_found_again_and_never_taken_for_one_of_other_settings(tmp_path, monkeypatch):
    settings = {"num_steps": 2, "epsilon": 8}
    folder = tmp_path / "run"
    result = run(request("digits", [f"{k}={v}" for k, v in settings.items()]), out=folder)
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    assert runs.trained("digits", settings, folder)["ledger_head"] == result["ledger_head"]
    for recipe, other in (("digits", {**settings, "epsilon": 3}), ("mnist", settings)):
        with pytest.raises(ConfigError, match=r"holds another run.*\[other-run\]"):
            runs.trained(recipe, other, folder)


def test_steps_on_views_are_timed_beside_plain_ones():
    found = augmult.measure("mlp-8", batch=6, side=8, views=3, rounds=2, colour=0.1, hue=0.1)
    assert found["views"] == 3 and found["time_ratio"] > 0
    assert 0 < found["augmentation_share"] < 1


def tiny(count):
    rng = np.random.default_rng(0)

    def pair(each):
        shape = (10 * each, 16, 16, 3)
        return ArrayPair(rng.integers(0, 256, shape, dtype=np.uint8), np.arange(10).repeat(each))

    return made_up("cifar10", pair(count), pair(2), class_names=tuple("abcdefghij"))


def test_the_halves_share_no_class_and_hold_every_image_once(tmp_path):
    assert set(finetune.PUBLIC).isdisjoint(finetune.PRIVATE)
    found = tiny(3)
    seen = {}
    for name, classes in (("public", finetune.PUBLIC), ("private", finetune.PRIVATE)):
        folder = finetune.write_half(found, classes, tmp_path / name)
        seen[name] = {path.parent.name: path for path in sorted(folder.glob("train/*/*.png"))}
        assert len(list(folder.glob("train/*/*.png"))) == 15 and len(list(folder.glob("test/*/*.png"))) == 10
    assert set(seen["public"]) == set("acegi") and set(seen["private"]) == set("bdfhj")
    with Image.open(seen["private"]["d"]) as image:
        assert np.array_equal(np.array(image), found.train.x[3 * 3 + 2])


def test_the_table_of_arms_tells_what_is_private():
    def result(accuracy, epsilon):
        return {"test_accuracy": accuracy, "epsilon": epsilon, "seconds": 9.0}

    found = {
        1: {"pretraining": result(0.8, None), "head": result(0.6, 2.98)},
        2: {"pretraining": result(0.82, None), "head": result(0.62, 2.99)},
    }
    rows = finetune.summary(found)
    assert [row["arm"] for row in rows] == ["pretraining", "head"]
    assert rows[1]["epsilon"] == 2.99 and rows[1]["mean"] == pytest.approx(0.61)
    shown = finetune.table(rows)
    assert "for its own classes) | none | 81.0 ± 1.4 | 2 | 9 |" in shown
    assert "| the head alone | 2.990 | 61.0 ± 1.4 | 2 | 9 |" in shown


@pytest.mark.slow
def test_each_arm_goes_on_from_the_public_weights_and_nothing_runs_twice(tmp_path, monkeypatch):
    halves = tuple(
        finetune.write_half(tiny(20), classes, tmp_path / name)
        for name, classes in (("public", finetune.PUBLIC), ("private", finetune.PRIVATE))
    )
    few = {"num_steps": 2, "expected_batch_size": 20, "image_size": 16}
    more = {arm: few for arm in ("pretraining", *finetune.ARMS)}
    args: Any = (1, list(finetune.ARMS), halves, tmp_path / "runs", {"epsilon": 8, "delta": 1e-3}, more)
    found = finetune.one_seed(*args)
    assert not found["pretraining"]["private"]
    assert all(found[arm]["private"] and found[arm]["epsilon"] <= 8 for arm in finetune.ARMS)
    first = load_tensors(tmp_path / "runs" / "pretraining-seed-1" / "weights.safetensors")[0]
    head = load_tensors(tmp_path / "runs" / "head-seed-1" / "weights.safetensors")[0]
    moved = {name for name in first if not torch.equal(first[name], head[name])}
    assert moved == {name for name in first if ".head." in name}
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    again = finetune.one_seed(*args)
    kept = finetune.one_seed(*args, kept_only=True)
    for other in (again, kept):
        assert {arm: result["weights_sha256"] for arm, result in other.items()} == {
            arm: result["weights_sha256"] for arm, result in found.items()
        }
    with pytest.raises(ConfigError, match="other-run"):
        finetune.one_seed(*args[:4], {"epsilon": 3, "delta": 1e-3}, more)
