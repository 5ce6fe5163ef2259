"""A row's loss is the one that the model itself gives for that row alone."""

import pytest
import torch
import transformers as t

from reticent.errors import ConfigError
from reticent.hf import per_example_loss

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BERT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 16}
IDS = torch.arange(1, 25).reshape(3, 8)
MASK = torch.ones_like(IDS)
MASKED = IDS.masked_fill(IDS % 3 == 0, -100)


def bert(kind, **settings):
    return kind(t.BertConfig(**BERT, **settings))


def t5():
    config = t.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return t.T5ForConditionalGeneration(config)


CASES = {
    "next word": lambda: (
        t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)),
        {"labels": MASKED},
    ),
    "next word, Llama": lambda: (
        t.LlamaForCausalLM(t.LlamaConfig(vocab_size=40, num_key_value_heads=1, **SMALL)),
        {"labels": MASKED},
    ),
    "masked words": lambda: (bert(t.BertForMaskedLM), {"labels": MASKED}),
    "tokens": lambda: (bert(t.BertForTokenClassification, num_labels=5), {"labels": MASKED.clamp(max=4)}),
    "target words": lambda: (t5(), {"labels": MASKED}),
    "class": lambda: (
        bert(t.BertForSequenceClassification, num_labels=3),
        {"labels": torch.tensor([0, 2, 1])},
    ),
    "number": lambda: (
        bert(t.BertForSequenceClassification, num_labels=1),
        {"labels": torch.tensor([0.3, 2.0, 1.0])},
    ),
    "several classes": lambda: (
        bert(t.BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
        {"labels": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])},
    ),
    "span": lambda: (
        bert(t.BertForQuestionAnswering),
        {"start_positions": torch.tensor([0, 3, 9]), "end_positions": torch.tensor([2, 3, 9])},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_models_own_loss_of_the_row_alone(name):
    torch.manual_seed(0)
    model, labels = CASES[name]()
    rows = {"input_ids": IDS, "attention_mask": MASK, **labels}
    model = model.double().eval()
    ours = per_example_loss(model)(model, rows)
    for b in range(3):
        theirs = model(**{key: value[b : b + 1] for key, value in rows.items()}).loss
        if name == "span" and b == 2:  # both outside the row: theirs divides 0 by 0
            assert ours[b] == 0.0
            continue
        torch.testing.assert_close(ours[b], theirs.double(), rtol=1e-6, atol=1e-8)


def test_several_choices_are_one_row():
    model = bert(t.BertForMultipleChoice).double().eval()
    rows = {"input_ids": IDS.reshape(1, 3, 8).repeat(2, 1, 1), "labels": torch.tensor([1, 2])}
    rows["attention_mask"] = torch.ones_like(rows["input_ids"])
    ours = per_example_loss(model)(model, rows)
    for b in range(2):
        theirs = model(**{key: value[b : b + 1] for key, value in rows.items()}).loss
        torch.testing.assert_close(ours[b], theirs.double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["next word", "tokens", "class"])
def test_smoothing_is_the_trainers(name):
    torch.manual_seed(0)
    model, labels = CASES[name]()
    model = model.double().eval()
    rows = {"input_ids": IDS, "attention_mask": MASK, **labels}
    ours = per_example_loss(model, label_smoothing=0.1)(model, rows)
    smoother = t.trainer_pt_utils.LabelSmoother(epsilon=0.1)
    for b in range(3):
        row = {key: value[b : b + 1].clone() for key, value in rows.items()}  # theirs changes labels in place
        theirs = smoother(model(**row), row["labels"], shift_labels=name == "next word")
        torch.testing.assert_close(ours[b], theirs.double(), rtol=1e-5, atol=1e-6)  # theirs adds in float32


def test_a_row_without_a_label_counts_as_zero():
    model, _ = CASES["next word"]()
    rows = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.full_like(IDS, -100)}
    assert per_example_loss(model)(model, rows).tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_head_and_missing_labels_are_refused_by_name():
    with pytest.raises(ConfigError, match="BertForPreTraining") as caught:
        per_example_loss(bert(t.BertForPreTraining))
    assert caught.value.code == "trainer-loss"
    model, _ = CASES["class"]()
    with pytest.raises(ConfigError, match="no 'labels'"):
        per_example_loss(model)(model, {"input_ids": IDS, "attention_mask": MASK})
    with pytest.raises(ConfigError, match="label_smoothing_factor"):
        per_example_loss(CASES["span"]()[0], label_smoothing=0.1)
