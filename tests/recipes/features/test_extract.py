"""Extraction: each input once, labels never, and nothing lost when it stops half-way."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reticent.cli import main
from reticent.errors import ConfigError, DataError, UnsupportedModel
from reticent.recipes.features import Inputs, extract, open_store
from reticent.recipes.features import _command as command_module
from reticent.recipes.features._backbones import Backbone, load_backbone
from reticent.recipes.features._extract import NUM_CHECKED, fingerprint_of
from reticent.recipes.features._inputs import load_inputs

GENERATOR = np.random.default_rng(0)
X = {"train": GENERATOR.integers(0, 256, (50, 4, 4), dtype=np.uint8)}
X["test"] = GENERATOR.integers(0, 256, (20, 4, 4), dtype=np.uint8)
Y = {"train": np.arange(50) % 3, "test": np.arange(20) % 3}
INPUTS = Inputs(
    name="toy", kind="images", sha256="1" * 64, x=X, y=Y, class_names=("a", "b", "c"), licence="CC0"
)


def a_backbone(seed=0, seen=None, size=4):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.BatchNorm1d(5)).eval()

    def encode(images):
        if seen is not None:
            seen.append(images)
        return model(torch.from_numpy(images).float() / 255.0)

    return Backbone(name="toy-net", kind="images", model=model, preprocess={"size": size}, encode=encode)


def test_features_are_those_of_the_model_whatever_the_batch(tmp_path):
    backbone = a_backbone()
    for batch_size in (7, 64):
        store = extract(
            backbone, INPUTS, out=tmp_path / str(batch_size), precision="float32", batch_size=batch_size
        )
        with torch.no_grad():
            expected = backbone.encode(X["train"])
        np.testing.assert_allclose(store.split("train").x, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(store.split("test").y, Y["test"])


def test_features_do_not_depend_on_labels_and_the_model_never_sees_them(tmp_path):
    seen = []
    extract(a_backbone(seen=seen), INPUTS, out=tmp_path / "a")
    assert all(images.shape[1:] == (4, 4) for images in seen)  # inputs and nothing else
    shuffled = dataclasses.replace(INPUTS, y={name: y[::-1].copy() for name, y in Y.items()})
    extract(a_backbone(), shuffled, out=tmp_path / "b")
    for split in ("train", "test"):
        a, b = ((tmp_path / name / f"{split}.features.npy").read_bytes() for name in "ab")
        assert a == b


def test_a_second_run_reads_the_cache(tmp_path):
    extract(a_backbone(), INPUTS, out=tmp_path / "s")
    seen = []
    extract(a_backbone(seen=seen), INPUTS, out=tmp_path / "s")
    assert [len(images) for images in seen] == [1]  # to know D


def test_an_interrupted_extraction_computes_only_what_is_missing(tmp_path):
    whole = extract(a_backbone(), INPUTS, out=tmp_path / "whole")
    seen = []
    backbone = a_backbone(seen=seen)

    def dying(images):
        if sum(map(len, seen)) > 2 * NUM_CHECKED + 30:
            raise KeyboardInterrupt
        return backbone.encode(images)

    with pytest.raises(KeyboardInterrupt):
        extract(dataclasses.replace(backbone, encode=dying), INPUTS, out=tmp_path / "s", batch_size=8)
    with pytest.raises(DataError, match=r"train 32 of 50.*\[store-incomplete\]"):
        open_store(tmp_path / "s")
    seen.clear()
    store = extract(backbone, INPUTS, out=tmp_path / "s", batch_size=8)
    assert sum(map(len, seen)) == 1 + 2 * NUM_CHECKED + 18 + 20
    for split in ("train", "test"):
        np.testing.assert_allclose(store.split(split).x, whole.split(split).x, rtol=1e-3, atol=1e-3)


def test_a_store_of_another_model_or_setting_is_refused(tmp_path):
    extract(a_backbone(), INPUTS, out=tmp_path / "s")
    for other in (a_backbone(seed=1), a_backbone(size=8)):
        with pytest.raises(DataError, match="store-fingerprint"):
            extract(other, INPUTS, out=tmp_path / "s")
    with pytest.raises(DataError, match="data_sha256"):
        extract(a_backbone(), dataclasses.replace(INPUTS, sha256="2" * 64), out=tmp_path / "s")


def test_batchnorm_statistics_are_part_of_the_fingerprint():
    backbone = a_backbone()
    before = fingerprint_of(backbone, INPUTS)
    backbone.model[2].running_mean += 1.0
    assert before.differences(dataclasses.asdict(fingerprint_of(backbone, INPUTS))) == ["weights"]


def test_a_model_that_gives_nan_is_refused_and_nothing_is_lost(tmp_path):
    backbone = a_backbone()

    def broken(images):
        features = backbone.encode(images)
        return features / (features[:, :1] * 0.0) if len(images) < 8 else features

    with pytest.raises(DataError, match=r"rows 48 to 49.*\[store-values\]"):
        extract(dataclasses.replace(backbone, encode=broken), INPUTS, out=tmp_path / "s", batch_size=8)
    extract(backbone, INPUTS, out=tmp_path / "s", batch_size=8).verify()


def test_the_command_fills_a_store_that_last_layer_trains_on(tmp_path, monkeypatch):
    monkeypatch.setattr(command_module, "load_inputs", lambda *args, **kwargs: INPUTS)
    monkeypatch.setattr(command_module, "load_backbone", lambda *args, **kwargs: a_backbone())
    out = str(tmp_path / "s")
    arguments = ["features", "extract", "--model", "toy-net", "--data", "toy", "--out", out, "--json"]
    shown = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert json.loads(shown.stdout.splitlines()[-1])["num_rows"] == {"train": 50, "test": 20}
    arguments = ["train", "last-layer", "--set", f"features={out}", "--set", "method=one-step", "--json"]
    shown = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert json.loads(shown.stdout.splitlines()[-1])["private"] is True


def test_a_folder_of_images(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((6, 6, 3), 100 * label + k, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{k}.png")
    inputs = load_inputs(str(tmp_path / "pets"), side=4, report=lambda text: None, progress=False)
    assert (inputs.name, inputs.class_names) == ("pets", ("cat", "dog"))
    assert inputs.y["train"].tolist() == [0, 0, 0, 1, 1, 1]
    assert inputs.x["train"][2:4].shape == (2, 4, 4, 3)
    assert inputs.x["train"][2:4][:, 0, 0, 0].tolist() == [2, 100]
    (tmp_path / "pets" / "train" / "cat" / "0.png").write_bytes(
        (tmp_path / "pets" / "train" / "dog" / "0.png").read_bytes()
    )
    again = load_inputs(str(tmp_path / "pets"), side=4, report=lambda text: None, progress=False)
    assert again.sha256 != inputs.sha256


def loading(name, kind, **settings):
    given = {"size": None, "max_length": None, **settings}
    return load_backbone(name, kind=kind, report=lambda text: None, progress=False, **given)


@pytest.mark.parametrize(
    ("name", "kind", "settings", "code"),
    [
        ("efficientnet-lite0", "texts", {}, "backbone-kind"),
        ("anything", "texts", {"size": 64}, "backbone-kind"),
        ("anything", "images", {"max_length": 64}, "backbone-kind"),
        ("timm:resnet18", "texts", {}, "backbone-kind"),
    ],
)
def test_a_model_of_the_other_kind_of_input_is_refused(name, kind, settings, code):
    with pytest.raises(ConfigError, match=code):
        loading(name, kind, **settings)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no model.*\[backbone-unknown\]"):
        loading(str(tmp_path), "images")


def test_columns_of_numbers_are_features_already():
    with pytest.raises(DataError, match=r"No data set.*\[data-unknown\]"):
        load_inputs("nowhere", report=lambda text: None, progress=False)


def test_a_small_text_encoder_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    folder = tmp_path / "model"
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    backbone = loading(str(folder), "texts", max_length=8)
    with torch.no_grad():
        together, alone = backbone.encode(["good film", "bad"]), backbone.encode(["bad"])
    assert together.shape == (2, 8)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)  # padding changes nothing
    assert not backbone.model.training


class PaddingLeft:
    """A tokenizer that pads on the left whatever it is told."""

    def __init__(self, tokenizer):
        vars(self)["own"] = tokenizer
        tokenizer.padding_side = "left"

    def __getattr__(self, name):
        return getattr(self.own, name)

    def __call__(self, *args, **kwargs):
        return self.own(*args, **kwargs)


def a_decoder_that_was_saved_padding_left(folder):
    pytest.importorskip("transformers")
    from tests.recipes.text.models import byte_tokenizer, gpt2

    gpt2().save_pretrained(folder)
    byte_tokenizer(padding_side="left").save_pretrained(folder)
    texts = ["short", "a text that is a good deal longer than the first", "one more"]
    y = np.array([0, 1, 0])
    inputs = Inputs(
        name="toy", kind="texts", sha256="1" * 64, x={"train": texts, "test": texts[:1]},
        y={"train": y, "test": y[:1]}, class_names=("a", "b"), licence="CC0",
    )  # fmt: skip
    return str(folder), inputs


def test_a_long_text_does_not_move_the_features_of_others_in_its_batch(tmp_path):
    folder, inputs = a_decoder_that_was_saved_padding_left(tmp_path / "model")
    backbone = loading(folder, "texts", max_length=60)
    texts = inputs.x["train"]
    with torch.no_grad():
        together, alone = backbone.encode(texts), torch.cat([backbone.encode([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    extract(backbone, inputs, out=tmp_path / "s")
    assert backbone.preprocess["padding"] == "right"


def test_a_model_whose_rows_move_each_other_is_refused_before_anything_is_stored(tmp_path, monkeypatch):
    folder, inputs = a_decoder_that_was_saved_padding_left(tmp_path / "model")
    auto = pytest.importorskip("transformers").AutoTokenizer
    real = auto.from_pretrained
    monkeypatch.setattr(auto, "from_pretrained", lambda where: PaddingLeft(real(where)))
    backbone = loading(folder, "texts", max_length=60)
    with pytest.raises(UnsupportedModel, match=r"other rows share its batch.*\[backbone-output\]"):
        extract(backbone, inputs, out=tmp_path / "s")
    with pytest.raises(DataError, match=r"train 0 of 3.*\[store-incomplete\]"):
        open_store(tmp_path / "s")


def test_an_image_model_that_mixes_its_batch_is_refused(tmp_path):
    backbone = a_backbone()

    def centred(images):
        features = backbone.encode(images)
        return features - features.mean(0) if len(images) > 1 else features

    with pytest.raises(UnsupportedModel, match="backbone-output"):
        extract(dataclasses.replace(backbone, encode=centred), INPUTS, out=tmp_path / "s")


def test_a_small_vision_encoder_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    backbone = loading(str(tmp_path), "images")
    assert backbone.preprocess["std"] == [63.75] * 3
    with torch.no_grad():
        grey = backbone.encode(X["train"][:3])
        colour = backbone.encode(np.repeat(X["train"][:3, ..., None], 3, axis=3))
    assert grey.shape == (3, 8)
    torch.testing.assert_close(grey, colour)


def test_a_model_that_a_run_on_the_same_data_left_is_refused(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    for name, refused in (("toy", True), ("another", False)):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": "some", "data": {"name": name}}))
        backbone = dataclasses.replace(a_backbone(), name=str(model))
        if refused:
            with pytest.raises(ConfigError, match="learned by a run on the same data"):
                extract(backbone, INPUTS, out=tmp_path / name)
            assert not (tmp_path / name).exists()
        else:
            assert extract(backbone, INPUTS, out=tmp_path / name).split("train").x.shape == (50, 5)


@pytest.mark.parametrize("own", [True, False])
def test_a_model_of_a_run_on_the_same_data_is_refused_folders_of_images_included(tmp_path, own):
    run, images = tmp_path / "run", tmp_path / "images"
    run.mkdir()
    about = {"recipe": "some", "data": {"name": "folder" if own else "toy"}, "config": {"data": str(images)}}
    (run / "run.json").write_text(json.dumps(about))
    learned = dataclasses.replace(a_backbone(), name=str(run))
    inputs = dataclasses.replace(INPUTS, folder=images if own else None)
    with pytest.raises(ConfigError) as caught:
        extract(learned, inputs, out=tmp_path / "store")
    assert caught.value.code == "start-from"
    other = dataclasses.replace(inputs, name="another", folder=tmp_path / "others" if own else None)
    extract(learned, other, out=tmp_path / "store")
