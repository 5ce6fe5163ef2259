"""Image recipes from a folder to a result: views, weights of another run, going on, and bad folders."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reticent.data import ArrayPair
from reticent.errors import ConfigError, DataError
from reticent.recipes import describe, go_on, recipes, request, run
from reticent.recipes._parts import build_model
from reticent.recipes.vision import _features
from reticent.recipes.vision._assess import area_under_curve
from reticent.recipes.vision._recipe import accuracies_and_loss, losses_of_several, scores_of_several
from reticent.report import write_report
from reticent.train._checkpoint import load_tensors
from tests.support.made_up import made_up


@pytest.fixture
def folder(tmp_path):
    """Two classes of noise, one bright and one dark."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for low, name in ((0, "dark"), (128, "light")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{k}.png")
    return tmp_path / "images"


def asked_for(name, folder, *more):
    few = ["image_size=16", "expected_batch_size=20", "num_steps=3", "epsilon=8", "delta=1e-3"]
    return request(name, [f"data={folder}", *few, *more])


def test_a_folder_is_trained_on_in_views_and_assessed_class_by_class(tmp_path, folder):
    out = tmp_path / "run"
    result = run(asked_for("vision-scratch", folder, "augmult=4", "label_smoothing=0.1"), out=out)
    assert result["private"] is True
    assert result["epsilon"] <= 8.0
    assert len(result["test_class_accuracy"]) == 2
    assert result["test_disparity"] == pytest.approx(np.ptp(result["test_class_accuracy"]))
    assert 0.0 <= result["test_auc"] <= 1.0
    assert np.mean(result["test_class_accuracy"]) == pytest.approx(result["test_accuracy"])
    assert result["test_disparity_below_average"] <= 0 and result["test_disparity_ratio"] >= 1
    assert len(result["test_auc_by_class"]) == 2 and write_report(out).path.is_file()
    kept = json.loads((out / "result.json").read_text())
    assert all(kept[name] == value for name, value in result.items() if name.startswith("test_"))
    about = json.loads((out / "run.json").read_text())
    assert about["data"]["classes"] == ["dark", "light"]
    assert go_on(out)["epsilon"] == result["epsilon"]


def test_images_with_several_labels_are_trained_on_and_assessed_label_by_label(tmp_path, folder):
    for split, count in (("train", 30), ("test", 6)):
        names = [f"{kind}/{k}.png" for kind in ("dark", "light") for k in range(count)]
        rows = [f"{name},{int('light' in name)},{k % 2},1" for k, name in enumerate(names)]
        (folder / split / "labels.csv").write_text("\n".join(["file,light,odd,image", *rows]))
    asked = asked_for("vision-scratch", folder, "labels=table", "augmult=2", "colour=0.2")
    result = run(asked, out=tmp_path / "run")
    assert len(result["test_class_accuracy"]) == 3
    assert result["test_accuracy"] == pytest.approx(np.mean(result["test_class_accuracy"]))
    assert 0.0 <= result["test_auc"] <= 1.0  # of the two labels that some images have and some have not
    assert result["test_auc_by_class"][2] is None and None not in result["test_auc_by_class"][:2]
    assert result["test_all_right"] <= result["test_accuracy"]
    with pytest.raises(ConfigError, match="label_smoothing is for one class each"):
        asked_for("vision-scratch", folder, "labels=table", "label_smoothing=0.1")


def test_a_network_that_cannot_read_the_images_is_refused_before_anything_is_spent(tmp_path, folder):
    with pytest.raises(ConfigError, match="at least 32 x 32") as e:
        run(asked_for("vision-scratch", folder, "model=nf-resnet-50"), out=tmp_path / "run")
    assert e.value.code == "model-input"
    assert not (tmp_path / "run").exists()


def run_on_others(tmp_path, folder):
    """A run on another folder of images, whose weights may be called public."""
    other = shutil.copytree(folder, tmp_path / "others")
    (other / "train" / "dark" / "0.png").unlink()  # a copy as it is would be the same data
    run(asked_for("vision-scratch", other), out=tmp_path / "first")


