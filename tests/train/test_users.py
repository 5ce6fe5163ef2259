"""Units of several rows: users and views, against the loop of the definition in float64."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from reticent.account.ledger import read_ledger
from reticent.clip import ClipEngine
from reticent.errors import ConfigError, DataError, LedgerError, StepError
from reticent.plan import Plan
from reticent.records import FlatClipping
from reticent.sample import PoissonSampler, SampleStream
from reticent.train import PrivateStep, UserRows, over_users, over_views, train
from tests.train.joint import NoNoise, cross_entropy, make_data, make_model, take, with_rows

USERS = [f"u{i % 7}" for i in range(40)] + ["alone"] * 1 + ["many"] * 23  # sizes 5 or 6, 1, and 23
MAX_NORM = 0.3


def make_plan(num_users=9, unit="user", num_steps=3):
    return Plan(
        sampler=PoissonSampler(num_examples=num_users, expected_batch_size=3),
        num_steps=num_steps,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=MAX_NORM),
        delta=1e-3,
        unit=unit,
    )


def float64_rows():
    x, y = make_data().tensors
    return x.double(), y


def rows_of(users, name, max_rows):
    return [i for i, u in enumerate(users) if u == name][:max_rows]


def reference(model, data, users, drawn, *, max_rows, reduce):
    """Algorithm 1 with users for examples, one row at a time; nothing of ours in it."""
    params = list(model.parameters())
    total = [torch.zeros_like(p) for p in params]
    for name in drawn:
        mine = [torch.zeros_like(p) for p in params]
        rows = rows_of(users, name, max_rows)
        for i in rows:
            loss = nn.functional.cross_entropy(model(data[0][i : i + 1]), data[1][i : i + 1])
            for m, g in zip(mine, torch.autograd.grad(loss, params), strict=True):
                m += g / (len(rows) if reduce == "mean" else 1)
        norm = math.sqrt(sum(float(m.square().sum()) for m in mine))
        for t, m in zip(total, mine, strict=True):
            t += m / max(1.0, norm / MAX_NORM)
    return torch.cat([t.reshape(-1) for t in total])


def released_sum(tmp_path, name, *, users, indices, data=None, physical=256, **options):
    """The raw sum of a step on the users `indices`."""
    model = make_model().double()
    spy = Spy(model)
    rows = UserRows(float64_rows() if data is None else data, users, **options)
    plan = make_plan(len(rows))
    private = PrivateStep(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        plan=plan,
        ledger=tmp_path / name,
        noise=NoNoise(),
        physical_batch_size=physical,
        engine=spy,
    )
    take(private, with_rows(next(plan.batches(rows)), indices), over_users(cross_entropy))
    private.close()
    return spy.flat()


class Spy:
    """An engine that remembers the raw sum: what leaves a step was rounded for its noise."""

    def __init__(self, model):
        self.engine, self.total = ClipEngine(model, clipping=FlatClipping(max_norm=MAX_NORM)), {}

    def check(self, losses, batch):
        self.engine.check(losses, batch)

    def clipped_sum(self, losses, batch, *, num_units=None, out=None):
        added = self.engine.clipped_sum(losses, batch, num_units=num_units, out=out)
        self.total = {name: t.clone() for name, t in added.total.items()}
        return added

    def flat(self):
        return torch.cat([t.reshape(-1) for t in self.total.values()])


NAMES = [*(f"u{i}" for i in range(7)), "alone", "many"]  # the order of their first rows


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("physical", [1, 4, 256])
def test_a_user_is_clipped_as_one(tmp_path, reduce, physical):
    seen = released_sum(
        tmp_path, "a", users=USERS, indices=range(9), physical=physical, max_rows=4, reduce=reduce
    )
    want = reference(make_model().double(), float64_rows(), USERS, NAMES, max_rows=4, reduce=reduce)
    torch.testing.assert_close(seen, want, rtol=1e-12, atol=1e-12)
    other = reference(make_model().double(), float64_rows(), USERS, NAMES, max_rows=3, reduce=reduce)
    assert not torch.allclose(seen, other, rtol=1e-6)  # the comparison can fail


@pytest.mark.parametrize("user", [0, 7, 8])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_whatever_one_user_writes_moves_the_sum_by_at_most_the_bound(tmp_path, user, reduce):
    x, y = float64_rows()
    mine = torch.tensor([name == NAMES[user] for name in USERS])
    kept = released_sum(
        tmp_path, "kept", users=USERS, indices=range(9), max_rows=8, choose="seeded", reduce=reduce
    )
    gone = released_sum(
        tmp_path,
        "gone",
        users=USERS,
        indices=[i for i in range(9) if i != user],
        max_rows=8,
        choose="seeded",
        reduce=reduce,
    )
    wild = released_sum(
        tmp_path,
        "wild",
        users=USERS,
        indices=range(9),
        data=(torch.where(mine[:, None], 1e3 * x, x), y),
        max_rows=8,
        choose="seeded",
        reduce=reduce,
    )
    assert float((kept - gone).norm()) <= MAX_NORM * (1 + 1e-9)
    assert float((wild - gone).norm()) <= MAX_NORM * (1 + 1e-9)


def test_views_are_averaged_before_clipping(tmp_path):
    x, y = float64_rows()

    def three_views(rows, generator):
        images, labels = rows
        views = torch.stack([images, images.flip(1), 2 * images], 1)
        return views, labels[:, None].expand(-1, 3)

    model = make_model().double()
    spy = Spy(model)
    plan = make_plan(64, unit="example")
    private = PrivateStep(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        plan=plan,
        ledger=tmp_path / "v",
        noise=NoNoise(),
        transform=three_views,
        physical_batch_size=5,
        engine=spy,
    )
    take(private, with_rows(next(plan.batches((x, y))), range(12)), over_views(cross_entropy))
    seen = spy.flat()
    views = torch.stack([x, x.flip(1), 2 * x], 1)[:12].reshape(36, -1)
    users = [str(i // 3) for i in range(36)]
    want = reference(
        make_model().double(),
        (views, y[:12].repeat_interleave(3)),
        users,
        [str(i) for i in range(12)],
        max_rows=3,
        reduce="mean",
    )
    torch.testing.assert_close(seen, want, rtol=1e-12, atol=1e-12)


def test_which_rows_of_a_user_take_part_does_not_depend_on_others():
    x = torch.arange(64.0)[:, None]
    others = [name if name == "many" else "merged" for name in USERS]
    for choose in ("first", "seeded"):
        rows = UserRows(x, USERS, max_rows=5, choose=choose).fetch(np.array([8]))[0]
        alone = UserRows(x, others, max_rows=5, choose=choose).fetch(np.array([1]))[0]
        assert torch.equal(rows, alone)
    seeds = [UserRows(x, USERS, max_rows=5, choose="seeded", seed=s).fetch(np.array([8]))[0] for s in (0, 1)]
    assert not torch.equal(*seeds)


def test_a_dict_of_rows_and_a_single_tensor_keep_their_form():
    x = torch.arange(64.0)[:, None]
    seen = []
    loss = over_users(lambda model, rows: seen.append(rows) or torch.ones(18))
    for data in (x, {"input_ids": x}):
        users = UserRows(data, USERS, max_rows=2)
        assert torch.equal(loss(nn.Identity(), users.fetch(np.arange(9))), torch.ones(9))
    assert torch.equal(seen[0], seen[1]["input_ids"]) and seen[0].shape == (18, 1)


def test_a_run_counts_users_and_its_ledger_says_so(tmp_path):
    rows = UserRows(make_data(), USERS, max_rows=4)
    model = make_model()
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan=make_plan(),
        dataset=rows,
        loss_per_example=over_users(cross_entropy),
        out=tmp_path / "run",
    )
    public = read_ledger(tmp_path / "run" / "ledger.jsonl").public
    assert (public["unit"], public["num_examples"], public["expected_batch_size"]) == ("user", 9, 3)
    described = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]
    assert described["unit"] == "user" and Plan.from_dict(described) == make_plan()


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_plan_for_other_units_is_refused_before_anything_is_spent(tmp_path, unit):
    data = UserRows(make_data(), USERS, max_rows=4) if unit == "example" else make_data()
    model, plan = make_model(), make_plan(9 if unit == "example" else 64, unit=unit)
    with pytest.raises(StepError, match=r"privacy unit is '.*privacy-unit"):
        train(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            plan=plan,
            dataset=data,
            loss_per_example=over_users(cross_entropy),
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_ledger_of_users_does_not_take_steps_of_rows(tmp_path):
    from reticent.train._ledger import create_ledger

    ledger = create_ledger(tmp_path / "l.jsonl", make_plan(), run_id="a", reproducible=True)
    model = make_model()
    with ledger, pytest.raises(LedgerError, match="unit"):
        PrivateStep(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            plan=make_plan(unit="example"),
            ledger=ledger,
        )


def test_users_are_drawn_not_rows():
    """900 draws of 9 users with q = 1/3: a mean within 5 standard deviations (false alarm 6e-7)."""
    plan = make_plan(num_steps=900)
    users = UserRows(make_data(), USERS, max_rows=4)
    drawn = np.concatenate([b.indices for b in plan.batches(users, stream=SampleStream.reproducible(3))])
    assert drawn.max() <= 8
    assert abs(len(drawn) - 2700) < 5 * math.sqrt(8100 * 2 / 9)


@pytest.mark.parametrize(
    ("users", "options", "error", "match"),
    [
        (USERS[:-1], {"max_rows": 2}, DataError, "user-column"),
        ([*USERS[:-1], None], {"max_rows": 2}, DataError, "Row 63 has no user"),
        ([*USERS[:-1], ""], {"max_rows": 2}, DataError, "Row 63 has no user"),
        (np.arange(64) / 2, {"max_rows": 2}, DataError, "Row 0 has no user"),
        (USERS, {"max_rows": 0}, ConfigError, "user-rows"),
        (USERS, {"max_rows": 2, "choose": "best"}, ConfigError, "user-rows"),
        (USERS, {"max_rows": 2, "reduce": "max"}, ConfigError, "user-rows"),
    ],
)
def test_bad_users_are_refused(users, options, error, match):
    with pytest.raises(error, match=match):
        UserRows(make_data(), users, **options)


def test_rows_that_are_not_users_are_refused():
    with pytest.raises(ConfigError, match="user-rows"):
        over_users(cross_entropy)(make_model(), torch.zeros(3, 6))


def test_an_unknown_unit_is_refused():
    with pytest.raises(ConfigError, match="privacy-unit"):
        make_plan(unit="household")


def test_a_person_written_in_two_ways_is_not_two_users():
    data = make_data()
    for names in (["u", "u "], ["z\u00f6", "zo\u0308"], [1, "1"], ["u", " "]):
        users = (names * len(data))[: len(data)]
        with pytest.raises(DataError) as caught:
            UserRows(data, users, max_rows=2)
        assert caught.value.code == "user-column"
