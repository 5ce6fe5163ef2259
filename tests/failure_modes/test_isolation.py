"""Failure modes 1 to 21: one example's influence on the sum. Each test plants the fault.

The first paragraph of a docstring says what goes wrong elsewhere, `Severity` how bad it is, `Prevented` how
it cannot happen here: `docs/failure-modes.md` is made from them.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from reticent import clipped_sum
from reticent.account import group_epsilon
from reticent.clip import ClipEngine
from reticent.clipping import (
    AutomaticClipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
    sensitivity,
)
from reticent.errors import ConfigError, CoupledExamples, StepError, UnsupportedModel
from reticent.plan import Plan
from reticent.sample import PoissonSampler
from reticent.train import PrivateStep
from tests.support.oracle import distance, loop_clipped_sum, norm_of, unit_gradient, without_row
from tests.train.joint import (
    NoNoise,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)

HUGE = 1e6  # a clipping norm that clips nothing


def tanh_net(*, inputs=6, outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def rows(n=6, inputs=6, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, inputs, generator=generator)


def squares(model):
    return lambda x: model(x).square().sum(tuple(range(1, model(x).dim())))


class MinusBatchMean(nn.Module):
    """Batch normalisation under another name."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("mixing", [nn.BatchNorm1d(5), MinusBatchMean()], ids=["by name", "by behaviour"])
def test_fm_01_batch_mixing_modules_are_refused(mixing):
    """A module mixes the examples of a batch (BatchNorm, or a home-made batch mean): one example moves
    every other one's gradient.

    Severity: critical
    Prevented: refused before the first step, BatchNorm by its class and everything else by its behaviour.
    """
    model = nn.Sequential(nn.Linear(6, 5), mixing, nn.Linear(5, 3))
    with pytest.raises((UnsupportedModel, CoupledExamples), match=r"mix|depend"):
        clipped_sum(model, squares(model), rows(), max_norm=1.0)


def test_fm_02_a_loss_divided_by_a_count_of_the_batch_is_refused():
    """The loss is divided by a count over the batch (its target tokens, say), so that adding one record
    rescales all the others.

    Severity: critical
    Prevented: the engine wants one loss for each example and compares examples alone and in a batch.
    """
    model = tanh_net()
    x, weight = rows(), torch.tensor([1.0, 9.0, 1.0, 2.0, 1.0, 1.0])

    def by_batch_count(batch):
        x, weight = batch
        return model(x).square().sum(1) * weight / weight.sum()

    engine = ClipEngine(model, max_norm=1.0)
    with pytest.raises(CoupledExamples, match="depends on"):
        engine.check(by_batch_count, (x, weight))
    engine.check(lambda batch: model(batch[0]).square().sum(1) * batch[1], (x, weight))


def test_fm_03_auxiliary_losses_over_the_batch_are_refused():
    """An auxiliary loss couples examples: contrastive terms, load balancing of experts.

    Severity: critical
    Prevented: losses have shape (B,) and each may depend on its own example only; a scalar is refused too.
    """
    model = tanh_net()
    engine = ClipEngine(model, max_norm=1.0)

    def contrastive(x):
        z = model(x)
        return -(z @ z.T).log_softmax(1).diagonal()

    with pytest.raises(CoupledExamples):
        engine.check(contrastive, rows())
    with pytest.raises((CoupledExamples, ConfigError), match="shape"):
        engine.clipped_sum(lambda x: model(x).square().mean(), rows())


