"""add_noise: the right standard deviation on every coordinate, taken from the value's own bound.

False alarms: unseeded checks are set to a rate of at most 1e-6 each.
"""

import math

import pytest
import torch
from scipy import stats

from reticent.bounded import BoundedSum
from reticent.errors import ConfigError
from reticent.noise import CipherNoise, NoiseSource, add_noise

ALPHA = 1e-6


class Ones:
    """A source that shows what is added to each coordinate. Nothing private about it."""

    private = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, torch.dtype]] = []

    def normal(self, shape, *, dtype, device):
        self.asked.append((math.prod(shape), dtype))
        return torch.ones(tuple(shape), dtype=dtype, device=device)


def bounded(total: dict[str, torch.Tensor], bound: float = 1.0) -> BoundedSum:
    return BoundedSum(total=total, bound=bound, norms=torch.zeros(0))


def std_is_accepted(z: torch.Tensor, std: float) -> bool:
    statistic = float(z.double().square().sum()) / std**2
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], z.numel())
    return bool(low <= statistic <= high)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("multiplier", "bound"), [(1.0, 1.0), (0.7, 3.0), (5.0, 1e-3)])
def test_the_noise_has_the_stated_standard_deviation(dtype, multiplier, bound):
    total = {"a": torch.zeros(400, 500, dtype=dtype), "b": torch.zeros(100_000, dtype=dtype)}
    noised = add_noise(bounded(total, bound), noise_multiplier=multiplier, source=CipherNoise.fresh())
    std = multiplier * bound
    for name in ("a", "b"):
        assert std_is_accepted(noised[name], std)
        assert not std_is_accepted(noised[name], std * 2 / 3)
        assert not std_is_accepted(noised[name], std * 3 / 2)
        assert noised[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_every_coordinate_of_every_tensor_gets_its_own_noise_once():
    big = (1 << 20) + 3  # more than one block
    total = {
        "w": torch.zeros(2, 3),
        "scalar": torch.zeros(()),
        "empty": torch.zeros(0, 4),
        "big": torch.zeros(big),
    }
    source = Ones()
    noised = add_noise(bounded(total, 2.0), noise_multiplier=1.5, source=source)
    assert isinstance(source, NoiseSource)
    for name, value in noised.items():
        assert value.shape == total[name].shape
        assert (value == 3.0).all()
    assert sum(count for count, _ in source.asked) == sum(t.numel() for t in total.values())
    assert {dtype for _, dtype in source.asked} == {torch.float64}


def test_the_noise_is_added_to_the_total():
    torch.manual_seed(0)
    total = {"w": torch.randn(5, 7).t(), "h": torch.randn(9).bfloat16()}  # not contiguous, and half
    noised = add_noise(bounded(total), noise_multiplier=0.25, source=Ones())
    torch.testing.assert_close(noised["w"], total["w"] + 0.25, rtol=0, atol=1e-7)
    torch.testing.assert_close(noised["h"], total["h"].float() + 0.25, rtol=0, atol=1e-7)


def test_the_sum_is_made_in_float64_and_rounded_once():
    """Noise of 1 + 2^-24 is 1 in float32, and 2^24 + 1 rounds to 2^24 there; the true sum rounds up."""
    total = {"w": torch.tensor([2.0**24])}
    noised = add_noise(bounded(total), noise_multiplier=1.0 + 2.0**-24, source=Ones())
    assert noised["w"].item() == 2.0**24 + 2


def test_tensors_and_calls_are_independent():
    source = CipherNoise.fresh()
    zero = bounded({"a": torch.zeros(100_000), "b": torch.zeros(100_000)})
    first, second = (add_noise(zero, noise_multiplier=1.0, source=source) for _ in range(2))
    drawn = torch.stack([first["a"], first["b"], second["a"], second["b"]])
    off_diagonal = torch.corrcoef(drawn) - torch.eye(4)
    assert off_diagonal.abs().max() * math.sqrt(100_000) < 6


def test_the_sum_itself_is_untouched_and_nothing_is_shared():
    total = {"w": torch.full((4,), 2.0)}
    for multiplier in (0.0, 1.0):
        noised = add_noise(bounded(total), noise_multiplier=multiplier, source=Ones())
        noised["w"].fill_(9.0)
        assert (total["w"] == 2.0).all()


def test_multiplier_zero_returns_copies_and_draws_nothing():
    source = Ones()
    total = {"w": torch.tensor([1.0, -2.0]), "h": torch.tensor([0.5], dtype=torch.float16)}
    noised = add_noise(bounded(total), noise_multiplier=0.0, source=source)
    assert source.asked == []
    assert torch.equal(noised["w"], total["w"])
    assert noised["h"].dtype == torch.float32
    assert noised["h"].item() == 0.5


def test_the_result_carries_no_graph():
    total = {"w": torch.zeros(3, requires_grad=True) * 1.0}
    assert not add_noise(bounded(total), noise_multiplier=1.0, source=Ones())["w"].requires_grad


@pytest.mark.parametrize("multiplier", [math.nan, math.inf, -math.inf, -1.0, -1e-300])
def test_a_multiplier_that_is_no_multiplier_is_refused(multiplier):
    source = Ones()
    with pytest.raises(ConfigError, match=r"finite number >= 0, got .*\[noise-multiplier\]"):
        add_noise(bounded({"w": torch.zeros(2)}), noise_multiplier=multiplier, source=source)
    assert source.asked == []


@pytest.mark.parametrize(
    ("multiplier", "bound"),
    [
        (1.0, math.nan),
        (1.0, math.inf),
        (1.0, 0.0),
        (1.0, -1.0),
        (1e200, 1e200),
        (1e-200, 1e-200),
        (0.0, math.inf),
        (0.0, 0.0),
        (0.0, -1.0),
    ],
)
def test_a_standard_deviation_that_is_not_finite_and_positive_is_refused(multiplier, bound):
    with pytest.raises(ConfigError, match=r"must be finite and positive.*\[noise-bound\]"):
        add_noise(bounded({"w": torch.zeros(2)}, bound), noise_multiplier=multiplier, source=Ones())


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_sums_that_are_not_real_numbers_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"'w' has dtype.*\[noise-dtype\]"):
        add_noise(bounded({"w": torch.zeros(2, dtype=dtype)}), noise_multiplier=1.0, source=Ones())
