"""What an audit needs of an accountant: epsilon from below, and the whole profile of delta.

Room: account. May import dp-accounting; never torch.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from dp_accounting.pld import PLDAccountant, privacy_loss_distribution

from reticent.account._epsilon import rdp_epsilon
from reticent.account._events import (
    MIN_NOISE_MULTIPLIER,
    Phase,
    Segments,
    merge_phases,
    to_event,
    unsampled_noise_multiplier,
)
from reticent.errors import AccountingError
from reticent.records import check_delta

_FFT_UNIT: Final = 2.0**-52
_SHARE: Final = 0.005  # of epsilon, which rounding losses down may cost at most
_MOST_INTERVAL: Final = 1e-3


def epsilon_floor(segments: Segments, *, delta: float) -> float:
    """An epsilon that these steps surely reach at `delta`: the true one is between it and `epsilon`.

    Privacy losses are rounded down to a grid fine enough to cost about half a percent.

    Args:
        segments: (mechanism, number of steps) pairs.
        delta: strictly between 0 and 1.

    Guarantee:
        Not above the true epsilon, up to FFT round-off, for which delta is raised as `epsilon` lowers it.

        | history | floor |
        |---|---|
        | no steps | 0 |
        | any step with noise multiplier below 1e-3 | infinity |

    Raises:
        ConfigError[delta], ConfigError[num-steps], ConfigError[mechanism]: an argument that means nothing.
    """
    check_delta(delta)
    phases = merge_phases(segments)
    if not phases:
        return 0.0
    if any(phase.noise_multiplier < MIN_NOISE_MULTIPLIER for phase in phases):
        return math.inf
    num_steps = sum(phase.num_steps for phase in phases)
    about = rdp_epsilon(segments, delta=delta)
    interval = min(2.0 * _SHARE * max(about, 0.1) / num_steps, _MOST_INTERVAL)
    unsampled = [phase for phase in phases if not phase.sampled]
    parts = [_distribution(phase, interval) for phase in phases if phase.sampled]
    if unsampled:
        together = Phase(1.0, unsampled_noise_multiplier(unsampled), 1)
        parts.append(_distribution(together, interval))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return max(0.0, float(whole.get_epsilon_for_delta(delta + (num_steps + 16 * len(phases)) * _FFT_UNIT)))


def _distribution(phase: Phase, interval: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    single = privacy_loss_distribution.from_gaussian_mechanism(
        phase.noise_multiplier,
        pessimistic_estimate=False,
        value_discretization_interval=interval,
        sampling_prob=phase.sampling_prob,
        use_connect_dots=False,
    )
    return single.self_compose(phase.num_steps) if phase.num_steps > 1 else single


def delta_curve(segments: Segments, *, epsilons: Sequence[float]) -> list[float]:
    """The delta of these steps at each epsilon >= 0, rounded up: a privacy profile on the safe side.

    Raises:
        ConfigError[num-steps], ConfigError[mechanism]: an argument that means nothing.
        AccountingError[profile]: no step, or one without noise worth accounting for.
    """
    phases = merge_phases(segments)
    if not phases or any(phase.noise_multiplier < 10 * MIN_NOISE_MULTIPLIER for phase in phases):
        raise AccountingError(
            "A privacy profile needs at least one step, and noise multipliers of 0.01 or more.",
            code="profile",
        )
    accountant = PLDAccountant(value_discretization_interval=_MOST_INTERVAL)
    accountant.compose(to_event(phases))
    profile: Any = accountant.get_delta  # takes many at once, which its annotation does not say
    return [min(1.0, float(delta) + _FFT_UNIT) for delta in profile(list(epsilons))]
