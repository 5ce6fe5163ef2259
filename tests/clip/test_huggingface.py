"""The engine on tiny random-initialised Hugging Face models, every parameter trainable."""

import pytest
import torch

import reticent as rt
from reticent.errors import ReticentError
from tests.support import hf, oracle
from tests.support.case import Case
from tests.support.judge import assert_close, median_norm, snapshot


@pytest.mark.parametrize("case", hf.EXACT, ids=repr)
def test_float64_equals_autograd_one_example_at_a_time(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    before = snapshot(problem.model)
    got = rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    assert snapshot(problem.model) == before
    assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", hf.EXACT, ids=repr)
def test_float32_is_close_to_the_float64_truth_and_never_rounds_a_norm_down(case: Case) -> None:
    wide, problem = case.build(0, torch.float64), case.build(0, torch.float32)
    max_norm = median_norm(wide)
    total, norms = oracle.loop_clipped_sum(wide.model, wide.losses, wide.batch, max_norm)
    got = rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    above = got.norms.double() / norms.clamp_min(1e-30)
    assert bool(((above >= 1) | (norms == 0)).all()), f"a norm is {1 - above.min():.1e} below the truth"
    assert bool((got.norms <= norms * (1 + 1e-3)).all()), f"a norm is {above.max() - 1:.1e} above the truth"
    assert oracle.distance(dict(got.total), total) <= 1e-5 * got.bound * len(norms)


@pytest.mark.parametrize("case", hf.EITHER, ids=repr)
def test_a_mixture_of_experts_is_exact_or_refused_by_name(case: Case) -> None:
    problem = case.build(0, torch.float64)
    max_norm = median_norm(problem)
    total, norms = oracle.loop_clipped_sum(problem.model, problem.losses, problem.batch, max_norm)
    try:
        got = rt.clipped_sum(problem.model, problem.losses, problem.batch, max_norm=max_norm)
    except ReticentError as refusal:
        with pytest.raises(ReticentError, match=case.match):
            raise refusal
    else:
        assert_close(got, total, norms, max_norm=max_norm, tolerance=1e-10)


@pytest.mark.parametrize("case", hf.EXACT, ids=repr)
def test_removing_any_example_moves_the_sum_by_at_most_its_bound(case: Case) -> None:
    problem = case.build(1, torch.float64)
    max_norm = 0.5 * median_norm(problem)
    engine = rt.ClipEngine(problem.model, max_norm=max_norm)
    full = engine.clipped_sum(problem.losses, problem.batch)
    for row in (0, problem.num_rows - 1):
        rest = engine.clipped_sum(problem.losses, oracle.without_row(problem.batch, row))
        assert oracle.distance(dict(full.total), dict(rest.total)) <= full.bound * (1 + 1e-6)


@pytest.mark.parametrize("name", ["gpt2-tied", "t5", "vit", "swin"])
def test_an_empty_batch_gives_zeros(name: str) -> None:
    problem = next(case for case in hf.EXACT if case.name == name).build(0, torch.float32)
    empty = oracle.take_rows(problem.batch, slice(0, 0))
    got = rt.clipped_sum(problem.model, problem.losses, empty, max_norm=1.0)
    assert got.norms.shape == (0,) and all(not t.any() for t in got.total.values())
    assert got.total.keys() == dict(problem.model.named_parameters()).keys()