def test_fm_04_padding_counts_for_nothing():
    """Padding tokens, or the padding row of an embedding, enter an example's norm: the gradient depends on
    the length of its neighbours.

    Severity: serious
    Prevented: a padding row has zero gradient as in torch, and what is masked in the loss has none anywhere.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        table, head = nn.Embedding(11, 4, padding_idx=0), nn.Linear(4, 1)
    model = nn.ModuleDict({"table": table, "head": head})

    def losses(ids):
        mask = (ids != 0).float()
        return (head(table(ids)).squeeze(-1) * mask).square().sum(1)

    short = torch.tensor([[1, 2, 3], [4, 5, 0]])
    long = nn.functional.pad(short, (0, 5))
    one, two = (clipped_sum(model, losses, ids, max_norm=HUGE) for ids in (short, long))
    torch.testing.assert_close(one.norms, two.norms, rtol=1e-5, atol=0)
    assert distance(dict(one.total), dict(two.total)) < 1e-5
    assert not one.total["table.weight"][0].any()

    def unmasked(ids):
        return head(table(ids)).squeeze(-1).square().sum(1)

    ours = clipped_sum(model, unmasked, short, max_norm=HUGE)
    assert not ours.total["table.weight"][0].any()
    _, norms = loop_clipped_sum(model, unmasked, short, HUGE)
    torch.testing.assert_close(ours.norms.double(), norms, rtol=1e-4, atol=0)


def test_fm_05_each_example_is_clipped_before_anything_is_added():
    """The mean gradient, or each micro-batch's, is clipped in place of each example's.

    Severity: critical
    Prevented: the engine's only result is a sum of gradients clipped one by one.
    """
    model = nn.Linear(6, 1, bias=False)
    x = rows(1).repeat(8, 1) * 100
    total = clipped_sum(model, lambda x: model(x).sum(1), x, max_norm=0.5).total
    assert float(norm_of({n: t.double() for n, t in total.items()})) == pytest.approx(8 * 0.5, rel=1e-4)
    less = clipped_sum(model, lambda x: model(x).sum(1), x[1:], max_norm=0.5).total
    assert distance(dict(total), dict(less)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 10.0])
def test_fm_06_one_number_clips_and_scales_the_noise(max_norm, tmp_path):
    """The clipping norm that was asked for never reaches the clipper, or the noise is scaled to another.

    Severity: critical
    Prevented: the sum carries its bound, and noise asks the sum; an engine made for another norm is refused.
    """
    model = nn.Linear(6, 1, bias=False)
    summed = clipped_sum(model, lambda x: 1e4 * model(x).sum(1), rows(1), max_norm=max_norm)
    assert summed.bound == max_norm
    assert float(norm_of({n: t.double() for n, t in summed.total.items()})) == pytest.approx(
        max_norm, rel=1e-4
    )
    model = make_model()
    plan = make_plan(max_norm=max_norm)
    other = make_private(tmp_path, model=model, plan=plan, engine=ClipEngine(model, max_norm=2 * max_norm))
    batch = next(plan.batches(make_data()))
    with pytest.raises(StepError, match="not the one the plan asked for"):
        take(other, with_rows(batch, [0, 1]))


class Tied(nn.Module):
    """An embedding that is the output layer too, through the functional form that hooks do not see."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids):
        return nn.functional.linear(self.table(ids).mean(1), self.table.weight)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Tied(), torch.randint(9, (5, 3))), (Twice(), rows(5))],
    ids=["tied by function", "called twice"],
)
def test_fm_07_every_use_of_a_parameter_is_in_the_norm(model, batch):
    """A ghost norm misses a part of the gradient: tied tables, a layer called twice.

    Severity: critical
    Prevented: norms are of parameters, over all their recorded uses; compared with one-by-one autograd.
    """
    losses = squares(model)
    total, norms = loop_clipped_sum(model, losses, batch, 0.3)
    ours = clipped_sum(model, losses, batch, max_norm=0.3)
    torch.testing.assert_close(ours.norms.double(), norms, rtol=1e-4, atol=0)
    assert distance(dict(ours.total), total) < 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(2, 4, 3, groups=2, stride=2, dilation=2),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
        nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)),
    ],
    ids=["circular", "grouped", "flat", "normalised"],
)
def test_fm_08_layer_formulas_are_those_of_autograd(layer):
    """A layer's formula is wrong in a corner: circular padding, groups, biases of 3-D inputs.

    Severity: critical
    Prevented: one operation's gradient is autograd's own or a proven form of it; a zoo of models is compared.
    """
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(3))
    total, norms = loop_clipped_sum(layer, squares(layer), x, 1.0)
    ours = clipped_sum(layer, squares(layer), x, max_norm=1.0)
    torch.testing.assert_close(ours.norms.double(), norms, rtol=1e-4, atol=1e-9)
    assert distance(dict(ours.total), total) < 1e-3


