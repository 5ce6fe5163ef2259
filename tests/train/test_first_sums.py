"""A step's sums are made by what is first added to them, and are all released."""

import pytest
import torch
from torch import nn

from reticent.clip import SumsOnDemand
from reticent.clip._compiled import _add_to
from reticent.clip._program import _apart
from reticent.rules import Outer
from reticent.train import PeakMemory
from tests.train.joint import cross_entropy, make_data, make_plan, make_private, take, with_rows


class Wide(nn.Module):
    """Six inputs, three classes, one wide layer between; and one parameter that no loss uses."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.inner, self.outer = nn.Linear(6, 4096), nn.Linear(4096, 3)
        self.unused = nn.Parameter(torch.zeros(500))

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(self.scale * x)))


def first(plan):
    return next(iter(plan.batches(make_data())))


def test_no_sum_takes_memory_while_the_first_forward_runs(tmp_path):
    private = make_private(tmp_path, model=Wide())
    batch, now = with_rows(first(private.plan), range(4)), []
    private._check_once(cross_entropy, batch)

    def loss(model, rows):
        now.append(memory._now)
        return cross_entropy(model, rows)

    with PeakMemory() as memory:
        take(private, batch, loss)
    sums = sum(4 * p.numel() for p in private.model.parameters())
    assert now[0] < 0.1 * sums


@pytest.mark.parametrize("num_rows, added", [(4, 0), (8, 2)], ids=["one-chunk", "two-chunks"])
def test_the_first_chunk_writes_its_sums_and_the_next_adds_to_them(tmp_path, monkeypatch, num_rows, added):
    private = make_private(tmp_path, model=Wide(), physical_batch_size=4)
    batch = with_rows(first(private.plan), range(num_rows))
    private._check_once(cross_entropy, batch)
    plain, seen = Outer.add_weighted, []

    def add_weighted(form, weights, keep, out):
        seen.append(out)
        plain(form, weights, keep, out)

    monkeypatch.setattr(Outer, "add_weighted", add_weighted)
    take(private, batch)
    assert len(seen) == added  # the two layers' weights


@pytest.mark.parametrize("rows", [[], range(6)], ids=["empty-batch", "some-rows"])
def test_parameters_that_nothing_was_added_to_are_noised(tmp_path, rows):
    private = make_private(tmp_path, model=Wide(), plan=make_plan(noise_multiplier=2.0, max_norm=0.5))
    before = {n: p.detach().clone() for n, p in private.model.named_parameters()}
    take(private, with_rows(first(private.plan), rows))
    for name in ("unused",) if rows else before:
        moved = dict(private.model.named_parameters())[name].detach() - before[name]
        assert int((moved == 0).sum()) < 3  # noise below half an ulp: three of 41,000 in 1e-8 of runs
        if moved.numel() >= 500:  # 500 normals' deviation is off by over 5 standard errors in 1e-6 of runs
            assert float(moved.std()) == pytest.approx(2.0 * 0.5 / 16, rel=5 / 1000**0.5)


def test_noise_is_drawn_in_the_parameters_order_whatever_was_added_first():
    params = dict(Wide().named_parameters())
    sums = SumsOnDemand(params)
    sums["outer.bias"].add_(1.0)
    assert list(sums) == list(sums.keys()) == list(params) and len(sums) == len(params)
    assert {n: t.shape for n, t in sums.items()} == {n: p.shape for n, p in params.items()}
    assert "unused" in sums and "other" not in sums
    with pytest.raises(KeyError):
        sums["other"]


def test_a_step_that_fails_leaves_no_sum_that_was_written(tmp_path):
    private = make_private(tmp_path, model=Wide(), physical_batch_size=4)
    batch = with_rows(first(private.plan), range(8))
    made = []
    with pytest.raises(torch.OutOfMemoryError), private.step(batch) as step:
        for chunk in step.chunks():
            if made:
                raise torch.OutOfMemoryError("full")
            step.backward(cross_entropy, chunk)
            made += step._sums.total.made.values()
            assert all(bool(t.isfinite().all()) for t in made)
            del chunk
    assert len(made) >= 5 and all(bool(t.isnan().all()) for t in made)
    assert private.num_steps == 0


def test_what_a_graph_returns_twice_or_was_given_is_not_a_sum_of_two_names():
    given, twice, own = torch.ones(3), torch.full((3,), 2.0), torch.full((3,), 3.0)
    sums = _apart([given, twice, twice, own], [given])
    total = SumsOnDemand({str(i): torch.empty(3) for i in range(4)})
    for _ in range(2):
        _add_to(total, dict(zip("0123", sums, strict=True)))
        sums = [t.clone() for t in sums] if total["3"] is own else sums
    assert total["3"] is own  # nothing was copied that need not be
    assert [float(total[n][0]) for n in "0123"] == [2.0, 4.0, 4.0, 6.0]
    assert float(given[0]) == 1.0
