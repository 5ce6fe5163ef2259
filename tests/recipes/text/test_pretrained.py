"""Pretrained models by folder or name."""

import pytest

from reticent.errors import ConfigError
from reticent.recipes.text import _pretrained
from reticent.recipes.text._pretrained import pretrained_folder


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert pretrained_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["smollm3", "empty"])
def test_what_is_no_model_is_refused_with_the_names_that_are(tmp_path, name):
    with pytest.raises(ConfigError, match="Known: minilm, mpnet, smollm2") as caught:
        pretrained_folder(name if name != "empty" else str(tmp_path))
    assert caught.value.code == "text-model"


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
