"""Two Gaussian releases on one sample, as the one Gaussian mechanism that they are.

Room: account. May import `reticent.errors`.

Let a step release g + N(0, (s_g C)^2 I) and c + N(0, (s_c D)^2 I), where one unit moves g by at most C and
c by at most D (L2). Divide each by its noise: one unit moves the pair by at most sqrt(1/s_g^2 + 1/s_c^2)
under unit noise, so the pair is a Gaussian mechanism of noise multiplier s with

    1/s^2 = 1/s_g^2 + 1/s_c^2.

Both come from the same drawn units, so under Poisson sampling the pair is one sampled event of multiplier
s. Two events, each with a sample of its own, would claim more than that.

Sources:
    [1] Andrew et al. 2019, arXiv:1905.03871, theorem 1.
"""

import math
from fractions import Fraction
from typing import Final

from reticent.errors import ConfigError

# Without a number of its own the count gets this times the plan's noise: 1/sqrt(1 - 1/100) = 1.005 on the
# gradient, whatever the noise and the batch.
DEFAULT_COUNT_RATIO: Final = 10.0


def split_noise(noise_multiplier: float, count_noise_multiplier: float | None) -> tuple[float, float]:
    """Noise multipliers of gradient and count that are together one mechanism of `noise_multiplier`.

    Args:
        noise_multiplier: of the pair, >= 0; 0 is no noise, on either.
        count_noise_multiplier: of the count; None for ten times that of the pair.

    Returns:
        (gradient's, count's) noise multipliers.

    Guarantee:
        1/gradient^2 + 1/count^2 <= 1/noise_multiplier^2, in exact arithmetic on the floats returned.

    Raises:
        ConfigError[count-noise]: the count's noise is not above the pair's, so that nothing is left for
            the gradient.
    """
    if noise_multiplier == 0.0:
        return 0.0, 0.0
    count = (
        DEFAULT_COUNT_RATIO * noise_multiplier if count_noise_multiplier is None else count_noise_multiplier
    )
    ratio = noise_multiplier / count
    left = (1.0 - ratio) * (1.0 + ratio)
    if not ratio < 1.0 or left < 1e-6:
        raise ConfigError(
            f"count_noise_multiplier {count:g} must be above the plan's noise multiplier "
            f"{noise_multiplier:g}, which gradient and count share: so little noise on the count leaves "
            f"nothing for the gradient. Leave it out (the count then gets "
            f"{DEFAULT_COUNT_RATIO * noise_multiplier:g} and the gradient 0.5 % more noise), or give more "
            "than twice the plan's.",
            code="count-noise",
        )
    gradient = noise_multiplier / math.sqrt(left)
    step = 2.0**-52
    while not _within(gradient, count, noise_multiplier):
        gradient, step = gradient * (1.0 + step), 2.0 * step
    return gradient, count


def _within(gradient: float, count: float, both: float) -> bool:
    g, c, s = (Fraction(value) ** 2 for value in (gradient, count, both))
    return 1 / g + 1 / c <= 1 / s
