"""Couplings that a first batch, or the self-check's rows, do not show: when proofs are made anew."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reticent as rt
from reticent.clip import ClipEngine
from reticent.errors import CoupledExamples


def linear() -> tuple[nn.Linear, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(8, 4), torch.randn(8, 8)


def test_what_was_proven_without_random_draws_is_proven_again_with_them() -> None:
    model, x = linear()

    def losses(batch: Tensor) -> Tensor:
        h = model(batch)
        mixed = torch.where(torch.rand(len(h), 1) < 0.5, h.mean(0), h)  # silenced, a draw is 0.6
        return mixed.square().sum(1)

    engine = ClipEngine(model, max_norm=1.0)
    engine.check(losses, x)
    with torch.random.fork_rng(devices=[]), pytest.raises(CoupledExamples, match="reaches other examples"):
        torch.manual_seed(0)
        engine.clipped_sum(losses, x)


@pytest.mark.parametrize("off", [0.0, 0])
@pytest.mark.parametrize("form", ["times", "lerp"])
def test_a_term_that_is_switched_on_is_proven_then(off: float, form: str) -> None:
    model, x = linear()
    weight = off

    def losses(batch: Tensor) -> Tensor:
        h = model(batch)
        far = h - h.mean(0)
        part = weight * far if form == "times" else torch.lerp(torch.zeros_like(far), far, float(weight))
        return h.square().sum(1) + part.square().sum(1)

    engine = ClipEngine(model, max_norm=1.0)
    engine.check(losses, x)
    engine.clipped_sum(losses, x)
    weight = 1.0
    with pytest.raises(CoupledExamples, match="reaches other examples"):
        engine.clipped_sum(losses, x)


def test_a_coupling_that_values_switch_on_is_found_within_twice_as_many_batches() -> None:
    model, x = linear()

    def losses(batch: Tensor) -> Tensor:
        h = model(batch)
        return F.relu(h.mean(0).square().sum() * h.sum(1) - 100.0) + h.square().sum(1)

    engine = ClipEngine(model, max_norm=1.0)
    engine.check(losses, x)
    for _ in range(3):
        engine.clipped_sum(losses, x)
    num_passed = 0
    with pytest.raises(CoupledExamples, match="reaches other examples"):
        for num_passed in range(14):  # noqa: B007 -- read below
            engine.clipped_sum(losses, 100 * x)
    assert num_passed == 12


@pytest.mark.parametrize("num_alike", [6, 8])
def test_rows_that_are_alike_hide_no_statistic_of_the_batch(num_alike: int) -> None:
    model, x = linear()
    x[:num_alike] = x[0]

    def losses(batch: Tensor) -> Tensor:
        h = model(batch)
        return (h - h.mean(0).detach()).square().sum(1) + h.square().sum(1)

    with pytest.raises(CoupledExamples):
        rt.clipped_sum(model, losses, x, max_norm=1.0)


def overfitted(seed: int) -> tuple[nn.Linear, tuple[Tensor, Tensor]]:
    """A classifier that is sure of every row, and right: gradients down to the smallest floats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, x = nn.Linear(384, 2), torch.randn(64, 384)
    with torch.no_grad():
        model.weight.mul_(120.0)
    return model, (x, model(x).argmax(1))


def entropy(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(rows[0]), rows[1], reduction="none")


def test_a_model_that_fits_all_but_exactly_is_not_refused() -> None:
    for seed in range(5):
        model, rows = overfitted(seed)
        norms = ClipEngine(model, max_norm=0.1).clipped_sum(lambda r, m=model: entropy(m, r), rows).norms
        tiny = torch.finfo(torch.float32).tiny
        assert bool(((norms > 0) & (norms < 1e3 * tiny)).any())  # of which products round otherwise
        assert bool((norms > 0.1 * tiny).any())


def test_what_is_all_but_zero_proves_nothing() -> None:
    model, x = linear()
    engine = ClipEngine(model, max_norm=1.0)

    def losses(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, scale, mixed = batch
        y = model(x).tanh() * scale[:, None]
        return (y + mixed[:, None] * y.roll(1, 0)).sum(1)

    zeros, ones = torch.zeros(8), torch.ones(8)
    engine.clipped_sum(losses, (x, ones * 1e-36, zeros))
    with pytest.raises(CoupledExamples, match="reaches other examples"):
        engine.clipped_sum(losses, (x, ones, ones))
