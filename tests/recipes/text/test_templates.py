"""Templates: every row keeps its mask, and what does not fit is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from reticent.errors import ConfigError
from reticent.recipes.text._labelled import Labelled
from reticent.recipes.text._templates import PRESETS, make_prompt, prompted
from tests.recipes.text.encoders import word_tokenizer
from tests.recipes.text.models import byte_tokenizer

LONG = " ".join(["film"] * 50)


def labelled(texts, seconds=None):
    return Labelled(texts=texts, seconds=seconds, y=np.zeros(len(texts), np.int64))


def made(
    template, texts, seconds=None, *, tokenizer=None, next_word=False, max_length=12, words=("yes", "no")
):
    tokenizer: Any = tokenizer or word_tokenizer()
    prompt = make_prompt(
        tokenizer,
        template=template,
        words=words,
        pairs=seconds is not None,
        next_word=next_word,
        max_length=max_length,
    )
    return tokenizer, prompted(tokenizer, prompt, labelled(texts, seconds), max_length)


def test_every_row_has_one_mask_where_its_word_is_predicted():
    tokenizer, (ids, mask, at) = made("{text} it was {mask}.", ["a good film", "", LONG, "a [MASK] b [MASK]"])
    assert ids.shape == mask.shape == (4, 12)
    assert (ids == tokenizer.mask_token_id).sum(1).tolist() == [1] * 4
    assert torch.equal(ids.gather(1, at[:, None])[:, 0], torch.full((4,), tokenizer.mask_token_id))
    said = [tokenizer.decode(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]
    assert said[0].replace(" .", ".") == "[CLS] a good film it was [MASK]. [SEP]"
    assert said[2].count("film") == 6  # the text was cut, the template was not
    assert "a b" in said[3]


def test_of_a_pair_the_longer_text_is_cut_first():
    tokenizer, (ids, mask, _) = made(PRESETS["mnli"].mask, ["a", LONG, LONG], ["b", "b", LONG])
    said = [tokenizer.decode(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]
    assert [text.count("film") for text in said] == [0, 6, 7]
    assert mask.sum(1).tolist() == [7, 12, 12]


def test_a_next_word_is_predicted_at_the_last_token():
    tokenizer, (ids, mask, at) = made(
        "{text}:{mask}", ["ab", "x" * 30], tokenizer=byte_tokenizer(), next_word=True, words=("+", "-")
    )
    assert at.tolist() == (mask.sum(1) - 1).tolist() == [2, 11]
    assert ids.gather(1, at[:, None])[:, 0].tolist() == [ord(":") + 3] * 2
    assert tokenizer.eos_token_id not in ids[mask == 1]  # it goes on


@pytest.mark.parametrize(
    ("template", "pairs", "next_word", "told"),
    [
        ("It was {mask}.", False, False, "it has no {text}"),
        ("{text} it was", False, False, "it has no {mask}"),
        ("{text} {mask}", True, False, "it has no {text_b}"),
        ("{text} {mask} {text_b}", False, False, "name pair_column"),
        ("{text} {mask} {mask}", False, False, "{mask} 2 times"),
        ("{text} {label} {mask}", False, False, "{label} is no slot"),
        ("{text} {mask}.", False, True, "goes on after {mask}"),
        ("{text} " + "a " * 20 + "{mask}", False, False, "leaves no room"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template, pairs, next_word, told):
    with pytest.raises(ConfigError, match=told) as caught:
        made(template, ["a"], ["b"] if pairs else None, next_word=next_word)
    assert caught.value.code == "text-template"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("yes", "dunno"), "'dunno' is not in the tokenizer's vocabulary"),
        (("yes", "terrific"), "'terrific' takes 2 tokens"),
        (("yes", "yes"), "are one token"),
    ],
)
def test_a_label_word_that_is_no_token_of_its_own_is_refused(words, told):
    with pytest.raises(ConfigError, match=told) as caught:
        made("{text} {mask}", ["a"], words=words)
    assert caught.value.code == "label-words"
