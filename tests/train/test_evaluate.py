"""Scores of public rows: how many go through the model at once, and what becomes of memory that runs out."""

import pytest
import torch
from torch import nn

from reticent.account.ledger import read_ledger
from reticent.plan import Plan
from reticent.train import Evaluation, TrainSettings, evaluate, in_chunks, train
from reticent.train._evaluate import check_scores
from tests.train.joint import cross_entropy, make_data, make_model, make_plan

N = len(make_data())


class Narrow(nn.Module):
    """A model that runs out of memory on more than `most` rows at once, in eval mode."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.seen = inner, most, []

    def forward(self, x):
        if not self.training:
            self.seen.append(len(x))
            if len(x) > self.most:
                raise torch.OutOfMemoryError("no memory")
        return self.inner(x)


def scores(model, rows):
    x, y = rows
    return {"accuracy": (model(x).argmax(1) == y).double(), "loss": cross_entropy(model, rows)}


def measured(batch_size):
    return Evaluation(dataset=make_data(), scores=scores, batch_size=batch_size)


@pytest.mark.parametrize("most", [1, 3, 7, N])
def test_rows_that_do_not_fit_in_memory_are_scored_in_halves_each_once(most):
    inner = make_model()
    model = Narrow(inner, most)
    found = evaluate(model, measured(N)).means
    expected = evaluate(inner, measured(N)).means
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    fitted = [size for size in model.seen if size <= most]
    assert sum(fitted) == 2 * N  # `scores` makes two passes


def test_what_is_kept_is_of_every_row_in_order_and_averaged_nowhere():
    model, data = make_model(), make_data()

    def scored(model, rows):
        return {"loss": cross_entropy(model, rows), "logits": model(rows[0]), "labels": rows[1]}

    evaluation = Evaluation(dataset=data, scores=scored, batch_size=7, kept=("logits", "labels"))
    found = evaluate(Narrow(model, 3), evaluation)
    assert found.means.keys() == {"loss"} and found.kept.keys() == {"logits", "labels"}
    x, y = data.tensors
    assert torch.equal(found.kept["labels"], y)
    torch.testing.assert_close(found.kept["logits"], model.eval()(x))


def test_a_score_that_runs_out_half_way_counts_for_nothing():
    x, calls = torch.arange(6.0), []

    def act(rows):
        calls.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        return rows.tolist()

    found = list(in_chunks(x, act, size=5, device=torch.device("cpu")))
    assert found == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert calls == [5, 2, 2, 2]


def test_where_others_take_part_in_a_pass_it_is_not_tried_again():
    model = Narrow(make_model(), 3)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, measured(N), halve=False)
    assert model.seen == [N]


def test_the_early_check_scores_as_many_rows_as_the_evaluation_will():
    model = Narrow(make_model(), N)
    check_scores(model, measured(7))
    assert set(model.seen) == {7}


def trained(model, out, plan: Plan):
    return train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        plan=plan,
        dataset=make_data(),
        loss_per_example=cross_entropy,
        out=out,
        evaluation=measured(N),
        settings=TrainSettings(ema=0.9),
        noise_seed=1,
    )


def test_a_run_whose_evaluation_does_not_fit_ends_with_the_right_scores(tmp_path):
    wide = trained(Narrow(make_model(), N), tmp_path / "wide", make_plan(num_steps=2))
    narrow = trained(Narrow(make_model(), 5), tmp_path / "narrow", make_plan(num_steps=2))
    for weights in ("last", "ema"):
        for name, score in wide.scores[weights].items():
            assert narrow.scores[weights][name] == pytest.approx(score, rel=1e-6)


def test_memory_that_not_one_row_fits_in_is_found_before_anything_is_spent(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        trained(Narrow(make_model(), 0), tmp_path / "run", make_plan(num_steps=2))
    ledger = tmp_path / "run" / "ledger.jsonl"
    assert not ledger.exists() or read_ledger(ledger).num_steps == 0
