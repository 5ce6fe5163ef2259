"""Reconstruction: exact where nothing protects, the prior where noise does; each attack can fail."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reticent as rt
from reticent.audit import (
    PicturePrior,
    Release,
    candidate_scores,
    first_layer_input,
    likely_input,
    match_gradient,
    nearer_than_pool,
    per_example_gradients,
    releases,
    residual_at_optimum,
    residuals,
)
from reticent.errors import AuditError
from reticent.noise import CipherNoise

N, SIZE, LABELS = 12, 16, 3


def losses(model, rows):
    x, y = rows
    return F.cross_entropy(model(x), y, reduction="none")


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, 8), nn.Tanh(), nn.Linear(8, LABELS))
    return model, (torch.rand(N, SIZE), torch.randint(LABELS, (N,)))


def without_first(rows):
    return tuple(part[1:] for part in rows)


def trained_privately(model, rows, folder, *, epsilon, num_steps=4, max_norm=0.5, noise=None):
    """The real path, watched; the first row is the target."""
    plan = rt.Plan.calibrate(
        budget=rt.Budget(epsilon=epsilon, delta=1e-5),
        sampler=rt.FullBatchSampler(num_examples=N),
        num_steps=num_steps,
        clipping=rt.FlatClipping(max_norm=max_norm),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with releases(model, optimizer) as seen:
        private = rt.PrivateStep(model, optimizer, plan=plan, ledger=folder, noise=noise)
        for batch in plan.batches(rows):
            with private.step(batch) as step:
                for chunk in step.chunks():
                    step.backward(losses, chunk)
    private.close()
    left = residuals(
        seen, model, losses, without_first(rows), divisor=plan.expected_batch_size, max_norm=max_norm
    )
    return plan, seen, left


def test_the_last_step_of_plain_training_gives_the_input_away(problem):
    model, rows = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with releases(model, optimizer) as seen:
        losses(model, rows).mean().backward()
        optimizer.step()
    left = residuals(seen, model, losses, without_first(rows), divisor=N)
    assert torch.allclose(first_layer_input(left), rows[0][0], atol=1e-4)


def test_the_optimum_of_a_convex_model_gives_the_input_away():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(SIZE, LABELS)).double()
    rows = (torch.rand(N, SIZE).double(), torch.randint(LABELS, (N,)))
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        total = losses(model, rows).sum() + 0.05 * sum(p.square().sum() for p in model.parameters())
        total.backward()
        return total

    optimizer.step(closure)
    weights = dict(model.named_parameters())
    known = without_first(rows)
    found = first_layer_input([residual_at_optimum(weights, model, losses, known, penalty=0.1)])
    assert torch.allclose(found, rows[0][0], atol=1e-5)
    wrong = first_layer_input([residual_at_optimum(weights, model, losses, known, penalty=0.2)])
    assert not torch.allclose(wrong, rows[0][0], atol=1e-2)


def test_a_private_release_is_the_clipped_gradient_and_noise_of_the_planned_size(problem, tmp_path):
    model, rows = problem
    known = CipherNoise.reproducible(1)
    plan, seen, left = trained_privately(model, rows, tmp_path / "run", epsilon=8.0, noise=known)
    target = tuple(part[:1] for part in rows)
    noise = []
    for release, residual in zip(seen, left, strict=True):
        own = per_example_gradients(model, losses, target, release.weights, max_norm=0.5)
        noise += [(residual[name] - g[0]).flatten() for name, g in own.items()]
    values = torch.cat(noise)  # 652 of them, within four standard errors; the same in every run
    std = plan.noise_multiplier * 0.5
    assert abs(float(values.std()) / std - 1.0) < 4 / math.sqrt(2 * len(values))


def test_with_a_huge_budget_candidate_and_input_are_found_and_with_a_small_one_not(problem, tmp_path):
    model, rows = problem
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    others = torch.rand((200, SIZE), generator=generator)
    candidates = (torch.cat([rows[0][:1], others]), rows[1][:1].expand(201))
    prior = PicturePrior.of(others)
    from_prior = float((prior.mean - rows[0][0]).norm())
    away = {}
    for epsilon in (1e6, 0.1):
        model.load_state_dict(start)
        plan, seen, left = trained_privately(model, rows, tmp_path / str(epsilon), epsilon=epsilon)
        scores = candidate_scores(seen, left, model, losses, candidates, max_norm=0.5)
        if epsilon > 1:
            assert int(scores.argmax()) == 0
            assert nearer_than_pool(first_layer_input(left)[None], rows[0][:1], others) == [True]
        answer = likely_input(
            seen, left, model, losses, rows[1][:1], prior,
            noise_std=plan.noise_multiplier * 0.5, max_norm=0.5,
        )  # fmt: skip
        away[epsilon] = float((answer - rows[0][0]).norm()) / from_prior
    assert away[1e6] < 0.1
    assert 0.9 < away[0.1] < 1.1


def test_candidates_are_guessed_no_better_than_chance_without_a_signal(problem):
    """Releases of pure noise: Bin(400, 1/10) is within 22 to 60 but for 1.5e-3."""
    model, rows = problem
    generator = torch.Generator().manual_seed(7)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    candidates = tuple(part[:10] for part in rows)
    seen = [Release(weights=weights, gradient=weights)]
    right = 0
    for trial in range(400):
        noise = [{name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}]
        scores = candidate_scores(seen, noise, model, losses, candidates, max_norm=0.01)
        right += int(scores.argmax()) == trial % 10
    assert 22 <= right <= 60


def test_matching_one_gradient_finds_the_input(problem):
    model, rows = problem
    target = tuple(part[:1] for part in rows)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = {name: g[0] for name, g in per_example_gradients(model, losses, target, weights).items()}
    start = torch.full((1, 4, 4), 0.5)

    def on_pictures(model, given):
        return losses(model, (given[0].flatten(1), given[1]))

    found = match_gradient(model, on_pictures, wanted, start, target[1], smoothness=0.0)
    before = float((start.flatten(1) - target[0]).norm())
    assert float((found.flatten(1) - target[0]).norm()) < 0.2 * before
    noise = {name: torch.randn_like(g) for name, g in wanted.items()}
    lost = match_gradient(model, on_pictures, noise, start, target[1], smoothness=0.0)
    assert float((lost.flatten(1) - target[0]).norm()) > 0.7 * before


def test_an_optimizer_that_is_never_stepped_shows_nothing(problem):
    model, _ = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AuditError, match="never stepped"), releases(model, optimizer):
        pass
    with pytest.raises(AuditError, match="without a gradient"), releases(model, optimizer):
        optimizer.step()
