"""Perplexity: of the right tokens, weighted by tokens, whatever the padding."""

import math

import pytest
import torch

from reticent.errors import ConfigError
from reticent.recipes.text._score import (
    evaluating,
    log_likelihoods,
    open_ended,
    padded,
    perplexity,
    row_losses,
    text_rows,
    token_losses,
)
from tests.recipes.text.models import byte_tokenizer, gpt2, llama

TEXTS = ["the cat", "a", "a much longer sentence about dogs"]


@pytest.fixture(params=[gpt2, llama])
def model(request):
    return request.param().double()


def one_by_one(model, ids, skip=0):
    """-log p of ids[max(1, skip):], one position at a time, by plain log-softmax."""
    total = 0.0
    for t in range(max(1, skip), len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, 0)[ids[t]])
    return total


def test_each_row_is_what_it_would_be_alone(model):
    ids = [byte_tokenizer()(text)["input_ids"] for text in TEXTS]
    losses, counts = row_losses(model, padded(ids, pad=0))
    assert counts.tolist() == [len(row) - 1 for row in ids]
    for b, row in enumerate(ids):
        assert float(losses[b]) == pytest.approx(one_by_one(model, row), rel=1e-9)


def test_the_source_is_not_scored(model):
    ids = [byte_tokenizer()(text)["input_ids"] for text in TEXTS]
    losses, counts = row_losses(model, padded(ids, pad=0, num_source=[4, 2, 10]))
    assert counts.tolist() == [len(ids[0]) - 4, 0, len(ids[2]) - 10]
    assert float(losses[0]) == pytest.approx(one_by_one(model, ids[0], 4), rel=1e-9)
    assert float(losses[1]) == 0.0


def test_left_padding_gives_what_right_padding_gives(model):
    ids_BT, mask_BT, labels_BT = padded([[5, 6, 7], [8, 9, 10, 11, 12]], pad=0)
    turned = [torch.stack([row[0].roll(2), row[1]]) for row in (ids_BT, mask_BT, labels_BT)]
    wanted, _ = row_losses(model, (ids_BT, mask_BT, labels_BT))
    found, _ = row_losses(model, tuple(turned))
    torch.testing.assert_close(found, wanted)


def test_perplexity_weighs_by_tokens_and_not_by_batches(model):
    tokenizer = byte_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    loss = sum(one_by_one(model, row) for row in ids) / sum(len(row) - 1 for row in ids)
    for batch_size in (1, 2, 3):
        found = perplexity(model, text_rows(tokenizer, TEXTS, max_length=64, batch_size=batch_size))
        assert found.loss == pytest.approx(loss, rel=1e-9)
        assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-9)
        assert (found.num_texts, found.num_tokens) == (3, sum(len(row) - 1 for row in ids))


def test_a_model_that_guesses_uniformly_has_the_perplexity_of_its_vocabulary():
    model = gpt2()
    torch.nn.init.zeros_(model.lm_head.weight)  # tied: the embedding too
    found = perplexity(model, text_rows(byte_tokenizer(), TEXTS, max_length=64, batch_size=3))
    assert found.perplexity == pytest.approx(259, rel=1e-4)


def test_texts_are_cut(model):
    found = perplexity(model, text_rows(byte_tokenizer(), ["x" * 500], max_length=10, batch_size=1))
    assert found.num_tokens == 9


def test_low_precision_logits_are_scored_in_float32():
    logits = torch.randn(2, 5, 300).bfloat16()
    labels = torch.randint(0, 300, (2, 5))
    assert token_losses(logits, labels).dtype == torch.float32


def test_no_token_to_predict_is_refused(model):
    with pytest.raises(ConfigError, match="at least one token") as caught:
        perplexity(model, [padded([[5]], pad=0), padded([[5, 6]], pad=0, num_source=[2])])
    assert caught.value.code == "text-no-tokens"


def test_every_module_gets_its_own_mode_back():
    model = gpt2()
    model.train()
    model.transformer.h[0].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert model.transformer.h[1].training and not model.transformer.h[0].training


@pytest.mark.parametrize(
    "sentences",
    [
        ["my code is 123", "my code is 954", "my code is 12"],
        ["ab", "xyz"],
        ["same", "same"],
        ["alone"],
        ["a b", "a"],
    ],
)
def test_the_likelihood_of_a_sentence_is_what_it_would_be_alone(model, sentences):
    if "a" in sentences:
        with pytest.raises(ConfigError, match="two tokens"):
            log_likelihoods(model, byte_tokenizer(), sentences)
        return
    for batch_size in (1, 2):
        found = log_likelihoods(model, byte_tokenizer(), sentences, batch_size=batch_size)
        wanted = [-one_by_one(model, open_ended(byte_tokenizer(), s)) for s in sentences]
        assert found == pytest.approx(wanted, rel=1e-9)