def test_weights_of_a_run_on_the_same_images_are_refused(tmp_path, folder):
    run(asked_for("vision-scratch", folder), out=tmp_path / "first")
    for name in ("weights.safetensors", "ema.safetensors", "../first/checkpoint-000000.safetensors"):
        asked = asked_for("vision-finetune", folder, f"start_from={tmp_path / 'first' / name}")
        with pytest.raises(ConfigError, match="learned by a run on the same data") as e:
            run(asked, out=tmp_path / "second")
        assert e.value.code == "start-from"
        assert not (tmp_path / "second").exists()
    asked = asked_for(
        "vision-finetune", folder / "train", f"start_from={tmp_path / 'first' / 'ema.safetensors'}"
    )
    with pytest.raises(ConfigError, match="learned by a run on the same data"):  # its class folders alone
        run(asked, out=tmp_path / "second")


def test_from_another_folder_and_by_way_of_another_run_they_are_refused_too(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(asked_for("vision-scratch", "images"), out=tmp_path / "first")  # a relative path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    weights = "../first/ema.safetensors"
    with pytest.raises(ConfigError, match="learned by a run on the same data"):
        run(asked_for("vision-finetune", folder, f"start_from={weights}"), out=tmp_path / "second")
    other = shutil.copytree(folder, tmp_path / "others")
    with pytest.raises(ConfigError, match="learned by a run on the same data"):
        run(asked_for("vision-finetune", other, f"start_from={weights}"), out=tmp_path / "second")
    (other / "train" / "dark" / "0.png").unlink()
    run(asked_for("vision-finetune", other, f"start_from={weights}"), out=tmp_path / "second")
    shutil.rmtree(tmp_path / "first")  # the second remembers it
    weights = tmp_path / "second" / "ema.safetensors"
    with pytest.raises(ConfigError, match=r"on the same data, .*first', by way of '.*second'") as e:
        run(asked_for("vision-finetune", folder, f"start_from={weights}"), out=tmp_path / "third")
    assert e.value.code == "start-from"


def test_a_run_begins_with_anothers_weights_and_trains_the_head_alone(tmp_path, folder):
    run_on_others(tmp_path, folder)
    weights = tmp_path / "first" / "ema.safetensors"
    asked = asked_for("vision-finetune", folder, f"start_from={weights}")
    assert 0 < describe(asked)["num_trained"] < describe(asked)["num_parameters"]
    run(asked, out=tmp_path / "second")
    before, after = load_tensors(weights)[0], load_tensors(tmp_path / "second" / "weights.safetensors")[0]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".head." in name}
    kept: Any = asked_for("vision-finetune", folder, f"start_from={weights}", "reset_head=false")
    recipe: Any = recipes()["vision-finetune"]
    start = build_model(recipe, kept.config).state_dict()
    assert all(torch.equal(start[name], before[name]) for name in before)


def test_weights_of_another_network_and_names_of_nothing_are_refused(tmp_path, folder):
    run_on_others(tmp_path, folder)
    weights = tmp_path / "first" / "weights.safetensors"
    for more, code in (
        ([f"start_from={weights}", "model=wrn-10-1"], "start-from"),
        ([f"start_from={tmp_path / 'nothing'}"], "start-from"),
        ([f"start_from={weights}", "train_only=nothing.*"], "train-only"),
        ([], "config"),
    ):
        with pytest.raises(ConfigError, match=r"start_from|train_only") as e:
            run(asked_for("vision-finetune", folder, *more), out=tmp_path / "second")
        assert e.value.code == code
        assert not (tmp_path / "second").exists()