def test_fm_09_every_trainable_tensor_is_noised_and_none_may_appear_later(tmp_path):
    """A trainable parameter lies outside the private path (a head saved whole, a parameter added after
    wrapping, a second optimizer) and is updated with its raw gradient.

    Severity: critical
    Prevented: every trainable parameter is clipped and noised; the set is compared before each step.
    """
    model = make_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    private = make_private(tmp_path, model=model, plan=make_plan(noise_multiplier=1e6))
    batches = private.plan.batches(make_data())
    take(private, next(batches))
    for name, p in model.named_parameters():
        moved = (p.detach() - before[name]).abs()
        assert (moved > 10.0).double().mean() > 0.6, name  # of noise 62,500: but for 3e-7
    model.register_parameter("late", nn.Parameter(torch.zeros(2)))
    with pytest.raises(StepError, match="'late'"):
        take(private, next(batches))


def test_fm_10_a_parameter_that_some_examples_do_not_use_is_noised_all_the_same(tmp_path):
    """A parameter is used by some examples only, or by none: its gradient is missing, and so is its noise.

    Severity: critical
    Prevented: no gradient is a zero contribution, and noise is added to every trainable tensor in every step.
    """
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "idle": nn.Linear(6, 3)})
    idle = model["idle"].weight.detach().clone()

    def loss(model, batch):
        return nn.functional.cross_entropy(model["used"](batch[0]), batch[1], reduction="none")

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    private = PrivateStep(model, optimizer, plan=make_plan(), ledger=tmp_path / "run")
    take(private, next(private.plan.batches(make_data())), loss)
    assert int((model["idle"].weight.detach() == idle).sum()) < 2  # one may get less than half an ulp


# Not here: 1e30, finite in the output's gradient and infinite in the weight's. The proof of the layout
# compares rows beside it in float32 and, by its draws, may refuse the batch as mixing: to the safe side.
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_fm_11_a_record_that_is_not_finite_counts_as_zero(bad):
    """One record's gradient is NaN or infinite: the whole update becomes NaN, which everybody sees.

    Severity: critical
    Prevented: that record counts as zero in the sum, which is the sum without it, bit for bit.
    """
    model = nn.Linear(6, 3)
    x = rows()
    spoilt = x.clone()
    spoilt[2, 3] = bad
    keep = (torch.arange(6) != 2).float()
    ours = clipped_sum(model, squares(model), spoilt, max_norm=1.0)
    zeroed = clipped_sum(model, lambda batch: squares(model)(batch[0]) * batch[1], (x, keep), max_norm=1.0)
    for name, t in ours.total.items():
        assert torch.equal(t, zeroed.total[name])
        assert bool(t.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4, 1e8])
def test_fm_12_norms_of_every_size_are_right_in_every_precision(dtype, scale):
    """Norms are computed in half precision: squares under- and overflow, sums stall at 256.

    Severity: critical
    Prevented: squares, products and sums accumulate in float32 at least.
    """
    model = nn.Linear(3000, 1, bias=False).to(dtype)
    x = torch.ones(2, 3000, dtype=dtype) * scale
    ours = clipped_sum(model, lambda x: model(x).sum(1), x, max_norm=1.0)
    true = float(x.double().square().sum(1).sqrt()[0])
    assert float(ours.norms[0]) == pytest.approx(true, rel=1e-3)
    clipped = float(norm_of({n: t.double() for n, t in ours.total.items()})) / 2
    assert clipped <= 1.0 + 1e-3
    assert clipped == pytest.approx(min(1.0, true), rel=5e-3)


