"""No row moves a sum by more than its bound, whatever it holds, and noise is never the same twice."""

import math

import pytest
import torch

from reticent.bounded import BoundedSum
from reticent.noise import CipherNoise, add_noise
from reticent.recipes.features._rows import Preparation, upper_norms
from reticent.recipes.features._sums import (
    class_grams,
    class_sums,
    curvature_bound,
    feature_sum,
    gradient,
    gram,
    hessians,
    part_noise_std,
    residuals,
    ridge_inverse,
    sum_of,
    unscaled,
)

D, K, NUM_PAIRS = 7, 4, 200
SCALES = (1e-30, 1e-6, 1.0, 1e4, 1e30, 3e38)


def a_weight(generator, dim=D + 1):
    return torch.randn(K, dim, generator=generator, dtype=torch.float64) * 3.0


def statistics(kind, bound, generator, dim=D + 1):
    """The statistics of every release that there is."""
    w = a_weight(generator, dim)
    return {
        "sum": {"sum": feature_sum(dim, bound=bound)},
        "gram": {"gram": gram(dim, bound=bound)},
        "sums": {"sums": class_sums(K, dim, bound=bound)},
        "class_grams": {"class_grams": class_grams(K, dim, bound=bound)},
        "softmax": {"gradient": gradient(w, loss="softmax", bias=0.0, max_norm=0.3)},
        "sigmoid": {"gradient": gradient(w, loss="sigmoid", bias=-10.0, max_norm=0.05)},
        "softmax-hessians": {"hessians": hessians(w, loss="softmax", bias=0.0, bound=bound)},
        "sigmoid-hessians": {"hessians": hessians(0 * w, loss="sigmoid", bias=0.0, bound=bound)},
        "joint": {
            "gram": gram(dim, bound=bound, share=0.3),
            "sums": class_sums(K, dim, bound=bound, share=0.6),
            "class_grams": class_grams(K, dim, bound=bound, share=0.1),
        },
    }[kind]


KINDS = (
    *("sum", "gram", "sums", "class_grams", "softmax", "sigmoid"),
    *("softmax-hessians", "sigmoid-hessians", "joint"),
)


def rows(generator):
    """Six rows of wildly different lengths, the last of which is the neighbour's; sometimes not a number."""
    scales = torch.tensor(SCALES)[torch.randint(len(SCALES), (6,), generator=generator)]
    x = torch.randn(6, D, generator=generator).clamp(-1, 1) * scales[:, None]
    strange = torch.randint(8, (), generator=generator)
    if strange < 3:
        x[5, 2] = (math.nan, math.inf, -math.inf)[int(strange)]
    return x, torch.randint(K, (6,), generator=generator)


def moved(x, y, preparation, chosen):
    """How far the last row moves the sum."""
    with_it = sum_of([preparation.apply(x.clone(), y)], chosen).total
    without = sum_of([preparation.apply(x[:-1].clone(), y[:-1])], chosen).total
    return math.sqrt(sum(float((with_it[n] - without[n]).square().sum()) for n in with_it))


