"""What rows a step takes: the self-check's, a transform's, and none that were changed on the way."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from reticent.errors import CoupledExamples, DataError, StepError
from reticent.sample import PoissonSampler
from tests.train.joint import (
    cross_entropy,
    make_data,
    make_model,
    make_plan,
    make_private,
    take,
    weights_of,
    with_rows,
)
from tests.train.test_step import LoopEngine, NoNoise, first, refused


def test_the_self_check_runs_once_on_fixed_rows_or_on_the_public_ones_given(tmp_path):
    model, plan, data = make_model(), make_plan(), make_data()
    engine = LoopEngine(model, 1.0)
    private = make_private(tmp_path / "a", model=model, plan=plan, engine=engine)
    for batch in plan.batches(data):
        take(private, with_rows(batch, [40, 50]))
    assert len(engine.checked) == 1
    spread = np.linspace(0, len(data) - 1, 16).astype(int)
    assert torch.equal(engine.checked[0][0], data.tensors[0][spread[:4]])

    public = make_data(seed=9)[:3]
    engine = LoopEngine(model, 1.0)
    private = make_private(tmp_path / "b", model=model, plan=plan, engine=engine, check_batch=public)
    take(private, first(plan))
    assert engine.checked[0] is public


def test_the_self_check_takes_rows_of_both_classes_where_they_are_sorted(tmp_path):
    x, y = make_data().tensors
    data = TensorDataset(x, y.sort().values)
    engine = LoopEngine(model := make_model(), 1.0)
    private = make_private(tmp_path, model=model, plan=(plan := make_plan()), engine=engine)
    take(private, next(iter(plan.batches(data))))
    assert len(engine.checked[0][1].unique()) == min(4, len(y.unique()))


def jitter(rows, generator):
    x, y = rows
    return x + torch.randn(x.shape, generator=generator), y


def mixup(rows, generator):
    x, y = rows
    return 0.5 * (x + x.roll(1, 0)), y


def centre(rows, generator):
    x, y = rows
    return x - x.mean(0), y


def test_a_transform_is_seeded_by_the_public_seed(tmp_path):
    def update(folder, seed):
        model, plan = make_model(), make_plan()
        private = make_private(
            tmp_path / folder, model=model, plan=plan, noise=NoNoise(), transform=jitter, seed=seed
        )
        take(private, first(plan))
        return weights_of(model)

    assert torch.equal(update("a", 1), update("b", 1))
    assert not torch.equal(update("c", 1), update("d", 2))


def grown(rows):
    rows["x"], rows["y"] = rows["x"].repeat(3, 1), rows["y"].repeat(3)


def mixed_in_place(rows):
    rows["x"].sub_(rows["x"].mean(0))


def mixed_unseen(rows):
    x = rows["x"].numpy()
    x -= x.mean(0)


def permuted_unseen(rows):
    rows["y"].numpy()[:] = rows["y"].numpy()[::-1].copy()


def replaced(rows):
    rows["x"] = rows["x"].flip(0)


def noted(rows):
    rows["note"] = "mine"


@pytest.mark.parametrize("change", [grown, mixed_in_place, mixed_unseen, permuted_unseen, replaced, noted])
def test_a_chunk_that_was_changed_is_refused(tmp_path, change):
    x, y = make_data().tensors
    plan = make_plan()
    batch = with_rows(next(iter(plan.batches({"x": x, "y": y}))), range(12))
    private = make_private(tmp_path, plan=plan)

    def use(step):
        for chunk in step.chunks():
            change(chunk)
            step.backward(lambda model, rows: cross_entropy(model, (rows["x"], rows["y"])), chunk)

    refused(private, batch, use, StepError, r"\[foreign-chunk\]")


def test_a_loss_may_take_items_out_of_its_rows(tmp_path):
    x, y = make_data().tensors
    plan = make_plan()
    batch = with_rows(next(iter(plan.batches({"x": x, "y": y}))), range(12))
    private = make_private(tmp_path, plan=plan)
    take(private, batch, lambda model, rows: cross_entropy(model, (rows.pop("x"), rows.pop("y"))))
    assert private.num_steps == 1


@pytest.mark.parametrize("secret", [True, False])
def test_draws_by_place_are_secret_where_the_number_of_examples_is(tmp_path, secret):
    plan = make_plan()
    if secret:
        plan = dataclasses.replace(plan, sampler=PoissonSampler(sampling_prob=0.2, expected_batch_size=10.0))
    draws = set()
    for folder in ("a", "b"):
        last = []
        private = make_private(
            tmp_path / folder,
            plan=plan,
            transform=lambda rows, g, last=last: last.append(g) or rows,
        )

        def loss(model, rows, last=last):
            last.append(torch.default_generator.initial_seed())
            return cross_entropy(model, rows)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(42)
            before = torch.get_rng_state()
            take(private, first(plan), loss)
            assert torch.equal(torch.get_rng_state(), before)
        draws.add((last[0].initial_seed(), last[-1]))
    transforms, layers = map(set, zip(*draws, strict=True))
    assert len(transforms) == len(layers) == (2 if secret else 1)
    assert (layers == {42}) is not secret


@pytest.mark.parametrize("transform", [mixup, centre])
def test_a_transform_that_mixes_examples_is_refused(tmp_path, transform):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan, transform=transform)

    def use(step):
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)

    refused(private, first(plan), use, CoupledExamples, r"\[mixing-transform\]")


def test_a_transform_that_drops_rows_is_refused(tmp_path):
    plan = make_plan()
    private = make_private(tmp_path, plan=plan, transform=lambda rows, g: tuple(t[1:] for t in rows))

    def use(step):
        for chunk in step.chunks():
            step.backward(cross_entropy, chunk)

    refused(private, first(plan), use, DataError, r"\[data-rows\]")


def test_a_chunk_that_failed_cannot_be_tried_again_or_passed_over(tmp_path):
    """A part of it may be in the sums: trying again would count examples twice."""
    private = make_private(tmp_path, engine=None, physical_batch_size=4)
    fails = [True]

    def loss(model, rows):
        if fails[0]:
            raise torch.OutOfMemoryError("no memory")
        return cross_entropy(model, rows)

    eight = with_rows(next(iter(private.plan.batches(make_data()))), range(8))
    with pytest.raises(StepError, match=r"\[chunk-failed\]"), private.step(eight) as step:
        for chunk in step.chunks():
            with contextlib.suppress(torch.OutOfMemoryError):
                step.backward(loss, chunk)
            fails[0] = False
            step.backward(loss, chunk)
    with pytest.raises(StepError, match=r"\[chunk-failed\]"), private.step(eight) as step:
        for number, chunk in enumerate(step.chunks()):
            fails[0] = number == 0
            with contextlib.suppress(torch.OutOfMemoryError):
                step.backward(loss, chunk)
    assert private.num_steps == 0
