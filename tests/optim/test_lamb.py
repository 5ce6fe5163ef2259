"""LAMB against the paper's algorithm in float64 NumPy, against optax's, and at its edges.

optax comes with the `bench` extra; without it that one comparison is skipped.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reticent.errors import ConfigError
from reticent.optim import Lamb


def reference(weights, gradients, *, lr, b1=0.9, b2=0.999, eps=1e-6, decay=0.0, correct=True):
    """Algorithm 2 of You et al. as printed, phi(z) = z; nothing of ours in it. -> weights after each step."""
    ws = [np.array(w, dtype=np.float64) for w in weights]
    ms, vs = [np.zeros_like(w) for w in ws], [np.zeros_like(w) for w in ws]
    trace = []
    for t, step in enumerate(gradients, start=1):
        for i, g in enumerate(step):
            ms[i] = b1 * ms[i] + (1 - b1) * g
            vs[i] = b2 * vs[i] + (1 - b2) * g**2
            m, v = (ms[i] / (1 - b1**t), vs[i] / (1 - b2**t)) if correct else (ms[i], vs[i])
            u = m / (np.sqrt(v) + eps) + decay * ws[i]
            w_norm, u_norm = np.linalg.norm(ws[i]), np.linalg.norm(u)
            ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
            ws[i] = ws[i] - lr * ratio * u
        trace.append([w.copy() for w in ws])
    return trace


def problem(seed=0, steps=7, scale=1.0, dtype=torch.float64):
    """Weights of three shapes, one of them exactly zero, and gradients over 12 orders of magnitude."""
    rng = np.random.default_rng(seed)
    weights = [scale * rng.normal(size=(4, 3)), np.zeros(5), scale * rng.normal(size=())]
    gradients = [
        [10.0 ** rng.uniform(-6, 6) * rng.normal(size=np.shape(w)) for w in weights] for _ in range(steps)
    ]
    return weights, gradients, dtype


def run(weights, gradients, dtype, **settings):
    parameters = [nn.Parameter(torch.tensor(w, dtype=dtype)) for w in weights]
    optimizer = Lamb(parameters, **settings)
    trace = []
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
        trace.append([p.detach().clone() for p in parameters])
    return trace


def largest_difference(ours, theirs):
    return max(
        float(np.max(np.abs(a.double().numpy() - b)))
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine, other, strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_takes_the_steps_of_the_paper(seed, decay):
    weights, gradients, dtype = problem(seed)
    ours = run(weights, gradients, dtype, lr=0.3, weight_decay=decay)
    assert largest_difference(ours, reference(weights, gradients, lr=0.3, decay=decay)) < 1e-12


def test_float32_follows_the_paper_to_its_own_rounding():
    weights, gradients, _ = problem(1)
    ours = run(weights, gradients, torch.float32, lr=0.1)
    assert largest_difference(ours, reference(weights, gradients, lr=0.1)) < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"correct": False}, {"b1": 0.8}, {"b2": 0.99}, {"eps": 1e-2}, {"decay": 1e-3}]
)
def test_the_comparison_can_fail(wrong):
    weights, gradients, dtype = problem(2)
    rng = np.random.default_rng(2)
    gradients = [[1e-2 * rng.normal(size=np.shape(g)) for g in step] for step in gradients]
    ours = run(weights, gradients, dtype, lr=0.3)
    assert largest_difference(ours, reference(weights, gradients, lr=0.3, **wrong)) > 1e-5


def test_it_takes_the_steps_of_optax():
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        weights, gradients, dtype = problem(3)
        theirs = optax.lamb(0.3, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.05)
        params = [jax.numpy.asarray(w) for w in weights]
        state, trace = theirs.init(params), []
        for step in gradients:
            updates, state = theirs.update([jax.numpy.asarray(g) for g in step], state, params)
            params = optax.apply_updates(params, updates)
            trace.append([np.asarray(p) for p in params])
    ours = run(weights, gradients, dtype, lr=0.3, weight_decay=0.05)
    assert largest_difference(ours, trace) < 1e-12


def one_step(w, g, **settings):
    p = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimizer = Lamb([p], **settings)
    p.grad = torch.tensor(g, dtype=torch.float64)
    optimizer.step()
    return p.detach(), optimizer.state[p]["trust_ratio"]


def test_from_exact_zeros_the_first_step_is_adams():
    after, ratio = one_step([0.0] * 4, [3.0, -2.0, 1e-2, -7.0], lr=0.5)
    assert ratio == 1.0
    torch.testing.assert_close(
        after, torch.tensor([-0.5, 0.5, -0.5, 0.5], dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_from_almost_zero_it_hardly_moves_as_the_docstring_warns():
    after, _ = one_step([1e-8] * 640, [1.0] * 640, lr=1.0)
    moved = float(torch.linalg.vector_norm(after - 1e-8))
    assert moved == pytest.approx(1e-8 * math.sqrt(640), rel=1e-6)


def test_a_zero_gradient_leaves_the_weights():
    after, ratio = one_step([1.0, 2.0], [0.0, 0.0], lr=1.0)
    assert ratio == 1.0
    assert after.tolist() == [1.0, 2.0]


def test_the_step_is_as_long_as_the_weights_times_the_rate():
    w = [3.0, -4.0]
    after, ratio = one_step(w, [1e9, 1e-3], lr=0.01)
    assert float(torch.linalg.vector_norm(after - torch.tensor(w))) == pytest.approx(0.05, rel=1e-6)
    assert float(ratio) == pytest.approx(5 / math.sqrt(2), rel=1e-2)


def test_half_precision_weights_have_ratios_in_float32():
    p = nn.Parameter(torch.full((70_000,), 1.0, dtype=torch.float16))  # its squared norm overflows float16
    optimizer = Lamb([p], lr=0.1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["trust_ratio"].dtype == torch.float32
    assert float(optimizer.state[p]["trust_ratio"]) == pytest.approx(1.0, rel=1e-3)
    assert torch.isfinite(p).all()


def test_trust_ratios_are_named_and_wait_for_a_step():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[1].weight.requires_grad_(False)
    optimizer = Lamb([p for p in model.parameters() if p.requires_grad])
    assert optimizer.trust_ratios(model) == {}
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert set(optimizer.trust_ratios(model)) == {"0.weight", "0.bias", "1.bias"}


def test_it_goes_on_from_its_state():
    weights, gradients, dtype = problem(5)
    whole = run(weights, gradients, dtype, lr=0.2)
    first = [nn.Parameter(torch.tensor(w, dtype=dtype)) for w in weights]
    optimizer = Lamb(first, lr=0.2)
    for t, step in enumerate(gradients):
        if t == 3:
            second = [nn.Parameter(p.detach().clone()) for p in first]
            state = optimizer.state_dict()
            first, optimizer = second, Lamb(second, lr=9.9)
            optimizer.load_state_dict(state)
        for p, g in zip(first, step, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    for p, expected in zip(first, whole[-1], strict=True):
        assert torch.equal(p, expected)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": -1.0}, "lr must be a finite number >= 0"),
        ({"lr": math.nan}, "lr must be a finite number >= 0"),
        ({"eps": 0.0}, "eps must be a finite number > 0"),
        ({"betas": (1.0, 0.9)}, "betas must be two numbers"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"weight_decay": math.inf, "lr": -1.0}, "lr .*; weight_decay must be a finite number"),
    ],
)
def test_settings_out_of_range_are_refused_together(settings, says):
    with pytest.raises(ConfigError, match=says) as refused:
        Lamb([nn.Parameter(torch.zeros(1))], **settings)
    assert refused.value.code == "optimizer-settings"


def test_a_sparse_gradient_is_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse=False") as refused:
        Lamb(embedding.parameters()).step()
    assert refused.value.code == "optimizer-gradient"