def test_class_folders_alone_are_scored_on_held_out_images_and_the_run_says_so(tmp_path, folder):
    (folder / "train").rename(tmp_path / "alone")
    save = tmp_path / "alone" / "dark" / "0.png"
    with Image.open(save) as image:
        image.resize((40, 50)).convert("L").save(save)
    result = run(asked_for("vision-scratch", tmp_path / "alone"), out=tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["plan"]["sampler"]["num_examples"] == 54
    assert "NOT private" in about["data"]["scored"]
    assert result["private"] and result["test_accuracy"] is not None


def test_a_folder_that_is_missing_or_damaged_spends_nothing(tmp_path, folder):
    with pytest.raises(ConfigError, match="set data = FOLDER"):
        run(request("vision-scratch"), out=tmp_path / "run")
    (folder / "train" / "dark" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 60 images .*'dark/3.png'"):
        run(asked_for("vision-scratch", folder), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = run(asked_for("vision-scratch", folder, "unreadable=skip"), out=tmp_path / "run")
    assert result["num_steps"] == 3
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["plan"]["sampler"]["num_examples"] == 59
    assert "unreadable" not in about["data"]


def test_unusual_files_are_named_to_the_operator_and_never_in_the_run(tmp_path, folder):
    Image.fromarray(np.zeros((16, 16), np.float32)).save(folder / "train" / "dark" / "float-7.tif")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "train" / "light" / "grey-7.png")
    asked = asked_for("vision-scratch", folder, "unreadable=skip")
    recipe: Any = recipes()["vision-scratch"]
    said: list[str] = []
    recipe.fetch(asked.config, report=said.append, progress=False)
    left_out = "1 unreadable images of train were left out, as asked: dark/float-7.tif (32 bits a channel)"
    assert left_out in said
    assert any("1 of 61 from the most frequent (light/grey-7.png)" in line for line in said)
    run(asked, out=tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path.name for path in files for name in (b"float-7", b"grey-7") if name in path.read_bytes()]


def grey(count, rng):
    return ArrayPair(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count))


def in_grey(name, num_train, rng):
    return made_up(name, grey(num_train, rng), grey(20, rng))


def test_the_default_recipe_takes_views_validation_rows_and_smoothing_and_is_assessed(tmp_path):
    data = in_grey("fashion-mnist", 60_000, np.random.default_rng(0))
    few = ["num_steps=2", "expected_batch_size=20", "noise_multiplier=1", "epsilon=8"]
    asked = request("fashion-mnist", [*few, "augmult=2", "validation=50", "label_smoothing=0.1"])
    result = run(asked, out=tmp_path / "run", data=data)
    assert "NOT private" in result["scored"]
    assert len(result["test_class_accuracy"]) == 10 and 0.0 <= result["test_auc"] <= 1.0
    assert result["epsilon"] == pytest.approx(describe(asked)["epsilon"])


def test_scattering_features_are_made_once_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    data = in_grey("fashion-mnist", 60, rng)
    recipe: Any = recipes()["fashion-mnist-scattering"]
    config = request("fashion-mnist-scattering").config
    material = recipe.prepare(config, data)
    assert material.train[0].shape == (60, 81, 7, 7)
    monkeypatch.setattr(_features, "_write", lambda *_: pytest.fail("made again"))
    again = recipe.prepare(config, data)
    assert np.array_equal(material.train[0], again.train[0])
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    losses = recipe.loss_per_example(config)
    rows = torch.from_numpy(again.train[0][:3].copy()), torch.tensor([1, 2, 3])
    assert losses(recipe.build(config), rows).tolist() == pytest.approx([np.log(10)] * 3)


def test_validation_rows_are_kept_out_of_training(tmp_path):
    rng = np.random.default_rng(0)
    recipe: Any = recipes()["mnist"]
    config = request("mnist", ["validation=10"]).config
    data = in_grey("mnist", 60, rng)
    material = recipe.prepare(config, data)
    assert recipe.num_examples(config) == 59_990
    assert np.array_equal(material.train[0], data.train.x[:50])
    assert np.array_equal(material.test[0], data.train.x[50:])
    assert "NOT private" in material.about["scored"]


def test_a_data_set_in_its_authors_layout_keeps_validation_rows_and_makes_features_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    pairs = [
        ArrayPair(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count))
        for count in (30, 8)
    ]
    recipe: Any = recipes()["svhn"]
    config = request("svhn", ["validation=5", "features=scattering", "model=linear"]).config
    material = recipe.prepare(config, pairs)
    assert material.train[0].shape == (25, 243, 8, 8) and material.test[0].shape == (5, 243, 8, 8)
    assert np.array_equal(material.test[1], pairs[0].y[25:])
    assert "NOT private" in material.about["scored"]
    plain = recipe.prepare(request("svhn").config, pairs)
    assert len(plain.train[1]) == 30 and len(plain.test[1]) == 8 and "scored" not in plain.about


