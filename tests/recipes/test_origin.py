"""Weights of other runs: which of them had a part in what a run begins with, and on which data they were."""

import json
import os
import shutil
from typing import Any

import pytest

from reticent.errors import ConfigError
from reticent.recipes import request
from reticent.recipes._origin import folder_named, origin_of, refuse_same_data


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the folder of a run; returns its weights. `origin` is left out by older versions."""
    monkeypatch.chdir(tmp_path)

    def made(name, *, data, place=None, origin=None, recipe="some recipe", **config):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        about = {
            "run_id": "some id",
            "recipe": recipe,
            "data": {"name": data},
            "config": {**config, "data": place},
            **({} if origin is None else {"origin": origin}),
        }
        (folder / "run.json").write_text(json.dumps(about))
        (folder / "weights.safetensors").write_bytes(b"")
        return folder / "weights.safetensors"

    return made


def refused(weights, name, data=None, *, match="learned by a run on the same data"):
    with pytest.raises(ConfigError, match=match) as e:
        refuse_same_data(weights, about={"name": name}, data=None if data is None else str(data))
    assert e.value.code == "start-from"


def accepted(weights, name, data=None):
    refuse_same_data(weights, about={"name": name}, data=None if data is None else str(data))


def chained(make, tmp_path, kind):
    """Weights of a run on CIFAR-100 that began with those of a run on CIFAR-10."""
    first = make("first", data="cifar10")
    match kind:
        case "start_from":
            return make("second", data="cifar100", start_from=str(first), pretrained=False)
        case "relative":
            return make("second", data="cifar100", start_from="runs/first/weights.safetensors")
        case "folder":
            (first.parent / "model").mkdir()
            return make("second", data="imdb", model=str(first.parent / "model"))
        case "transformers":
            return make(
                "second",
                data="cifar100",
                model=f"transformers:{first.parent}",
                pretrained=True,
                start_from=None,
            )
        case "timm":
            name = f"timm:local-dir:{first.parent}"
            return make("second", data="cifar100", model=name, pretrained=True, start_from=None)
        case "adapter":
            (tmp_path / "adapter").mkdir()
            (tmp_path / "adapter" / "adapter_config.json").write_text(
                json.dumps({"base_model_name_or_path": str(first.parent)})
            )
            return make("second", data="imdb", model=str(tmp_path / "adapter"))
        case _:
            noted = origin_of(first, about={"name": "cifar100"}, data=None)
            shutil.rmtree(first.parent)  # what it was is written down
            return make("second", data="cifar100", origin=json.loads(json.dumps(noted)))


KINDS = ["start_from", "relative", "folder", "transformers", "timm", "adapter", "noted"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_between_hides_nothing(tmp_path, make, kind):
    weights = chained(make, tmp_path, kind)
    refused(weights, "cifar10", match="learned by a run on the same data, '.*first', by way of '.*second'")
    third = make("third", data="mnist", start_from=str(weights))
    refused(third, "cifar10", match="first', by way of '.*third' and '.*second'")
    accepted(weights, "svhn")


def test_runs_that_name_each_other_end_the_search(tmp_path, make):
    other = tmp_path / "runs" / "other" / "weights.safetensors"
    weights = make("one", data="cifar10", start_from=str(other))
    make("other", data="cifar100", start_from=str(weights))
    refused(weights, "cifar100")
    accepted(weights, "svhn")


def test_older_runs_that_do_not_say_enough_are_refused(tmp_path, make, monkeypatch):
    lost = make("first", data="cifar100", start_from="gone/weights.safetensors", pretrained=False)
    refused(lost, "cifar10", match="may have been learned .*began with weights that are not found, 'gone/")
    refused(make("text", data="imdb", model="lost/model"), "brown", match="not found, 'lost/model'")
    accepted(make("hub", data="imdb", model="FacebookAI/roberta-large"), "brown")
    images = tmp_path / "a" / "images"
    images.mkdir(parents=True)
    (images / "x").write_text("x")
    old = make("second", data="folder", place="images", start_from=None)
    refused(old, "folder", images, match="may have been .* names its data as 'images', relative to a folder")
    (tmp_path / "images").mkdir()
    refused(old, "folder", images, match="may have been .* names its data as 'images'")  # still from anywhere
    refused(old, "folder", tmp_path / "images", match="learned by a run on the same data")
    (tmp_path / "others").mkdir()
    accepted(old, "folder", tmp_path / "others")
    accepted(old, "cifar10")


def test_runs_whose_rows_were_handed_over_in_python_are_refused(tmp_path, make):
    """They say nothing of their rows: also by way of another run, which noted as much."""
    weights = make("trainer", data="train_dataset of a Trainer", recipe=None)
    refused(weights, "cifar10", match="may have been .* was given its rows in Python")
    origin = json.loads(json.dumps(origin_of(weights, about={"name": "cifar100"}, data=None)))
    refused(make("between", data="cifar100", origin=origin), "cifar10", match="was given its rows in Python")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "run.json").write_text('{"learning_rate": 1}')  # another program's
    accepted(tmp_path / "others" / "weights.safetensors", "cifar10")


def noted(make, name, place):
    about = {"name": "folder" if os.path.isdir(place) else "file"}
    return make(
        name, data=about["name"], origin=origin_of(None, about=about, data=str(place)), place=str(place)
    )


def test_a_new_name_a_copy_and_a_part_are_the_same_data(tmp_path, make, monkeypatch):
    images = tmp_path / "images"
    for split in ("train", "test"):
        (images / split / "cat").mkdir(parents=True)
        (images / split / "cat" / "1.png").write_bytes(split.encode())
    monkeypatch.chdir(images)
    weights = noted(make, "first", ".")
    monkeypatch.chdir("/")
    refused(weights, "folder", images)
    refused(weights, "folder", images / "train")
    accepted(weights, "cifar10")
    (tmp_path / "link").symlink_to(images)
    refused(weights, "folder", tmp_path / "link")
    copy = shutil.copytree(images, tmp_path / "copy")
    refused(weights, "folder", copy)
    (copy / "train" / "cat" / "1.png").write_bytes(b"other")  # as long
    accepted(weights, "folder", copy)
    accepted(weights, "folder", images / "test")
    images.rename(tmp_path / "renamed")
    refused(weights, "folder", tmp_path / "renamed")
    table = tmp_path / "rows.csv"
    table.write_text("text\na\n")
    weights = noted(make, "text", table)
    (tmp_path / "hard.csv").hardlink_to(table)
    refused(weights, "file", tmp_path / "hard.csv")
    refused(weights, "file", shutil.copy(table, tmp_path / "again.csv"))
    (tmp_path / "more.csv").write_text("text\nb\n")
    accepted(weights, "file", tmp_path / "more.csv")


def test_a_data_set_by_name_in_the_folder_of_another_run_is_the_same_data(tmp_path, make):
    (tmp_path / "images").mkdir()
    weights = noted(make, "first", tmp_path / "images")
    with pytest.raises(ConfigError, match="same data"):
        refuse_same_data(weights, about={"name": "svhn", "source": "folder"}, data=str(tmp_path / "images"))


def test_links_to_a_runs_weights_are_its_weights(tmp_path, make):
    weights = make("first", data="imdb")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(weights)
    refused(tmp_path / "model", "imdb")
    refused(tmp_path / "model" / "model.safetensors", "imdb")


def test_a_damaged_note_tells_nothing_and_is_refused(make):
    weights = make("first", data="cifar100", origin={"path": None, "ids": [], "begins_with": ["?"]})
    refused(weights, "cifar10", match="may have been learned")
    accepted(make("other", data="cifar100", origin={"path": None, "ids": [], "begins_with": []}), "cifar10")


def test_which_names_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name, found in {
        "timm:local-dir:/x/y": "/x/y",
        "timm:LOCAL-DIR:x": "x",
        "timm:hf-hub:timm/resnet18": None,
        "timm:resnet18": None,
        "timm:local-dir://[": None,
        "transformers:here": "here",
        "transformers:google/vit": None,
        "here": "here",
        "minilm": None,
        300 * "x": None,
    }.items():
        assert (None if found is None else str(found)) == (
            None if folder_named(name) is None else str(folder_named(name))
        )


@pytest.mark.parametrize("recipe", ["text-classify", "text-generate"])
def test_a_folder_with_a_known_models_name_is_what_a_text_run_begins_with(tmp_path, make, recipe):
    """It is what is read, too."""
    asked: Any = request(recipe, ["model=smollm2", "data=imdb"])
    assert asked.recipe.begins_with(asked.config) is None
    first = make("first", data="imdb")
    (tmp_path / "smollm2").symlink_to(first.parent)
    refused(asked.recipe.begins_with(asked.config), "imdb")