def test_fm_13_a_norm_from_inner_products_is_never_below_the_truth():
    """A norm from inner products of positions cancels, and comes out below the truth, or negative.

    Severity: serious
    Prevented: the rounding bound is added to the squared norm, or the gradient is made and measured.
    """
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(256, 256, bias=False)
    x, g = (torch.randn(8, 16, 256, generator=generator) for _ in range(2))
    x, g = torch.cat([x, x], 1), torch.cat([g, -g * (1 + 1e-3)], 1)  # so that x^T g nearly vanishes
    plain = (torch.bmm(x, x.mT) * torch.bmm(g, g.mT)).sum((1, 2)).sqrt()
    engine = ClipEngine(model, max_norm=1e-4)

    def summed(batch):
        return engine.clipped_sum(lambda b: (model(b[0]) * b[1]).sum((1, 2)), batch)

    ours = summed((x, g))
    assert "gram" in str(engine.explain()), "inner products are not what this model is clipped by"
    true = torch.einsum("bti,bto->boi", x.double(), g.double()).flatten(1).norm(dim=1)
    assert (ours.norms.double() >= true).all()
    assert not (plain.double() >= true).all(), "plain inner products would do"
    for row in range(3):
        less = summed(without_row((x, g), row))
        assert distance(dict(ours.total), dict(less.total)) <= 1e-4 * (1 + 1e-3)


CLIPPINGS = [
    FlatClipping(max_norm=0.7),
    AutomaticClipping(max_norm=0.7),
    PerLayerClipping(max_norm=0.7),
    GroupedClipping(max_norms=(("0.*", 0.3), ("2.*", 0.5))),
]


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=lambda c: type(c).__name__)
def test_fm_14_each_kind_of_clipping_keeps_to_the_sensitivity_it_declares(clipping):
    """A kind of clipping (rescaling, per layer, automatic) is noised for another sensitivity than its own.

    Severity: critical
    Prevented: the sensitivity is a function of the clipping, and comes with the sum.
    """
    model = tanh_net()
    bound = sensitivity(clipping)
    for seed in range(5):
        x = rows(seed=seed, scale=10.0 ** (seed - 2))
        whole = clipped_sum(model, squares(model), x, clipping=clipping)
        assert whole.bound == bound
        for row in range(len(x)):
            less = clipped_sum(model, squares(model), without_row(x, row), clipping=clipping)
            assert distance(dict(whole.total), dict(less.total)) <= bound * (1 + 1e-4)


def test_fm_15_copies_of_a_record_within_its_unit_count_as_one():
    """K augmented views of a record enter as K records, and it moves the sum by K times the bound.

    Severity: critical
    Prevented: views are rows of one unit, whose gradient is clipped once.
    """
    model = tanh_net()
    x = rows(4)
    one = clipped_sum(model, squares(model), x, max_norm=0.5)
    views = clipped_sum(
        model, lambda x: squares(model)(x) / 8, x.repeat_interleave(8, 0), max_norm=0.5, num_units=4
    )
    assert distance(dict(one.total), dict(views.total)) < 1e-5


def test_fm_16_the_unit_of_the_guarantee_is_named_and_groups_cost_more():
    """One user has many rows, and the epsilon of one row is read as theirs.

    Severity: critical
    Prevented: the statement names its unit, and the epsilon of k rows together can be asked for.
    """
    step = PoissonSampler(num_examples=100, expected_batch_size=1).mechanism(1.0)
    costs = [group_epsilon([(step, 1000)], group_size=k, delta=1e-5).epsilon for k in (1, 2)]
    assert costs == pytest.approx([1.829, 3.979], rel=1e-3)


