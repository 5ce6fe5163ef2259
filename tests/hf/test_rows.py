"""What becomes of a row behind a collator depends on no other row."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

from reticent.errors import ConfigError, DataError
from reticent.hf._rows import CollatedRows, fixed_length
from tests.recipes.text.models import byte_tokenizer

TEXTS = ["a", "bcd", "efghij", "k"]


def features(texts=TEXTS):
    tokenizer = byte_tokenizer()
    return [dict(tokenizer(text)) for text in texts]


def masking():
    tokenizer = byte_tokenizer(mask_token="<mask>")
    return fixed_length(DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.5), 16)


def test_every_row_is_padded_to_the_length_whatever_its_neighbours():
    rows = CollatedRows(features(), fixed_length(DataCollatorWithPadding(byte_tokenizer()), 8), seed=0)
    alone = rows.fetch(np.array([0]))
    beside = rows.fetch(np.array([0, 2]))
    assert beside["input_ids"].shape == (2, 8)
    assert torch.equal(alone["input_ids"][0], beside["input_ids"][0])


def test_a_rows_random_masks_do_not_depend_on_the_rows_before_it():
    first, second = (CollatedRows(features(), masking(), seed=1) for _ in range(2))
    alone = first.fetch(np.array([2]))
    behind = second.fetch(np.array([0, 1, 2]))
    assert torch.equal(alone["input_ids"][0], behind["input_ids"][2])
    again = [first.fetch(np.array([2]))["labels"] for _ in range(8)]
    assert len({tuple(labels[0].tolist()) for labels in again}) > 1, "each draw of a row has masks of its own"


def test_fetching_leaves_the_public_generators_as_they_were():
    rows = CollatedRows(features(), masking(), seed=1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    rows.fetch(np.array([1, 2]))
    assert torch.equal(torch.rand(3), expected)


def test_a_collator_that_pads_to_the_longest_is_refused():
    rows = CollatedRows(features(), DataCollatorWithPadding(byte_tokenizer()), seed=0)
    with pytest.raises(DataError, match="max_length"):
        rows.check()


def test_a_row_longer_than_the_length_is_refused_by_the_check():
    rows = CollatedRows(features(), fixed_length(DataCollatorWithPadding(byte_tokenizer()), 4), seed=0)
    with pytest.raises(DataError, match="longer ones must be cut"):
        rows.check()


def test_collators_that_cannot_be_made_safe_are_refused():
    tokenizer = byte_tokenizer(mask_token="<mask>")
    with pytest.raises(ConfigError, match="seed"):
        fixed_length(DataCollatorForLanguageModeling(tokenizer, mlm=True, seed=1), 8)
    with pytest.raises(ConfigError, match="pad_to_multiple_of"):
        fixed_length(lambda rows: rows, 8)
    with pytest.raises(DataError, match="one row"):
        CollatedRows(features(), lambda rows: {"x": torch.zeros(2)}, seed=0).check()
