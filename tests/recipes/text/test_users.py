"""Users with many texts each, in both recipes: drawn, bounded, accounted as users; a run on rows restated."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import reticent as rt
from reticent.account.ledger import read_run_ledger
from reticent.cli.account import command as account_command
from reticent.cli.plan import command as plan_command
from reticent.data import read_table
from reticent.errors import ReticentError
from reticent.recipes import describe, go_on, request, run
from reticent.recipes.text._splits import own_split, some
from reticent.recipes.text._users import names_of
from reticent.recipes.text.classify import TEXT_CLASSIFY
from reticent.recipes.text.language import TEXT_GENERATE, mean_loss
from reticent.report import write_report
from tests.recipes.text.encoders import save_masked
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
    """User k has 1 + k % 4 rows; whether row n is good follows from both."""
    lines = [
        {
            "text": f"{'abcd'[k % 4]} {'abcd'[n]} mail {n} of {k}",
            "who": f"user {k}",
            "label": ("bad", "good")[(k + n) % 2],
            "size": k + n,
        }
        for k in range(NUM_USERS)
        for n in range(1 + k % 4)
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


def classified(tmp_path, rows, *more, objective="head"):
    """A request of `text-classify` on the same rows, with whole words as tokens."""
    labels = ["label_column=size"] if objective == "regression" else ["labels=bad,good"]
    settings = [
        f"model={save_masked(tmp_path / 'encoder')}", f"data={rows}", "num_steps=2", "expected_batch_size=4",
        "max_length=8", "epsilon=8", "test_fraction=0.3", f"objective={objective}", *labels, *more,
    ]  # fmt: skip
    return request("text-classify", settings)


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
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    renamed = [{**line, "other": f"{line['who']}!"} for line in lines]
    rows.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    path = out / "run.json"
    about = json.loads(path.read_text())
    for edit, named in (
        ({"user_column": "other"}, "user_column"),
        ({"rows_per_user": 9}, "rows_per_user"),
        ({"user_column": None, "rows_per_user": None}, "user_column"),
    ):
        path.write_text(json.dumps({**about, "config": {**about["config"], **edit}}))
        with pytest.raises(ReticentError, match=f"contradicts itself or the ledger in: .*{named}") as caught:
            go_on(out)
        assert caught.value.code == "run-edited"


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
    several = [u for u in range(3) if int((weights[u] > 0).sum()) > 1]
    assert several
    for u in several:
        kept = weights[u] > 0
        mean = mean_loss(model, (ids[u][kept], mask[u][kept], labels[u][kept])).mean()
        torch.testing.assert_close(loss(model, users)[u], mean)


def test_users_of_one_file_are_the_same_in_both_recipes(rows, tmp_path):
    asked_ = classified(tmp_path, rows, "user_column=who")
    fetched = TEXT_CLASSIFY.fetch(asked_.config, report=print, progress=False)
    texts, users = tuple(text for _, text in split(rows).train), split(rows).users
    assert tuple(fetched.train.texts) == texts and tuple(fetched.train.users) == users
    assert TEXT_CLASSIFY.num_examples(asked_.config) == len(set(users)) < len(users)


def test_a_private_classifier_counts_draws_and_states_users(rows, tmp_path):
    asked_ = classified(tmp_path, rows, "user_column=who", "rows_per_user=2")
    num_users = split(rows).num_units
    assert describe(asked_)["unit"] == "user"
    out = tmp_path / "run"
    result = run(asked_, out=out)
    ledger = read_run_ledger(out)
    ((mechanism, steps),) = ledger.segments()
    assert steps == 2 and ledger.public["unit"] == "user" and ledger.public["num_examples"] == num_users
    assert mechanism.sampling_prob == pytest.approx(4 / num_users)
    assert 0 < result["epsilon"] <= 8 and 0 <= result["test_accuracy"] <= 1
    card = write_report(out).cards[0].read_text()
    assert "one user, with all of their rows" in card and "a row of its training data" not in card
    assert f"the number of users, {num_users} |" in card
    assert go_on(out)["epsilon"] == pytest.approx(result["epsilon"])


@pytest.mark.parametrize("objective", ["head", "mask", "regression"])
def test_a_users_labelled_rows_are_clipped_as_one_and_move_the_sum_by_no_more(rows, tmp_path, objective):
    """The loop takes a user's own rows out of the file, one by one, and shares no code with `UserRows`."""
    more = ["template={text} {mask}", "label_words=bad,good"] if objective == "mask" else []
    config = classified(
        tmp_path, rows, "user_column=who", "rows_per_user=4", *more, objective=objective
    ).config
    fetched = TEXT_CLASSIFY.fetch(config, report=print, progress=False)
    users = TEXT_CLASSIFY.prepare(config, fetched).train
    model = TEXT_CLASSIFY.build(config).double()
    plain = config.model_copy(update={"user_column": None})
    each = TEXT_CLASSIFY.prepare(plain, fetched_without_users(fetched)).train
    row_loss, loss = (TEXT_CLASSIFY.loss_per_example(c) for c in (plain, config))
    names = list(dict.fromkeys(fetched.train.users))[:5]
    mine = [[k for k, user in enumerate(fetched.train.users) if user == name] for name in names]
    assert len({len(rows) for rows in mine}) > 1
    params = [p for p in model.parameters() if p.requires_grad]
    grads = []
    for own in mine:
        mean = torch.stack([row_loss(model, each[k : k + 1])[0] for k in own]).mean()
        found = torch.autograd.grad(mean, params, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, params, strict=True)]
        grads.append(torch.cat([part.flatten() for part in parts]))
    norms = torch.stack([g.norm() for g in grads])
    bound = 0.99 * float(norms.max())
    below = [len(own) for own, norm in zip(mine, norms, strict=True) if norm < bound]
    assert max(below) > 1, "of a user with several rows, more than the direction must be right"
    wanted = sum(g * min(1.0, bound / float(n)) for g, n in zip(grads, norms, strict=True))

    def clipped(indices):
        chunk = users.fetch(torch.tensor(indices).numpy())
        made = rt.clipped_sum(model, lambda b: loss(model, b), chunk, max_norm=bound)
        return torch.cat([made.total[n].flatten() for n, p in model.named_parameters() if p.requires_grad])

    whole = clipped(range(5))
    assert float((whole - wanted).norm()) < 1e-9 * bound
    moved = [float((whole - clipped([k for k in range(5) if k != gone])).norm()) for gone in range(5)]
    assert max(moved) == pytest.approx(bound, rel=1e-6) and all(m <= bound * (1 + 1e-9) for m in moved)