@pytest.mark.parametrize("scaling", ["normalise", "clip"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_moves_a_sum_beyond_its_bound(kind, scaling):
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    largest = 0.0
    for pair in range(NUM_PAIRS):
        preparation = Preparation(
            scaling=scaling,
            max_norm=0.7,
            mean=torch.randn(D, generator=generator) if pair % 2 else None,
            whitening=torch.randn(D, D, generator=generator) if pair % 3 else None,
            intercept=0.5,
        )
        chosen = statistics(kind, preparation.bound, generator)
        x, y = rows(generator)
        distance = moved(x, y, preparation, chosen)
        assert math.isfinite(distance) and distance <= 1.0 + 1e-4
        largest = max(largest, distance)
    # The attack is a real one: where the bound can be met, it is. Hessians of confident outputs are small.
    assert largest > (0.99 if "softmax-" not in kind else 0.3)


@pytest.mark.parametrize("kind", ["gram", "sums", "class_grams", "softmax"])
def test_the_attack_finds_features_that_nobody_clipped(kind):
    """A copy of DP-LS that computed class statistics from unclipped features must not pass."""
    generator = torch.Generator().manual_seed(3)
    chosen = statistics(kind, 0.5, generator)
    found = []
    for _ in range(NUM_PAIRS):
        x, y = rows(generator)
        honest = Preparation(scaling="clip", max_norm=1e4, intercept=0.5)  # ten thousand for a claimed 0.5
        if kind == "softmax":
            block = honest.apply(x, y)
            r = residuals(block.x @ torch.zeros(K, D + 1).mT, y, "softmax")
            found.append(float((r[-1].norm() * block.x[-1].norm()) / 0.3))
        else:
            found.append(moved(x, y, honest, chosen))
    assert max(found) > 2.0


@pytest.mark.parametrize("kind", ["gram", "sums", "class_grams", "gradient", "hessians"])
def test_a_row_among_very_many_moves_a_sum_by_no_more_than_its_bound(kind):
    """Two features make blocks of half a million rows: their sums in float32 moved by 1.015 bounds."""
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(1 << 19, 2, generator=generator).abs()
    y = torch.zeros(len(x_ND), dtype=torch.int64)
    preparation = Preparation()
    weight = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    chosen = {
        "gram": gram(2, bound=1.0),
        "sums": class_sums(2, 2, bound=1.0),
        "class_grams": class_grams(2, 2, bound=1.0),
        "gradient": gradient(weight, loss="softmax", bias=0.0, max_norm=0.1),
        "hessians": hessians(weight, loss="softmax", bias=0.0, bound=1.0),
    }[kind]
    whole, less = (
        sum_of([preparation.apply(x_ND[start:].clone(), y[start:])], {"s": chosen}).total["s"]
        for start in (0, 1)
    )
    row = sum_of([preparation.apply(x_ND[:1].clone(), y[:1])], {"s": chosen}).total["s"]
    torch.testing.assert_close(whole - less, row, rtol=0.0, atol=1e-6)
    assert float((whole - less).norm()) <= 1.0 + 1e-5


def test_norms_are_never_rounded_down():
    generator = torch.Generator().manual_seed(0)
    for scale in SCALES:
        x = torch.randn(500, 300, generator=generator).clamp(-1, 1) * scale
        exact = x.double().square().sum(1).sqrt()
        found = upper_norms(x)
        assert (found >= exact).all()
        assert (found <= exact * (1 + 1e-4)).all()


def test_curvature_never_exceeds_its_bound():
    generator = torch.Generator().manual_seed(0)
    for num_classes in (2, 3, 10, 1000):
        z = torch.randn(2000, num_classes, generator=generator, dtype=torch.float64) * 5
        p = torch.cat([z.softmax(1), torch.eye(num_classes, dtype=torch.float64)[:1] / 3])
        p[-1, :] = 0.0
        p[-1, : min(3, num_classes)] = 1.0 / min(3, num_classes)
        h = (p * (1 - p)).norm(dim=1)
        assert h.max() <= curvature_bound("softmax", num_classes) * (1 + 1e-12)
        s = z.sigmoid()
        largest = (s * (1 - s) / num_classes).norm(dim=1).max()
        assert largest <= curvature_bound("sigmoid", num_classes)


@pytest.mark.parametrize("max_norm", [1e-6, 1e-3, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("scaling", ["normalise", "clip"])
def test_rows_far_from_their_bound_are_brought_to_it_and_not_beyond(scaling, scale, max_norm):
    x, y = torch.full((3, D), scale), torch.zeros(3, dtype=torch.int64)
    x[1, 1:] = 0.0
    block = Preparation(scaling=scaling, max_norm=max_norm).apply(x, y)
    norms = block.x.double().norm(dim=1)
    assert (norms <= block.norms).all() and (block.norms <= max_norm * (1 + 1e-12)).all()
    assert (block.counts == 1).all()
    if scale > 1e20 or (scaling == "normalise" and scale == 1.0):  # a longer row, or one given the norm
        torch.testing.assert_close(norms, torch.full((3,), max_norm, dtype=norms.dtype), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("max_norm", [1e-44, 1e-40, 1e-6])
def test_a_gradient_is_clipped_to_the_smallest_of_norms(max_norm):
    block = Preparation().apply(torch.ones(1, D), torch.zeros(1, dtype=torch.int64))
    weight = torch.zeros(K, D, dtype=torch.float64)
    chosen = {"g": gradient(weight, loss="softmax", bias=0.0, max_norm=max_norm)}
    found = float(sum_of([block], chosen).total["g"].norm())
    assert 1.0 - 1e-4 < found <= 1.0


@pytest.mark.parametrize("intercept", [0.0, 1.0])
@pytest.mark.parametrize("whitening", [None, torch.eye(D)])
def test_a_row_that_is_no_number_counts_as_absent(whitening, intercept):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, D, generator=generator), torch.randint(K, (6,), generator=generator)
    bad = x.clone()
    bad[3, 0] = math.nan
    preparation = Preparation(mean=torch.ones(D), whitening=whitening, intercept=intercept)
    block = preparation.apply(bad.clone(), y)
    assert block.counts.tolist() == [1, 1, 1, 0, 1, 1]
    assert not block.x[3].any() and block.norms[3] == 0.0
    kept = [0, 1, 2, 4, 5]
    for kind in KINDS:
        chosen = statistics(kind, preparation.bound, torch.Generator().manual_seed(1), dim=block.x.shape[1])
        found = sum_of([preparation.apply(bad.clone(), y)], chosen).total
        expected = sum_of([preparation.apply(x[kept], y[kept])], chosen).total
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradients_and_hessians_are_those_of_autograd(loss):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, D, generator=generator), torch.randint(K, (20,), generator=generator)
    w = a_weight(generator) / 3
    block = Preparation(max_norm=1.0, intercept=0.2).apply(x, y)

    def total_loss(weight):
        z = block.x.double() @ weight.mT - 0.5
        if loss == "softmax":
            return torch.nn.functional.cross_entropy(z, y, reduction="sum")
        target = torch.nn.functional.one_hot(y, K).double()
        return torch.nn.functional.binary_cross_entropy_with_logits(z, target, reduction="sum") / K

    chosen = {
        "gradient": gradient(w, loss=loss, bias=-0.5, max_norm=100.0),
        "hessians": hessians(w, loss=loss, bias=-0.5, bound=math.hypot(1.0, 0.2)),
    }
    found = unscaled(sum_of([block], chosen).total, chosen)
    expected = torch.autograd.functional.jacobian(total_loss, w)
    torch.testing.assert_close(found["gradient"], expected, rtol=1e-4, atol=1e-4)
    whole = torch.autograd.functional.hessian(total_loss, w)
    for label in range(K):
        torch.testing.assert_close(found["hessians"][label], whole[label, :, label], rtol=1e-4, atol=1e-4)


def test_parts_of_a_release_get_the_noise_of_their_share():
    preparation = Preparation(max_norm=2.0)
    chosen = {"gram": gram(D, bound=2.0, share=1.0), "sums": class_sums(K, D, bound=2.0, share=3.0)}
    nothing = preparation.apply(torch.zeros(1, D), torch.zeros(1, dtype=torch.int64))
    noise = CipherNoise.reproducible(0)
    drawn = [
        unscaled(add_noise(sum_of([nothing], chosen), noise_multiplier=1.5, source=noise), chosen)
        for _ in range(400)
    ]
    std = part_noise_std(chosen, 1.5)
    # 1/1.5^2 is the sum of both parts' 1/m^2, with m = std / bound.
    assert math.isclose((4.0 / std["gram"]) ** 2 + (2.0 / std["sums"]) ** 2, 1 / 1.5**2)
    for name, expected in std.items():
        found = float(torch.stack([values[name] for values in drawn]).std())
        assert abs(found / expected - 1) < 0.03, name  # 400 x 28 draws: 4 standard errors


def independent(first, second):
    """Whether rows of two noised sums of nothing look independent, within and across the releases.

    4,000 columns: a correlation has standard error 0.016; 5.5 of them, 28 pairs: false alarm 1e-6.
    """
    rows = torch.cat([first, second])
    correlations = torch.corrcoef(rows) - torch.eye(len(rows), dtype=rows.dtype)
    return float(correlations.abs().max()) < 0.087


class SameForEveryRow:
    """The published bug, planted: each class's row of a tensor gets the same noise."""

    private = False

    def __init__(self, source, num_rows):
        self._source, self._num_rows = source, num_rows

    def normal(self, shape, *, dtype, device):
        (size,) = shape
        row = self._source.normal((size // self._num_rows,), dtype=dtype, device=device)
        return row.repeat(self._num_rows)


class SameAtEveryStep:
    """Its other half: the key is never renewed, so every release draws the same."""

    private = False

    def normal(self, shape, *, dtype, device):
        return CipherNoise.reproducible(7).normal(shape, dtype=dtype, device=device)


def two_releases(source):
    nothing = BoundedSum(
        total={"sums": torch.zeros(4, 4000, dtype=torch.float64)}, bound=1.0, norms=torch.empty(0)
    )
    return [add_noise(nothing, noise_multiplier=1.0, source=source)["sums"] for _ in range(2)]


def test_noise_of_classes_and_steps_is_independent():
    assert independent(*two_releases(CipherNoise.fresh()))


@pytest.mark.parametrize("planted", [SameForEveryRow(CipherNoise.fresh(), 4), SameAtEveryStep()])
def test_the_published_noise_bug_would_be_found(planted):
    assert not independent(*two_releases(planted))


def test_the_ridge_inverse_is_that_of_the_nearest_positive_matrix():
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    symmetric = (noisy + noisy.mT) / 2
    values, vectors = torch.linalg.eigh(symmetric)
    assert values.min() < 0
    nearest = vectors @ torch.diag(values.clamp_min(0)) @ vectors.mT
    expected = torch.linalg.inv(nearest + 0.3 * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(ridge_inverse(noisy, 0.3), expected)
    rank_one = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(ridge_inverse(rank_one, 0.0), torch.linalg.pinv(rank_one))
