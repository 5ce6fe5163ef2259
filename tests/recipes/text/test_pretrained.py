"""Pretrained models by folder or name."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from reticent.errors import ConfigError
from reticent.recipes.text import _pretrained
from reticent.recipes.text._pretrained import pretrained_folder


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert pretrained_folder(str(tmp_path)) == tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hugging Face Hub with one model, whose file of weights is a pickle; what was asked for."""
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        if name != "org/tiny":
            raise LocalEntryNotFoundError("Got: no connection\nmore")
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        (tmp_path / "snapshot" / "config.json").write_text("{}")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    _pretrained._from_hub.cache_clear()
    yield asked
    _pretrained._from_hub.cache_clear()


def test_a_hub_s_name_is_fetched_once_without_code_and_pickles(tmp_path, hub):
    assert pretrained_folder("org/tiny") == pretrained_folder("org/tiny") == tmp_path / "snapshot"
    ((_, patterns),) = hub
    names = ["config.json", "model.safetensors", "vocab.txt", "modeling_tiny.py", "pytorch_model.bin"]
    assert [any(fnmatch(name, p) for p in patterns) for name in names] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("name", "asks"), [("roberta-large", True), ("empty", False), ("./roberta", False), ("a/b/c", False)]
)
def test_what_is_no_model_is_refused_with_the_names_that_are(tmp_path, hub, name, asks):
    with pytest.raises(ConfigError, match="Known: minilm, mpnet, smollm2") as caught:
        pretrained_folder(name if name != "empty" else str(tmp_path))
    assert caught.value.code == "text-model"
    assert bool(hub) is asks
    assert ("no connection Where that cannot be reached, run `hf download" in str(caught.value)) is asks


def test_a_known_name_is_fetched_and_a_gguf_file_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RETICENT_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(file, folder):
        made.append(file.name)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(_pretrained, "fetch_pretrained", lambda name, report: tmp_path / f"{name}.gguf")
    monkeypatch.setattr(_pretrained, "_from_gguf", convert)
    first, second = pretrained_folder("smollm2"), pretrained_folder("smollm2")
    assert first == second and (first / "config.json").is_file() and made == ["smollm2.gguf"]
    monkeypatch.setattr(_pretrained, "fetch_pretrained", lambda name, report: tmp_path / "plain")
    assert pretrained_folder("minilm") == tmp_path / "plain"
