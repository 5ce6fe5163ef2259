"""Users with many texts each: drawn, bounded and accounted as users; and a run on rows restated for users."""

import json

import pytest
import torch
from click.testing import CliRunner

import reticent as rt
from reticent.account.ledger import read_run_ledger
from reticent.cli.account import command as account_command
from reticent.errors import ReticentError
from reticent.recipes import describe, go_on, request, run
from reticent.recipes.text._splits import own_split, some
from reticent.recipes.text.language import TEXT_GENERATE, mean_loss
from reticent.report import write_report
from tests.recipes.text.models import byte_tokenizer, llama
from tests.support import oracle

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
NUM_USERS = 20


@pytest.fixture
def folder(tmp_path):
    llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def rows(tmp_path):
    """User k has 1 + k % 4 rows."""
    lines = [
        {"text": f"mail {n} of {k}", "who": f"user {k}"} for k in range(NUM_USERS) for n in range(1 + k % 4)
    ]
    path = tmp_path / "mails.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def asked(folder, rows, *more):
    settings = [
        f"model={folder}", f"data={rows}", "num_steps=2", "expected_batch_size=4", "max_length=16",
        "epsilon=8", "test_fraction=0.3", *more,
    ]  # fmt: skip
    return request("text-generate", settings)


def split(rows, **more):
    return own_split(
        str(rows), source_column=None, target_column="text", user_column="who", test_fraction=0.3, **more
    )


def test_whole_users_are_held_out_by_their_names_alone(rows, tmp_path):
    whole = split(rows)
    held_out = {text.split(" of ")[1] for _, text in whole.test}
    trained = {user.removeprefix("user ") for user in whole.users}
    assert held_out and trained and not held_out & trained
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(rows.read_text().splitlines()[10:]))
    again = split(fewer)
    assert set(again.users) <= set(whole.users) and set(again.test) <= set(whole.test)


def test_a_subset_is_of_whole_users_and_not_the_first(rows):
    whole = split(rows)
    part = some(whole, max_units=5, max_test=3)
    assert part.num_units == 5 and len(part.test) == 3
    assert all(whole.users.count(user) == part.users.count(user) for user in part.users)
    first = list(dict.fromkeys(whole.users))[:5]
    assert set(part.users) != set(first) and part == some(whole, max_units=5, max_test=3)


def test_a_private_run_counts_draws_and_states_users(folder, rows, tmp_path):
    out = tmp_path / "run"
    request_ = asked(folder, rows, "user_column=who", "rows_per_user=2")
    shown = describe(request_)
    num_users = split(rows).num_units
    assert shown["unit"] == "user" and TEXT_GENERATE.num_examples(request_.config) == num_users
    result = run(request_, out=out)
    ledger = read_run_ledger(out)
    ((mechanism, steps),) = ledger.segments()
    assert steps == 2 and ledger.public["unit"] == "user"
    assert mechanism.sampling_prob == pytest.approx(4 / num_users)
    assert 0 < result["epsilon"] <= 8
    written = write_report(out)
    assert "user" in written.path.read_text() and "user" in written.cards[0].read_text()
    assert go_on(out)["epsilon"] == pytest.approx(result["epsilon"])


def test_a_users_rows_are_clipped_as_one(folder, rows):
    config = asked(folder, rows, "user_column=who", "rows_per_user=3", "adaptation=full").config
    material = TEXT_GENERATE.prepare(config, TEXT_GENERATE.fetch(config, report=print, progress=False))
    model = TEXT_GENERATE.build(config).double()
    users = material.train.fetch(torch.arange(3).numpy())
    loss = TEXT_GENERATE.loss_per_example(config)
    total, norms = oracle.loop_clipped_sum(model, lambda b: loss(model, b), users, 0.05)
    found = rt.clipped_sum(model, lambda b: loss(model, b), users, max_norm=0.05)
    assert oracle.distance(found.total, total) < 1e-9 * 0.05
    assert len(norms) == 3 and bool((norms > 0.05).any())
    ids, mask, labels, weights = users
    kept = weights[2] > 0
    mean = mean_loss(model, (ids[2][kept], mask[2][kept], labels[2][kept])).mean()
    torch.testing.assert_close(loss(model, users)[2], mean)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["user_column=whose"], "no column 'whose'"),
        (["rows_per_user=2"], "rows_per_user would be ignored"),
        (["user_column=who", "test_fraction=0.000001"], "too few users"),
    ],
)
def test_bad_settings_of_users_are_named(folder, rows, tmp_path, settings, match):
    with pytest.raises(ReticentError, match=match):
        run(asked(folder, rows, *settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_rows_is_restated_for_users(folder, rows, tmp_path):
    result = run(asked(folder, rows), out=tmp_path / "run")
    told = CliRunner().invoke(
        account_command, [str(tmp_path / "run"), "--user-rows", "4", "--json"], catch_exceptions=False
    )
    stated = json.loads(told.stdout.splitlines()[-1])
    assert stated["epsilon"] == pytest.approx(result["epsilon"])
    assert stated["user_rows"] == 4 and stated["user_epsilon"] > stated["epsilon"]
