"""A run's model on new rows: what it says of the run's own test rows is what the run said of itself."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reticent.cli import main
from reticent.data import ArrayPair, Dataset, class_names, load, read_image_files
from reticent.data import _image_files as image_files
from reticent.errors import ReticentError
from reticent.recipes import load_model, recipes, request, run
from reticent.recipes._arrays import ArrayRecipe
from reticent.recipes._reader import text_lines
from reticent.recipes.features import _columns, _new_rows, extract
from reticent.recipes.features._backbones import Backbone
from reticent.recipes.features._inputs import load_inputs
from reticent.recipes.features._rows import Preparation
from reticent.train import save_tensors
from reticent.train._checkpoint import load_tensors

SAID = "columns=age=18..99,bmi=10..60,smoker=no|yes"


def images_in(folder, *, sides=((24, 17), (16, 16))):
    """Two classes of noise, a little darker and a little lighter; half of the images are to be fitted."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 9)):
        for low, name in ((0, "dark"), (20, "light")):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(low, low + 200, (*sides[k % 2], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
    return folder


def trained_on_images(tmp_path, *more, recipe="vision-scratch"):
    folder = images_in(tmp_path / "images")
    few = ["image_size=16", "expected_batch_size=20", "num_steps=3", "epsilon=8", "delta=1e-3", "ema=0.9"]
    result = run(request(recipe, [f"data={folder}", *few, *more]), out=tmp_path / "run")
    (folder / "train").rename(tmp_path / "gone")  # a model does not need them any more
    return result, folder / "test"


def people(count=300, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        age, bmi, smoker = int(rng.integers(18, 98)), rng.normal(27, 5), str(rng.choice(["no", "yes"]))
        ill = (age - 58) / 20 + (bmi - 27) / 5 + (smoker == "yes") + rng.normal(0, 2) > 0.3
        rows.append([age, f"{bmi:.1f}", smoker, "ill" if ill else "well"])
    return rows


def write_people(path, rows, header=("age", "bmi", "smoker", "state")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def trained_on_a_table(tmp_path, *more):
    train, test = write_people(tmp_path / "a.csv", people()), write_people(tmp_path / "b.csv", people(90, 1))
    given = [f"data={train}", f"test_data={test}", "label_column=state", "labels=well,ill", SAID, "epsilon=2"]
    result = run(request("table", [*given, *more]), out=tmp_path / "run")
    train.unlink()
    return result, test


def digit_images(folder):
    """The embedded digits' test rows, as bytes."""
    test = load("digits").test
    for k, (pixels, label) in enumerate(zip(test.x, test.y, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(folder / str(label) / f"{k:04d}.png")
    return folder


def trained_on_digits(tmp_path):
    settings = ["num_steps=20", "epsilon=8", "ema=0.9"]
    return run(request("digits", settings), out=tmp_path / "run"), digit_images(tmp_path / "new")


def digit_features(tmp_path):
    """The same rows in the form of a store, so that they have labels: of what made them, nothing is said."""
    test, place = load("digits").test, tmp_path / "rows"
    place.mkdir()
    np.save(place / "test.features.npy", test.x.reshape(len(test.y), -1))
    return place / "test.features.npy", test.y


def logistic_loss(found, classes):
    place = {name: k for k, name in enumerate(classes)}
    return -np.mean([np.log(found.values[n, place[label]]) for n, label in enumerate(found.labels)])


def assert_as_the_run_said(result, found, classes):
    """Accuracy to the last bit; and the loss, which every single probability has a say in."""
    assert found.accuracy == result["test_accuracy"]
    assert logistic_loss(found, classes) == pytest.approx(result["test_loss"], rel=1e-5)


def test_images_are_predicted_as_the_run_scored_them(tmp_path):
    result, test = trained_on_images(tmp_path)
    model = load_model(tmp_path / "run")
    assert (model.recipe, model.weights, model.classes) == ("vision-scratch", "ema", ("dark", "light"))
    found = model.predict(test)
    assert_as_the_run_said(result, found, model.classes)
    assert list(found.labels) == ["dark"] * 9 + ["light"] * 9 and found.names[0] == "dark/0.png"
    (tmp_path / "flat").mkdir()
    for k, name in enumerate(found.names):
        shutil.copy(test / name, tmp_path / "flat" / f"{k:02d}.png")
    (tmp_path / "flat" / "notes.txt").write_text("about these")
    flat = model.predict(tmp_path / "flat")
    assert flat.labels is None and flat.accuracy is None and flat.left_out == 1
    assert flat.predicted == found.predicted and np.array_equal(flat.values, found.values)
    one = model.predict(test / "light" / "3.png")
    assert one.names == ("3.png",) and np.allclose(one.values[0], found.values[12], rtol=1e-5)


def test_the_last_weights_are_taken_where_nothing_was_averaged(tmp_path):
    result, test = trained_on_images(tmp_path, "ema=0", "augmult=2")
    model = load_model(tmp_path / "run")
    assert model.weights == "last"
    assert_as_the_run_said(result, model.predict(test), model.classes)


def test_weights_that_a_run_began_with_need_not_be_there(tmp_path):
    (tmp_path / "public").mkdir()
    trained_on_images(tmp_path / "public")
    public = tmp_path / "public" / "run" / "ema.safetensors"
    result, test = trained_on_images(tmp_path, f"start_from={public}", recipe="vision-finetune")
    shutil.rmtree(tmp_path / "public")
    model = load_model(tmp_path / "run")
    assert_as_the_run_said(result, model.predict(test), model.classes)


def test_a_network_of_transformers_is_made_again_from_the_run_alone(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=5, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(7)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    scaling = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.2] * 3, "image_std": [0.7] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(scaling))
    given = [f"model=transformers:{tmp_path / 'vit'}", "pretrained=true"]
    result, test = trained_on_images(tmp_path, *given, recipe="vision-finetune")
    shutil.rmtree(tmp_path / "vit")
    model = load_model(tmp_path / "run")
    right = model.predict(test)
    assert_as_the_run_said(result, right, model.classes)
    told = tmp_path / "run" / "result.json"
    noted = json.loads(told.read_text())
    assert noted["pixels"]["mean"] == pytest.approx([0.2] * 3)
    told.write_text(json.dumps({**noted, "pixels": None}))  # scaled as if nothing had been noted
    found = load_model(tmp_path / "run").predict(test)
    assert not np.allclose(found.values, right.values, rtol=1e-4, atol=0)


def test_several_labels_are_predicted_as_the_run_scored_them(tmp_path):
    folder = images_in(tmp_path / "images")
    for split, count in (("train", 30), ("test", 9)):
        names = [f"{kind}/{k}.png" for kind in ("dark", "light") for k in range(count)]
        rows = [f"{name},{int('light' in name)},{k % 2},{k % 3 // 2}" for k, name in enumerate(names)]
        (folder / split / "labels.csv").write_text("\n".join(["file,light,odd,third", *rows]))
    few = ["image_size=16", "expected_batch_size=20", "num_steps=3", "epsilon=8", "delta=1e-3"]
    result = run(request("vision-scratch", [f"data={folder}", "labels=table", *few]), out=tmp_path / "run")
    model = load_model(tmp_path / "run")
    found = model.predict(folder / "test")
    assert found.accuracy == result["test_accuracy"] and found.answer == "several"
    assert found.labels[1] == "odd" and found.labels[17] == "light|odd|third"
    shown = [set(text.split("|")) - {""} for text in found.predicted]
    likely = [{n for n, p in zip(model.classes, row, strict=True) if p > 0.5} for row in found.values]
    assert shown == likely
    (folder / "test" / "labels.csv").unlink()
    assert model.predict(folder / "test").labels is None
    (folder / "test" / "labels.csv").write_text("file,odd\ndark/0.png,1\n")
    with pytest.raises(ReticentError, match="light, odd, third") as e:
        model.predict(folder / "test")
    assert e.value.code == "predict-labels"


def test_images_of_a_known_data_set_are_predicted_as_the_run_scored_them(tmp_path):
    result, new = trained_on_digits(tmp_path)
    model = load_model(tmp_path / "run")
    assert model.classes == class_names("digits") == tuple("0123456789")
    found = model.predict(new)
    assert len(found) == 360  # in another order than the run's, so rounding may differ
    assert found.accuracy == pytest.approx(result["test_accuracy"], abs=1e-9)
    assert logistic_loss(found, model.classes) == pytest.approx(result["test_loss"], rel=1e-5)


def test_scattering_features_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    pairs = [
        ArrayPair(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n) % 10) for n in (60, 30)
    ]
    data = Dataset(
        name="mnist", train=pairs[0], test=pairs[1], num_classes=10, class_names=(), feature_names=(),
        licence="", package_licence="", citation="", source="made up", sha256="0",
    )  # fmt: skip
    recipe = recipes()["mnist-scattering"]
    config = request("mnist-scattering", ["num_steps=2", "epsilon=inf"]).config
    material = recipe.prepare(config, data)
    for k, pixels in enumerate(pairs[1].x):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "new" / f"{k:02d}.png")
    reader = recipe.reader(config, {"data": {"name": "mnist"}}, tmp_path)
    given = reader.read(tmp_path / "new", lambda what, done, total: None)
    assert np.array_equal(given.rows[0], material.test[0]) and reader.classes == tuple("0123456789")


def test_a_table_is_predicted_as_the_run_scored_it(tmp_path):
    result, test = trained_on_a_table(tmp_path)
    model = load_model(tmp_path / "run")
    found = model.predict(test)
    assert_as_the_run_said(result, found, ("well", "ill"))
    assert found.names[:2] == ("1", "2") and found.column == "row"
    few = write_people(tmp_path / "c.csv", [row[:3] for row in people(90, 1)], ("age", "bmi", "smoker"))
    assert np.array_equal(model.predict(few).values, found.values) and model.predict(few).labels is None


@pytest.mark.parametrize(
    "settings",
    [
        ["method=adam", "ema=0.9", "num_steps=10"],
        ["method=least-squares", "centre=private", "intercept=0.5"],
        ["method=newton", "whiten=private", "bias=-1", "loss=sigmoid"],
        ["method=fc", "init=near-zero"],
        [],
    ],
)
def test_features_are_predicted_as_the_run_scored_them(tmp_path, settings):
    result = run(request("last-layer", ["epsilon=4", *settings]), out=tmp_path / "run")
    path, y = digit_features(tmp_path)
    model = load_model(tmp_path / "run")
    found = model.predict(path)
    right = sum(one == model.classes[k] for one, k in zip(found.predicted, y, strict=True))
    assert right / len(y) == result["test_accuracy"] and found.labels is None
    loss = -np.mean(np.log(found.values[np.arange(len(y)), y]))
    assert loss == pytest.approx(result["test_loss"], rel=1e-4)


def test_what_a_later_version_would_choose_does_not_change_a_finished_model(tmp_path, monkeypatch):
    run(request("last-layer", ["epsilon=4"]), out=tmp_path / "run")
    path, _ = digit_features(tmp_path)
    before = load_model(tmp_path / "run").predict(path)
    from reticent.recipes.features import _methods

    monkeypatch.setattr(_methods, "chosen_for", lambda **how: {"method": "one-step", "intercept": 9.0})
    assert np.array_equal(load_model(tmp_path / "run").predict(path).values, before.values)


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_network_on_features_is_predicted_as_the_run_scored_it(tmp_path, hidden):
    result = run(
        request("head", ["num_steps=5", "epsilon=8", "ema=0", f"hidden={hidden}"]), out=tmp_path / "run"
    )
    path, y = digit_features(tmp_path)
    found = load_model(tmp_path / "run").predict(path)
    assert sum(int(one) == k for one, k in zip(found.predicted, y, strict=True)) / len(y) == pytest.approx(
        result["test_accuracy"], abs=1e-9
    )


def a_backbone(seed=0, size=16):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size * size, 6)).eval()
    return Backbone(
        name="toy-net", kind="images", model=model, preprocess={"size": size},
        encode=lambda images: model(torch.from_numpy(images).float() / 255.0),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_images_become_features_as_those_of_the_run_did(tmp_path, monkeypatch, precision):
    folder = images_in(tmp_path / "images")
    inputs = load_inputs(str(folder), side=16, report=lambda line: None, progress=False)
    extract(a_backbone(), inputs, out=tmp_path / "store", precision=precision)
    result = run(
        request("last-layer", [f"features={tmp_path / 'store'}", "epsilon=8", "delta=1e-3"]),
        out=tmp_path / "run",
    )
    shutil.copytree(tmp_path / "store", tmp_path / "kept")
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr(_new_rows, "load_backbone", lambda name, **how: a_backbone(size=how["size"]))
    model = load_model(tmp_path / "run")
    assert model.classes == ("dark", "light")
    by_images = model.predict(folder / "test")
    by_features = model.predict(tmp_path / "kept" / "test.features.npy")
    assert by_features.accuracy == result["test_accuracy"] == by_images.accuracy
    assert_as_the_run_said(result, by_features, model.classes)
    assert_as_the_run_said(result, by_images, model.classes)
    monkeypatch.setattr(_new_rows, "load_backbone", lambda name, **how: a_backbone(seed=1))
    with refused("store-fingerprint", "weights differ"):
        model.predict(folder / "test")
    with refused("predict-data", "name the file of one of its splits"):
        model.predict(tmp_path / "kept")
    extract(a_backbone(seed=1), inputs, out=tmp_path / "other")
    with refused("store-fingerprint", "weights differ"):
        model.predict(tmp_path / "other" / "test.features.npy")


def test_a_store_of_before_goes_on_and_is_not_guessed_about(tmp_path):
    inputs = load_inputs(str(images_in(tmp_path / "images")), side=16, report=print, progress=False)
    extract(a_backbone(), inputs, out=tmp_path / "store")
    index = json.loads((tmp_path / "store" / "store.json").read_text())
    assert index.pop("side") == 16
    (tmp_path / "store" / "store.json").write_text(json.dumps(index))
    extract(a_backbone(), inputs, out=tmp_path / "store")  # the same store still
    asked = request("last-layer", [f"features={tmp_path / 'store'}", "epsilon=8", "delta=1e-3"])
    run(asked, out=tmp_path / "run")
    with refused("predict-data", "did not note how inputs were brought to one size"):
        load_model(tmp_path / "run").predict(tmp_path / "images" / "test")


# Each leaves out or changes a step of a preparation; predictions must then be other than the run's.
SKIPPED = {
    "fitting": (
        trained_on_images,
        lambda m: m.setattr(
            image_files,
            "fitted",
            lambda image, side, mode: np.array(image.resize((side, side)).convert(mode))
        ),
    ),
    "limits": (
        trained_on_a_table,
        lambda m: m.setattr(
            _columns, "_cells", lambda cells, column: (
                np.ones((len(cells), column.num_features), np.float32), np.ones(len(cells), bool)
            ),
        ),
    ),
    "row norms": (
        trained_on_a_table,
        lambda m: m.setattr(Preparation, "_bounded", lambda self, x: (x, x.norm(dim=1), torch.ones(len(x)))),
    ),
    "scale": (
        trained_on_digits,
        lambda m: m.setattr(ArrayRecipe, "_scaled", lambda self, x: torch.from_numpy(np.float32(x))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("step", SKIPPED)
def test_a_step_of_the_preparation_that_is_skipped_is_noticed(tmp_path, monkeypatch, step):
    train, skip = SKIPPED[step]
    result, new = train(tmp_path)
    model = load_model(tmp_path / "run")
    right = model.predict(new)
    assert logistic_loss(right, model.classes) == pytest.approx(result["test_loss"], rel=1e-5)
    skip(monkeypatch)
    assert not np.allclose(model.predict(new).values, right.values, rtol=1e-4, atol=0)


def refused(code, text=""):
    return pytest.raises(ReticentError, match=rf"(?s){text}.*\[{code}\]")


def test_what_is_no_finished_model_is_refused(tmp_path):
    with refused("not-a-run"):
        load_model(tmp_path)
    trained_on_a_table(tmp_path)
    folder, weights = tmp_path / "run", tmp_path / "run" / "weights.safetensors"
    whole, result = weights.read_bytes(), (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    with refused("run-unfinished", "reticent resume"):
        load_model(folder)
    (folder / "result.json").write_text(result)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused("weights-damaged", "its SHA-256 is another"):
        load_model(folder)
    weights.write_bytes(whole)
    (folder / "model").mkdir()  # what a run of texts is read from: it must not stand for what was noted
    (folder / "model" / "model.safetensors").write_bytes(whole)
    with refused("weights-damaged", "no file that the run left"):
        load_model(folder)
    shutil.rmtree(folder / "model")
    weights.unlink()
    with refused("no-weights", "weights.safetensors"):
        load_model(folder)
    weights.write_bytes(whole)
    noted = json.loads(result)
    assert [*noted.pop("weights_sha256")] == ["weights.safetensors"]
    (folder / "result.json").write_text(json.dumps(noted))  # as an older version left it
    load_model(folder)
    weights.write_bytes(whole[:-40])
    with refused("weights-damaged", "reticent verify"):
        load_model(folder)
    tensors, header = load_tensors_of(whole, tmp_path / "copy.safetensors")
    save_tensors(weights, {**tensors, "weight": tensors["weight"] * float("nan")}, header=header)
    with refused("weights-damaged", "not finite"):
        load_model(folder)
    save_tensors(weights, {**tensors, "weight": tensors["weight"][:, :-1]}, header=header)
    with refused("weights-mismatch", "e.g. weight"):
        load_model(folder)
    weights.unlink()
    with refused("no-weights", "weights.safetensors"):
        load_model(folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "recipe": None}))
    with refused("not-a-run", "Load it in Python"):
        load_model(folder)


def load_tensors_of(whole, path):
    path.write_bytes(whole)
    return load_tensors(path)


def test_a_model_that_continues_texts_labels_no_rows(tmp_path):
    recipe = recipes()["text-generate"]
    with refused("no-predictions", "reticent generate"):
        recipe.reader(recipe.config(), {}, tmp_path)


def test_data_of_another_kind_are_refused_before_anything_is_predicted(tmp_path, monkeypatch):
    trained_on_a_table(tmp_path)
    model = load_model(tmp_path / "run")
    monkeypatch.setattr(type(model), "_answered", lambda *_: pytest.fail("it began"))
    (tmp_path / "photo.png").write_bytes(b"")
    with refused("predict-data", "is none: .csv"):
        model.predict(tmp_path / "photo.png")
    with refused("data-missing"):
        model.predict(tmp_path / "nothing.csv")
    with refused("data-column", "no column 'bmi'"):
        model.predict(write_people(tmp_path / "d.csv", [[30, "no"]], ("age", "smoker")))
    with refused("data-labels", "well, ill"):
        model.predict(write_people(tmp_path / "d.csv", [[30, 20, "no", "dead"]]))
    with refused("table-cells"):
        model.predict(write_people(tmp_path / "d.csv", [[30, 20, "sometimes", "ill"]]))
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_dict.json").write_text("{}")
    (tmp_path / "sets" / "test").mkdir()
    with refused("predict-data", "name one, e.g. '.*sets/test'"):
        model.predict(tmp_path / "sets")


def test_a_folder_in_place_of_lines_of_text_is_refused(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with refused("predict-data", "is a folder"):
        text_lines(tmp_path / "x.txt")


def test_images_that_cannot_be_predicted_are_refused_before_anything_is(tmp_path):
    folder = images_in(tmp_path / "images")

    def read(path):
        return read_image_files(path, side=16, class_names=("dark", "light"))

    with refused("predict-data", "name one of them, e.g. '.*test'"):
        read(folder)
    (folder / "test" / "dark" / "odd.jpg").write_bytes(b"\xff\xd8\xff no image")
    with refused("image-unreadable", "1 of 19 images .*'dark/odd.jpg'"):
        read(folder / "test")
    (folder / "test" / "dark" / "odd.jpg").unlink()
    shutil.copytree(folder / "test" / "dark", folder / "test" / "grey")
    with refused("predict-labels", "1 folders with images and 0 images"):
        read(folder / "test")
    (tmp_path / "rows.csv").write_text("a\n1\n")
    with refused("predict-data", "'rows.csv' is none by its ending"):
        read(tmp_path / "rows.csv")
    with refused("data-missing"):
        read(tmp_path / "nowhere")
    with refused("predict-data", "holds no image"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")


def test_features_of_another_number_are_refused(tmp_path):
    run(request("last-layer", ["epsilon=4"]), out=tmp_path / "run")
    model = load_model(tmp_path / "run")
    np.save(tmp_path / "x.npy", np.zeros((3, 63)))
    with refused("predict-data", "rows of 64 numbers"):
        model.predict(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.full((3, 64), np.nan))
    with refused("predict-data", "NaN or infinity"):
        model.predict(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with refused("predict-data", "as a NumPy file"):
        model.predict(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"PK\3\4 nothing")
    with refused("predict-data", "as a NumPy file"):
        model.predict(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", np.zeros((3, 64)))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with refused("predict-data", "as a NumPy file"):
        model.predict(tmp_path / "x.npy")
    with refused("predict-data", "no NumPy file"):
        model.predict(images_in(tmp_path / "images"))


def test_the_command_writes_every_row_and_shows_the_first(tmp_path):
    result, test = trained_on_a_table(tmp_path)
    out = tmp_path / "predictions.csv"
    shown = CliRunner().invoke(
        main, ["predict", str(tmp_path / "run"), "--data", str(test), "--out", str(out)]
    )
    assert shown.exit_code == 0, shown.output
    assert f"accuracy {result['test_accuracy']:.2%}" in shown.stdout and "and 80 more" in shown.stdout
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["row", "predicted", "label", "p(well)", "p(ill)"] and len(rows) == 90
    assert all((float(row[3]) > 0.5) == (row[1] == "well") for row in rows)
    assert sum(row[1] == row[2] for row in rows) / 90 == result["test_accuracy"]
    assert not list(tmp_path.glob(".*.part"))
    told = CliRunner().invoke(main, ["predict", str(tmp_path / "run"), "--data", str(test), "--json"])
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["accuracy"] == result["test_accuracy"] and found["out"] is None
    assert {*found["rows"][0]} == {"row", "predicted", "label", "probabilities"}
    assert sum(found["rows"][0]["probabilities"].values()) == pytest.approx(1)


def test_the_command_does_not_write_over_what_it_reads(tmp_path):
    _, test = trained_on_a_table(tmp_path)
    before = test.read_bytes()
    for out, said in ((test, "would replace"), (tmp_path / "no" / "a.csv", "there is no folder")):
        shown = CliRunner().invoke(
            main, ["predict", str(tmp_path / "run"), "--data", str(test), "--out", str(out)]
        )
        assert shown.exit_code == 2 and said in " ".join(shown.stderr.split())
    assert test.read_bytes() == before