def fetched_without_users(fetched):
    return replace(fetched, train=replace(fetched.train, users=None))


def test_made_up_rows_are_users_too(rows, tmp_path):
    config = classified(tmp_path, rows, "user_column=who", "rows_per_user=3").config
    for made in (TEXT_CLASSIFY.random_rows(config, 4), TEXT_CLASSIFY.strange_rows(config, 4)):
        assert [tuple(t.shape[:2]) for t in made] == [(4, 3)] * 6


@pytest.mark.parametrize("users", [True, False])
def test_a_number_that_chooses_who_takes_part_is_told_as_public(folder, rows, tmp_path, users):
    """`max_examples` takes the smallest lots of those there are: how many there are is public too."""
    more = ["user_column=who"] if users else []
    asked_ = asked(folder, rows, "max_examples=6", *more)
    own = own_split(str(rows), source_column=None, target_column="text",
                    user_column="who" if users else None, test_fraction=0.3)  # fmt: skip
    assert describe(asked_)["num_available"] == own.num_units > 6
    assert "num_available" not in describe(asked(folder, rows, "max_examples=1000", *more))
    result = run(asked_, out=tmp_path / "run")
    assert result["num_steps"] == 2 and read_run_ledger(tmp_path / "run").public["num_examples"] == 6
    written = write_report(tmp_path / "run")
    one = "users" if users else "training examples"
    assert f"The number of {one} there were to choose among, {own.num_units}:" in written.path.read_text()
    assert f"the number of {one}, 6, and that of those they were chosen among, {own.num_units} |" in (
        written.cards[0].read_text()
    )
    told = CliRunner().invoke(plan_command, ["text-generate", *settings_of(asked_)], catch_exceptions=False)
    assert f"6 (public), chosen among {own.num_units} (public too)" in told.output


def settings_of(asked_):
    return [part for name, value in asked_.chosen.items() for part in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["user_column=whose"], "no column 'whose'"),
        (["rows_per_user=2"], "rows_per_user would be ignored"),
        (["user_column=who", "test_fraction=0.000001"], "too few users"),
    ],
)
def test_bad_settings_of_a_classifiers_users_are_named(rows, tmp_path, settings, match):
    with pytest.raises(ReticentError, match=match):
        run(classified(tmp_path, rows, *settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_users_of_named_data_are_refused():
    with pytest.raises(ReticentError, match="user_column would be ignored"):
        request("text-classify", ["user_column=who"])


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


@pytest.mark.parametrize("recipe", ["text-generate", "text-classify"])
@pytest.mark.parametrize(("written", "match"), [("user 3 ", "Two names of users"), ("  ", "nobody's")])
def test_a_user_in_two_spellings_is_refused_before_anything_is_spent(
    folder, rows, tmp_path, recipe, written, match
):
    """Else one person has twice the rows, is drawn twice, or is held out and trained on at once."""
    text = rows.read_text().replace('"who": "user 3"', f'"who": "{written}"', 1)
    rows.write_text(text)
    with pytest.raises(ReticentError, match=match) as caught:
        if recipe == "text-generate":
            run(asked(folder, rows, "user_column=who"), out=tmp_path / "run")
        else:
            run(classified(tmp_path, rows, "user_column=who"), out=tmp_path / "run")
    assert caught.value.code == "user-column" and not (tmp_path / "run").exists()


def test_a_number_and_its_digits_are_one_user(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"who": 7}\n{"who": "7"}\n{"who": "8"}\n')
    assert names_of(read_table(path), "who") == ("7", "7", "8")
