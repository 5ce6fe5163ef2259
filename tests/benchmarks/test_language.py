"""The benchmarks on language models, on made-up texts: they train, measure, and say the same twice."""

import math

import pytest
import torch

from benchmarks import secret
from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.recipes import Request
from reticent.recipes._config import make_config

TEXTS = [f"mail {k} about nothing at all" for k in range(40)]
SMALL = {"num_texts": 40, "length": 40, "width": 16, "layers": 1, "num_steps": 3, "expected_batch_size": 8.0}


def run(tmp_path, epsilon):
    chosen = {**SMALL, "epsilon": epsilon}
    recipe, kept = secret.SecretRecipe(), {}
    recipe.finish = lambda config, model, folder, console: kept.update(model=model) or {}
    planted = secret.planted_texts(secret.secrets_of(0)[:10], TEXTS, 0)
    result = recipe.run(
        Request(recipe=recipe, config=make_config(secret.SecretConfig, chosen), chosen=chosen),
        out=tmp_path / "run",
        console=None,
        data=(planted, TEXTS[:8]),
    )
    return result, kept["model"]


def test_each_secret_is_planted_once_in_a_text_of_its_own():
    secrets = secret.secrets_of(0)[:10]
    planted = secret.planted_texts(secrets, TEXTS, 0)
    holders = [[k for k, text in enumerate(planted) if s.sentence() in text] for s in secrets]
    assert all(len(found) == 1 for found in holders) and len({found[0] for found in holders}) == 10
    assert sum(a != b for a, b in zip(planted, TEXTS, strict=True)) == 10
    assert secret.secrets_of(0) == secret.secrets_of(0) != secret.secrets_of(1)


def test_the_loss_is_the_mean_over_an_example_s_own_tokens():
    model = secret.SecretRecipe().build(make_config(secret.SecretConfig, {**SMALL, "epsilon": math.inf}))
    short, long = "abc", "abcdefgh and more"
    together = secret.mean_loss(model, secret.rows_of([short, long], 40))
    for loss, text in zip(together, (short, long), strict=True):
        alone = secret.mean_loss(model, secret.rows_of([text], len(text)))[0]
        torch.testing.assert_close(loss, alone)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_private_run_keeps_a_ledger_of_what_ran(tmp_path):
    result, model = run(tmp_path, 8.0)
    book = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert result["private"] and book.num_steps == 3
    stated = epsilon(tuple(book.segments()), delta=book.delta, relation=book.relation).epsilon
    assert result["epsilon"] == pytest.approx(stated) and stated <= 8
    found = secret.measure(secret.secrets_of(0)[:2], model, max_candidates=15)
    assert found == secret.measure(secret.secrets_of(0)[:2], model, max_candidates=15)
    assert len(found["bits"]) == 2 and all(0 <= bits <= 4 for bits in found["bits"])


def test_without_privacy_there_is_none(tmp_path):
    result, _ = run(tmp_path, math.inf)
    assert not result["private"] and result["epsilon"] is None
