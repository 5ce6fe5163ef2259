"""Text recipes under audit: rows differ, so that probes see mistakes; canaries are random tokens."""

import json
import math
from dataclasses import replace

import pytest
import torch

from reticent.audit import neighbour_probe, private_training
from reticent.recipes import audit_recipe, audit_recipe_inputs, request
from reticent.recipes._audited import _of_recipe, _subject
from reticent.recipes.text._score import IGNORED
from tests.audit import planted
from tests.recipes.text.encoders import save_masked, word_tokenizer
from tests.recipes.text.models import byte_tokenizer, gpt2

pytest.importorskip("transformers")
LENGTH = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny decoder with tied weights, and rows of two people each."""
    folder = tmp_path_factory.mktemp("files")
    model = gpt2(1)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / "tiny")
    byte_tokenizer().save_pretrained(folder / "tiny")
    lines = [{"text": f"mail {k}", "who": f"p{k // 2}"} for k in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def asked(files, *more):
    return request(
        "text-generate",
        [
            f"model={files / 'tiny'}", f"data={files / 'rows.jsonl'}", "num_steps=3", "epsilon=8",
            f"max_length={LENGTH}", "expected_batch_size=4", "max_norm=1", "adaptation=full", *more,
        ],
    )  # fmt: skip


def test_made_up_rows_differ_and_hold_ordinary_tokens_only(files):
    recipe, config = asked(files).recipe, asked(files).config
    ids, mask, labels = recipe.random_rows(config, 50)
    assert ids.shape == mask.shape == labels.shape == (50, LENGTH)
    assert len({tuple(row) for row in ids.tolist()}) == 50
    lengths = mask.sum(1)
    assert (lengths.min(), lengths.max()) == (2, LENGTH)
    inside = ids[mask == 1]
    special = set(byte_tokenizer().all_special_ids)
    assert not special & set(inside.tolist()) and inside.max() < 259
    assert (labels[mask == 1] == inside).all() and (labels[mask == 0] == IGNORED).all()
    strange = recipe.strange_rows(config, 50)
    assert strange[1].all() and not (strange[0] == ids).all()


@pytest.mark.parametrize("objective", ["head", "mask", "regression"])
def test_made_up_rows_of_a_classifier(tmp_path, objective):
    save_masked(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"good {k}", "label": k % 2}) for k in range(30))
    )
    more = {
        "head": ["labels=0,1"],
        "mask": ["labels=0,1", "objective=mask", "template={text} it was {mask}", "label_words=good,bad"],
        "regression": ["objective=regression"],
    }[objective]
    made = request(
        "text-classify",
        [f"model={tmp_path / 'model'}", f"data={tmp_path / 'rows.jsonl'}", "max_length=12", *more],
    )
    ids, mask, types, at, y = made.recipe.random_rows(made.config, 40)
    tokenizer = word_tokenizer()
    last = mask.sum(1) - 1
    assert len({tuple(row) for row in ids.tolist()}) == 40 and len(set(last.tolist())) > 3
    assert (ids[mask == 0] == tokenizer.pad_token_id).all()
    special = set(tokenizer.all_special_ids) - ({tokenizer.mask_token_id} if objective == "mask" else set())
    assert not special & set(ids[mask == 1].tolist())
    assert len(set(y.tolist())) > (2 if objective == "regression" else 1)
    assert set(types.flatten().tolist()) == {0, 1} and not types[mask == 0].any()
    if objective == "mask":
        assert (ids.gather(1, at[:, None]) == tokenizer.mask_token_id).all()
    assert (
        made.recipe.loss_per_example(made.config)(
            made.recipe.build(made.config), made.recipe.random_rows(made.config, 4)
        )
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("sums", [planted.each_use_clipped_apart, planted.clipped_after_averaging])
def test_mistakes_in_a_text_model_are_seen_and_would_not_be_on_equal_rows(files, sums):
    subject = _subject(_of_recipe(asked(files)))
    wrong = planted.trainer(sums=sums)
    assert not neighbour_probe(wrong, subject).passed
    one = torch.full((8, LENGTH), 5)
    equal = replace(subject, rows=lambda num: (one[:num], torch.ones_like(one[:num]), one[:num]))
    assert neighbour_probe(wrong, equal).passed


@pytest.mark.slow
def test_a_right_text_model_passes(files):
    assert neighbour_probe(private_training, _subject(_of_recipe(asked(files)))).passed


def test_random_tokens_are_the_canaries_and_their_exposure_is_told(files):
    result = audit_recipe_inputs(asked(files), num_canaries=30, num_rows=8, confidence=1 - 1e-6)
    assert result.passed and result.canaries == "inputs, random tokens"
    assert result.exposure is not None
    assert 0.0 <= result.exposure.bits_in <= math.log2(1001)


@pytest.mark.slow
def test_a_user_is_a_canary_where_users_are_the_units(files):
    people = asked(files, "user_column=who", "rows_per_user=2")
    seen = audit_recipe(people, num_canaries=40, num_rows=8, confidence=1 - 1e-6)
    assert seen.passed, seen
    result = audit_recipe_inputs(people, num_canaries=10, num_rows=8, confidence=0.999, seed=1)
    assert result.passed and result.exposure is not None