def test_images_that_the_published_run_kept_back_are_left_out(folder):
    wanted: Any = recipes()["imagenet-nf-resnet-50-eps8"]
    assert wanted.size + wanted.spare == recipes()["imagenet-nf-resnet-50-tan"].size == 1_281_167
    recipe: Any = replace(wanted, size=50, spare=10, num_classes=2)
    config = request(wanted.name, [f"data={folder}", "image_size=16"]).config
    said: list[str] = []
    train, test = recipe.fetch(config, report=said.append, progress=False)
    assert (len(train), len(test)) == (50, 12) and "10 images of train are left out" in said[0]
    again, _ = recipe.fetch(config, report=said.append, progress=False)
    assert [path for path, _ in again._files] == [path for path, _ in train._files]
    exact, _ = replace(recipe, size=60).fetch(config, report=said.append, progress=False)
    assert len(exact) == 60
    with pytest.raises(DataError, match="of 1,000 classes, and the folder holds 2") as e:
        wanted.fetch(config, report=said.append, progress=False)
    assert e.value.code == "image-folder"


def test_the_share_among_the_first_five_is_told_where_there_are_more_classes():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]])
    scores = accuracies_and_loss(torch.nn.Identity(), (logits, torch.tensor([0, 2, 6])))
    assert scores["accuracy"].tolist() == [1.0, 0.0, 0.0] and scores["top5"].tolist() == [1.0, 1.0, 0.0]
    assert "top5" not in accuracies_and_loss(torch.nn.Identity(), (logits[:, :5], torch.tensor([0, 2, 4])))


def test_the_loss_of_several_labels_is_the_mean_of_their_binary_losses():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
    y = torch.tensor([[1, 0], [0, 1]])
    p = torch.sigmoid(logits)
    expected = -torch.where(y == 1, p, 1 - p).log().mean(1)
    torch.testing.assert_close(losses_of_several(torch.nn.Identity(), (logits, y)), expected)
    scores = scores_of_several(torch.nn.Identity(), (logits, y))
    assert scores["accuracy"].tolist() == [1.0, 0.5]
    assert scores["all_right"].tolist() == [1.0, 0.0]


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = (
        torch.from_numpy(rng.integers(0, 5, 40)).double(),
        torch.from_numpy(rng.random(40) < 0.3),
    )
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert area_under_curve(scores, positive) == pytest.approx(float(sum(pairs)) / len(pairs))


def without_end(out):
    """A run that was stopped after its last step; file -> the weights that it left."""
    (out / "result.json").unlink()
    return {path.name: load_tensors(path)[0] for path in out.glob("[!c]*.safetensors")}


@pytest.mark.parametrize("more", [["epsilon=8", "delta=1e-3"], ["epsilon=inf", "train_only=*"]])
def test_a_run_goes_on_without_the_weights_that_it_began_with(tmp_path, folder, more):
    run_on_others(tmp_path, folder)
    few = ["image_size=16", "expected_batch_size=20", "num_steps=3", *more]
    weights = tmp_path / "first" / "ema.safetensors"
    asked = request("vision-finetune", [f"data={folder}", f"start_from={weights}", *few])
    result = run(asked, out=tmp_path / "second")
    left = without_end(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    again = go_on(tmp_path / "second")
    later = {"seconds", "ledger_head", "weights_sha256"}  # files say their place in the ledger
    assert {k: v for k, v in again.items() if k not in later} == {
        k: v for k, v in result.items() if k not in later
    }
    for name, tensors in left.items():
        now = load_tensors(tmp_path / "second" / name)[0]
        assert all(torch.equal(now[key], t) for key, t in tensors.items()), name


def test_weights_that_no_checkpoint_replaces_or_that_a_twin_needs_are_missed_before_a_step(tmp_path, folder):
    run_on_others(tmp_path, folder)
    weights = tmp_path / "first" / "ema.safetensors"
    with_twin = asked_for("vision-finetune", folder, f"start_from={weights}", "twin=true")
    run(with_twin, out=tmp_path / "second")
    without_end(tmp_path / "second")
    run(asked_for("vision-finetune", folder, f"start_from={weights}"), out=tmp_path / "third")
    for path in (tmp_path / "third").iterdir():
        if path.name != "run.json":
            path.unlink()
    shutil.rmtree(tmp_path / "first")
    for name in ("second", "third"):
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        with pytest.raises(ConfigError, match="start_from: cannot read") as e:
            go_on(tmp_path / name)
        assert e.value.code == "start-from"
        after = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        assert after == before
