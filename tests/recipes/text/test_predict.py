"""A text classifier's predictions of its own test rows are the run's scores."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from reticent.errors import ReticentError
from reticent.recipes import go_on, load_model, request, run
from reticent.recipes.text import classify
from tests.recipes.text.encoders import save_masked

pytest.importorskip("transformers")
# peft's own: it asks a model of transformers for an attribute with an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def films(path, count, seed):
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["one", "two", "y", "z"])
        for _ in range(count):
            good = bool(rng.integers(2))
            words = rng.choice(["film", "was", "it", "a", "b"], rng.integers(1, 7))
            words = " ".join([*words, "great" if good else "terrible"])
            rows.writerow([words, "b c", "ja" if good else "nein", f"{rng.normal() + good:.2f}"])
    return path


def trained(tmp_path, *settings):
    model = save_masked(tmp_path / "tiny", initializer_range=0.5)  # every word has a say
    train, test = films(tmp_path / "a.csv", 60, 0), films(tmp_path / "b.csv", 40, 1)
    given = [f"model={model}", f"data={train}", f"test_data={test}", "text_column=one", "max_length=9"]
    few = ["num_steps=3", "expected_batch_size=20", "epsilon=8", *settings]
    result = run(request("text-classify", [*given, *few]), out=tmp_path / "run")
    shutil.rmtree(model)  # neither is needed any more
    train.unlink()
    return result, test


@pytest.mark.parametrize(
    "settings",
    [
        ["labels=nein,ja", "label_column=y", "lr=0.01"],
        ["labels=nein,ja", "label_column=y", "lr=0.01", "pair_column=two", "adaptation=bias", "ema=0.5"],
        ["labels=nein,ja", "label_column=y", "objective=mask", "template=sst-2"],
    ],
)
def test_texts_are_predicted_as_the_run_scored_them(tmp_path, settings):
    result, test = trained(tmp_path, *settings)
    model = load_model(tmp_path / "run")
    found = model.predict(test)
    assert model.classes == ("nein", "ja") and len(found) == 40
    assert found.accuracy == result["test_accuracy"]
    place = [model.classes.index(label) for label in found.labels]
    loss = -np.mean(np.log(found.values[np.arange(40), place]))
    assert loss == pytest.approx(result["test_loss"], rel=1e-5)


def test_merged_adapters_say_what_they_said_apart_to_rounding(tmp_path):
    pytest.importorskip("peft")
    settings = ["labels=nein,ja", "label_column=y", "lr=0.01", "adaptation=lora", "lora_rank=2"]
    result, test = trained(tmp_path, *settings)
    found = load_model(tmp_path / "run").predict(test)
    place = [found.classes.index(label) for label in found.labels]
    assert found.accuracy == pytest.approx(result["test_accuracy"], abs=0.03)
    loss = -np.mean(np.log(found.values[np.arange(40), place]))
    assert loss == pytest.approx(result["test_loss"], rel=1e-4)


def test_lines_are_texts_and_pairs_are_not(tmp_path):
    _, test = trained(tmp_path, "labels=nein,ja", "label_column=y")
    model = load_model(tmp_path / "run")
    with test.open(newline="") as file:
        texts = [row["one"] for row in csv.DictReader(file)]
    (tmp_path / "new.txt").write_text("\n\n".join(texts))
    lines, table = model.predict(tmp_path / "new.txt"), model.predict(test)
    assert lines.names[:3] == ("1", "3", "5") and lines.labels is None
    assert np.array_equal(lines.values, table.values)
    for name, code in (("empty.txt", "data-empty"), ("none.txt", "data-missing"), ("a.png", "predict-data")):
        if name != "none.txt":
            (tmp_path / name).write_text("")
        with pytest.raises(ReticentError) as e:
            model.predict(tmp_path / name)
        assert e.value.code == code
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["config"]["pair_column"] = "two"
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(ReticentError, match="reads pairs of texts"):
        load_model(tmp_path / "run").predict(tmp_path / "new.txt")


def test_numbers_are_predicted_as_the_run_scored_them(tmp_path):
    result, test = trained(tmp_path, "objective=regression", "label_column=z")
    model = load_model(tmp_path / "run")
    found = model.predict(test)
    assert found.squared_error == result["test_loss"] and found.accuracy is None
    assert model.classes == () and found.header == ["row", "predicted", "label"]
    assert found.values.shape == (40, 1) and [*found.records()[0]] == ["row", "predicted", "label"]


def test_a_preparation_that_differs_is_noticed(tmp_path, monkeypatch):
    _, test = trained(tmp_path, "labels=nein,ja", "label_column=y", "lr=0.01")
    right, encoded = load_model(tmp_path / "run").predict(test), classify.encoded
    monkeypatch.setattr(
        classify, "encoded", lambda config, rows: encoded(config.model_copy(update={"max_length": 5}), rows)
    )
    found = load_model(tmp_path / "run").predict(test)
    assert not np.allclose(found.values, right.values, rtol=1e-4, atol=0)


def test_a_model_that_is_gone_or_damaged_is_refused(tmp_path):
    trained(tmp_path, "labels=nein,ja", "label_column=y")
    weights, told = tmp_path / "run" / "model" / "model.safetensors", tmp_path / "run" / "result.json"
    whole, result = weights.read_bytes(), json.loads(told.read_text())
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ReticentError, match="its SHA-256 is another") as e:
        load_model(tmp_path / "run")
    assert e.value.code == "weights-damaged"
    assert [*result.pop("weights_sha256")] == ["model/model.safetensors"]
    told.write_text(json.dumps(result))  # as an older version left it
    weights.write_bytes(whole[:-40])
    with pytest.raises(ReticentError, match="cannot be read") as e:
        load_model(tmp_path / "run")
    assert e.value.code == "text-model"
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(ReticentError, match=r"model/config\.json") as e:
        load_model(tmp_path / "run")
    assert e.value.code == "no-weights"


@pytest.mark.parametrize(
    "settings",
    [[], ["objective=mask", "template=sst-2"], ["objective=mask", "template=sst-2", "adaptation=lora"]],
)
def test_a_run_goes_on_without_the_weights_of_the_model_that_it_began_with(tmp_path, settings):
    model, out = save_masked(tmp_path / "tiny", initializer_range=0.5), tmp_path / "run"
    given = [f"model={model}", f"data={films(tmp_path / 'a.csv', 60, 0)}", "text_column=one", "max_length=9"]
    few = ["num_steps=3", "expected_batch_size=20", "epsilon=8", "labels=nein,ja", "label_column=y"]
    result = run(request("text-classify", [*given, *few, *settings]), out=out)

    def kept():
        return {
            str(path.relative_to(out)): path.read_bytes()
            for folder in ("model", "adapter")
            for path in sorted((out / folder).rglob("*"))
            if path.is_file() and path.suffix != ".md"
        }

    before = kept()
    (out / "result.json").unlink()
    shutil.rmtree(out / "model")
    (model / "model.safetensors").unlink()
    again = go_on(out)
    later = {"seconds": 0, "ledger_head": ""}  # going on is in the ledger
    assert {**again, **later} == {**result, **later}
    assert kept() == before


def test_test_rows_are_scored_once_at_the_end(tmp_path, monkeypatch):
    make, seen = classify.head_answers, []

    def counted(**how):
        answers = make(**how)

        def count(model, rows):
            if not torch.is_grad_enabled():
                seen.extend([len(rows[0])] * (len(rows[0]) > 1))  # but for the one of a model's check
            return answers(model, rows)

        return count

    monkeypatch.setattr(classify, "head_answers", counted)
    result, _ = trained(tmp_path, "labels=nein,ja", "label_column=y", "physical_batch_size=16")
    assert seen == [16, 16, 16, 8]  # the early check, and all forty
    assert 0 <= result["test_f1"] <= 1