def test_fm_17_what_comes_from_one_record_stays_one_unit():
    """Text is packed into blocks across records, so that one document sits in many examples, or two
    documents in one.

    Severity: critical
    Prevented: the library packs nothing; several blocks of a record are one unit, clipped as one.
    """
    model = tanh_net()
    blocks = rows(6)
    bound = 0.4
    whole = clipped_sum(model, squares(model), blocks, max_norm=bound, num_units=2)
    less = clipped_sum(model, squares(model), blocks[3:], max_norm=bound, num_units=1)
    assert distance(dict(whole.total), dict(less.total)) <= bound * (1 + 1e-4)
    as_rows = clipped_sum(model, squares(model), blocks, max_norm=bound)
    as_less = clipped_sum(model, squares(model), blocks[3:], max_norm=bound)
    assert distance(dict(as_rows.total), dict(as_less.total)) > 1.5 * bound  # what packing would do
    with pytest.raises((ConfigError, CoupledExamples), match="unit"):
        clipped_sum(model, squares(model), blocks, max_norm=bound, num_units=4)


def test_fm_18_no_record_is_in_a_batch_twice():
    """A record comes twice in one batch: drawn with replacement, or repeated to fill a rank's share.

    Severity: critical
    Prevented: a draw is a set: sorted, distinct indices, checked over many steps.
    """
    plan = Plan(
        sampler=PoissonSampler(num_examples=50, expected_batch_size=20),
        num_steps=300,
        noise_multiplier=1.0,
        clipping=FlatClipping(max_norm=1.0),
        delta=1e-3,
    )
    for batch in plan.batches(make_data(num_examples=50)):
        assert (np.diff(batch.indices) > 0).all()


@pytest.mark.parametrize("size", [1, 3, 7, 16, 64])
def test_fm_19_nothing_is_dropped_to_fit_in_memory(size, tmp_path):
    """A batch that is larger than expected is cut to what fits in memory, and accounted as if it were not.

    Severity: critical
    Prevented: a logical batch goes through in as many physical chunks as it takes; the sum is the same.
    """
    data, plan = make_data(), make_plan(num_examples=64, batch=16)
    batch = with_rows(next(plan.batches(data)), range(40))  # far above the expected 16

    def weights(physical):
        model = make_model()
        private = PrivateStep(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            plan=plan,
            ledger=tmp_path / f"{physical}",
            physical_batch_size=physical,
            noise=NoNoise(),
        )
        take(private, batch)
        return weights_of(model)

    torch.testing.assert_close(weights(size), weights(40), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_fm_20_activation_checkpointing_changes_nothing(reentrant):
    """Activation checkpointing runs the forward twice, and gradients are counted twice or lost.

    Severity: critical
    Prevented: recomputed operations are told from new ones; both variants equal the plain model.
    """
    model = tanh_net()

    def losses(x):
        return checkpoint(model, x, use_reentrant=reentrant).square().sum(1)

    x = rows().requires_grad_(reentrant)
    plain = clipped_sum(model, squares(model), rows(), max_norm=0.5)
    again = clipped_sum(model, losses, x, max_norm=0.5)
    torch.testing.assert_close(again.norms, plain.norms, rtol=1e-5, atol=0)
    assert distance(dict(again.total), dict(plain.total)) < 1e-5


def test_fm_21_an_overflowing_record_skips_no_step(tmp_path):
    """Dynamic loss scaling skips a step when one record overflows: visible, data-dependent and not counted.

    Severity: critical
    Prevented: there is no dynamic scale; the record counts as zero, and the step is performed and counted.
    """
    data = make_data()
    data.tensors[0][3] = torch.inf
    model = make_model()
    private = make_private(tmp_path, model=model)
    before = weights_of(model)
    take(private, with_rows(next(private.plan.batches(data)), [1, 3, 5]))
    after = weights_of(model)
    assert private.num_steps == private.ledger.num_steps == 1
    assert bool(after.isfinite().all()) and int((after == before).sum()) < 2


def test_the_check_of_isolation_would_see_what_it_looks_for():
    """The oracle of these tests, given a fault on purpose: a mean over the batch changes its gradients."""
    model = nn.Sequential(nn.Linear(6, 5), MinusBatchMean(), nn.Linear(5, 3))
    x = rows()
    alone = unit_gradient(model, squares(model), x[:1])
    inside = unit_gradient(model, lambda x: squares(model)(x)[:1], x)
    assert distance(alone, inside) > 1e-2
