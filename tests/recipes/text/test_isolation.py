"""Between a file and a gradient no row changes what becomes of another: its tokens, its place, its draw."""

import json

import pytest
import torch

from reticent.recipes import request
from reticent.recipes.text._labelled import Labelled
from reticent.recipes.text.classify import TEXT_CLASSIFY, encoded
from reticent.recipes.text.language import TEXT_GENERATE, token_rows
from tests.recipes.text.encoders import save_masked
from tests.recipes.text.models import byte_tokenizer, character_tokenizer, llama

# Empty, longer than any row, spelling a mask or an end, of letters that no tokenizer knows.
TEXTS = [
    "it was good", "", "film " * 500, "[MASK] it was [MASK]", "a </s> b [SEP] c",
    "\u6620\u753b \u0000 \u202e", "b",
]  # fmt: skip
SPLITS = {"text-classify": TEXT_CLASSIFY, "text-generate": TEXT_GENERATE}


def rows(chosen, *, pairs):
    seconds = [TEXTS[-1 - k] for k in chosen] if pairs else None
    return Labelled(texts=[TEXTS[k] for k in chosen], seconds=seconds, y=torch.tensor(chosen).numpy() % 2)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("objective", ["head", "mask", "prompt", "regression"])
def test_a_classifiers_tokens_of_a_row_are_those_of_the_row_alone(tmp_path, objective, pairs):
    if objective == "prompt":
        llama().save_pretrained(tmp_path / "tiny")
        character_tokenizer().save_pretrained(tmp_path / "tiny")
    else:
        save_masked(tmp_path / "tiny")
    label = 0.5 if objective == "regression" else "no"
    some = json.dumps({"text": "a", "other": "b", "label": label})
    (tmp_path / "rows.jsonl").write_text("\n".join([some] * 20))
    second = " {text_b}" if pairs else ""
    more = {
        "mask": [f"template={{text}} {{mask}}{second}", "label_words=bad,good"],
        "prompt": [f"template={{text}}{second}:{{mask}}", "label_words=b,g"],
    }.get(objective, [])
    more += ["pair_column=other"] if pairs else []
    more += [] if objective == "regression" else ["labels=no,yes"]
    settings = [f"model={tmp_path / 'tiny'}", f"data={tmp_path / 'rows.jsonl'}", "max_length=14", *more]
    config = request("text-classify", [*settings, f"objective={objective}"]).config
    together = encoded(config, rows(range(len(TEXTS)), pairs=pairs))
    for k in range(len(TEXTS)):
        for mine, alone in zip(together, encoded(config, rows([k], pairs=pairs)), strict=True):
            assert torch.equal(mine[k : k + 1], alone), TEXTS[k]


@pytest.mark.parametrize("make", [byte_tokenizer, character_tokenizer])
def test_a_decoders_tokens_of_a_row_are_those_of_the_row_alone(make):
    pairs = [("", text) for text in TEXTS] + list(zip(TEXTS, reversed(TEXTS), strict=True))
    together = token_rows(make(), pairs, 14, "\n")
    for k, pair in enumerate(pairs):
        for mine, alone in zip(together, token_rows(make(), [pair], 14, "\n"), strict=True):
            assert torch.equal(mine[k : k + 1], alone), pair


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("recipe", SPLITS)
def test_no_row_decides_who_is_held_out_or_takes_part(tmp_path, recipe, users):
    """A neighbouring file has another text and label in one row: all else is where it was."""
    lines = [{"text": f"row {k}", "label": "no", "who": f"user {k % 12}"} for k in range(40)]
    found = []
    for name in ("one.jsonl", "two.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, lines)))
        more = ["user_column=who"] if users else []
        more += ["labels=no,yes"] if recipe == "text-classify" else ["max_examples=6"]
        config = request(recipe, [f"data={path}", "test_fraction=0.3", "expected_batch_size=2", *more]).config
        split = SPLITS[recipe].fetch(config, report=print, progress=False)
        found.append([_texts(split.train), _texts(split.test), _users(split)])
        lines[7] = {"text": "another", "label": "yes", "who": "user 7"}
    (train, test, who), (train_two, test_two, who_two) = found
    assert train and test and who == who_two
    assert (len(train), len(test)) == (len(train_two), len(test_two))
    changed = [(a, b) for a, b in zip(train + test, train_two + test_two, strict=True) if a != b]
    assert changed in ([("row 7", "another")], [])


def _texts(part):
    return list(part.texts) if isinstance(part, Labelled) else [target for _, target in part]


def _users(split):
    return split.train.users if isinstance(split.train, Labelled) else split.users
