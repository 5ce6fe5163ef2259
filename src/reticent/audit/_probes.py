"""Probes: does a trainer draw, bound and add what its plan says? They see mistakes that canaries cannot.

Room: audit. May import NumPy, SciPy, `reticent.records` and the room's own files; never torch.

Each test has its share of the chance of a false alarm (Bonferroni), so that all of a trainer's probes
together raise one with probability at most 1 - confidence.

Shape letters (this file): T step, M canary, D coordinate, L distance, P pair of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betainc
from scipy.stats import binom, chi2, kstest, norm

from reticent.records import Mechanism

from ._recording import Recording

_SLACK: Final = 1e-3  # relative rounding of released values and of what the sum's bound allows
_ENOUGH_IN: Final = 30  # trials in, to say from how far up a canary lifts a release
_SILENT: Final = 1e-4  # noise smaller than this, of what is claimed, is rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one probe found.

    Args:
        name: what was probed.
        passed: whether it agrees with the plan.
        finding: in words, with the numbers.
        tested: False if there was too little to test it with: nothing speaks against the plan, or for it.
    """

    name: str
    passed: bool
    finding: str
    tested: bool = True


def two_sided(tail_below: float, tail_above: float) -> float:
    """A p-value from both tails."""
    return min(1.0, 2.0 * min(tail_below, tail_above))


def noise_size(
    noise: Sequence[tuple[str, np.ndarray]],
    *,
    std: float,
    chance: float,
    name: str = "noise size",
    of: str = "tensors",
) -> Probe:
    """Is the noise on every part as large as the plan says? Chi-square on each part, and on all together.

    Args:
        noise: (name of a tensor or a step, what was released of it beyond the sum), any shapes.
        std: the claimed standard deviation.
        chance: of a false alarm.
        name: of the probe.
        of: what the parts are.
    """
    squares = [(part, float(np.square(values / std).sum()), values.size) for part, values in noise]
    whole = ("all of them", sum(square for _, square, _ in squares), sum(size for *_, size in squares))
    each = chance / (len(squares) + 1)
    worst, found = None, 1.0
    for part, square, size in [*squares, whole]:
        p = two_sided(float(chi2.cdf(square, size)), float(chi2.sf(square, size)))
        measured = math.sqrt(square / size)
        if p < each and (worst is None or abs(measured - 1) > abs(found - 1)):
            worst, found = part, measured
    if worst is None:
        measured = math.sqrt(whole[1] / whole[2])
        return Probe(
            name=name,
            passed=True,
            finding=f"{measured:.4f} of the claimed standard deviation, over {len(noise)} {of}",
        )
    what = "no noise" if found < 1e-3 else f"{found:.3g} of the claimed standard deviation"
    return Probe(name=name, passed=False, finding=f"'{worst}' got {what}")


def noise_fresh(
    noise: Sequence[np.ndarray], *, std: float, chance: float, name: str = "noise independence"
) -> Probe:
    """Is the noise independent between steps and coordinates, and normal?

    Looks for the same noise in two steps, and at any distance between coordinates of one: workers that began
    with equal seeds repeat each other's noise at the distance of their shards.

    Args:
        noise: one flat array (D,) a step; all of the same length.
        std: the claimed standard deviation.
        chance: of a false alarm.
        name: of the probe.
    """
    x_TD = np.stack([np.ravel(part) for part in noise]) / std
    silent = ~(np.abs(x_TD).max(1) > _SILENT)
    if silent.any():
        return Probe(name=name, passed=False, finding=f"{int(silent.sum())} steps have no noise")
    x_TD = x_TD / np.sqrt(np.mean(x_TD**2, axis=1, keepdims=True))  # its size is another probe's
    num_steps, dim = x_TD.shape
    lags = _autocorrelation(x_TD)
    steps = _between_steps(x_TD)
    num_tests = len(lags) + len(steps) + 1
    limit = float(norm.isf(chance / num_tests / 2.0)) * 1.2  # products of normals have longer tails
    alike = _chance_of_cosine(steps, dim)
    if lags.size and np.abs(lags).max() > limit:
        lag = 1 + int(np.abs(lags).argmax())
        return Probe(
            name=name,
            passed=False,
            finding=f"coordinates at distance {lag} carry related noise (z = {lags[lag - 1]:.1f})",
        )
    if steps.size and alike.min() < chance / num_tests:
        return Probe(
            name=name,
            passed=False,
            finding=f"two steps carry related noise (cosine {steps[alike.argmin()]:.2f})",
        )
    p = float(kstest(x_TD.ravel(), "norm").pvalue)
    if p < chance / num_tests:
        return Probe(name=name, passed=False, finding=f"not normal (p = {p:.1g})")
    far = f" or {dim} coordinates at any distance" if lags.size else ""
    return Probe(name=name, passed=True, finding=f"normal; no relation between {num_steps} steps{far}")


def _autocorrelation(x_TD: Float[np.ndarray, "T D"]) -> Float[np.ndarray, " L"]:
    """z of the products of coordinates at distance 1, 2, ..., over all steps, where there are enough."""
    num_steps, dim = x_TD.shape
    spectrum = np.fft.rfft(x_TD, n=2 * dim, axis=1)
    products = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, 1:dim].sum(0)
    pairs = num_steps * (dim - np.arange(1, dim))
    enough = pairs >= 200
    return products[enough] / np.sqrt(pairs[enough])


def _between_steps(x_TD: Float[np.ndarray, "T D"]) -> Float[np.ndarray, " P"]:
    """The cosine of the noise of two steps, for each pair of steps."""
    num_steps, dim = x_TD.shape
    return (x_TD @ x_TD.T / dim)[np.triu_indices(num_steps, 1)]  # each step has length sqrt(D)


def _chance_of_cosine(cosines: Float[np.ndarray, " P"], dim: int) -> Float[np.ndarray, " P"]:
    """How likely so large a cosine is between independent directions in D dimensions, exactly."""
    if dim < 2:
        return np.ones_like(cosines)
    return betainc((dim - 1) / 2.0, 0.5, np.clip(1.0 - cosines**2, 0.0, 1.0))


def sampling(included: Bool[np.ndarray, "T M"], *, mechanism: Mechanism, chance: float) -> list[Probe]:
    """Does each canary take part in each step with probability q, independently of all else?

    Args:
        included: who took part; canaries that are in the data set only.
        mechanism: the claimed sampling.
        chance: of a false alarm, for all of these together.
    """
    num_steps, num = included.shape
    q = mechanism.sampling_prob
    total = int(included.sum())
    if q == 1.0:
        passed = total == included.size
        return [
            Probe(
                name="sampling rate",
                passed=passed,
                finding=f"{total} of {included.size} took part; all should",
            )
        ]
    each = chance / 4.0
    p = two_sided(float(binom.cdf(total, included.size, q)), float(binom.sf(total - 1, included.size, q)))
    rate = Probe(
        name="sampling rate", passed=p >= each, finding=f"{total / included.size:.5g}, claimed {q:.5g}"
    )
    return [
        rate,
        _spread("batch sizes", included.sum(1), num, q, each, "steps", "a fixed or forced batch size"),
        _spread("turns", included.sum(0), num_steps, q, each, "canaries", "taking turns, as shuffling does"),
        _together(included, q, each),
    ]


def _spread(
    name: str, counts: np.ndarray, trials: int, q: float, chance: float, of: str, sign_of: str
) -> Probe:
    """Do these counts vary as Binomial(trials, q) does? Their dispersion is near chi-square.

    With as many degrees of freedom as give it the variance that Binomial counts have.
    """
    variance = trials * q * (1.0 - q)
    if variance < 5.0:  # counts are not near normal, and chi-square is not their law
        return Probe(name=f"spread of {name}", passed=True, finding=f"too few draws of {of}", tested=False)
    ratio = float(np.square(counts - trials * q).mean() / variance)
    freedom = 2.0 * len(counts) / (2.0 + (1.0 - 6.0 * q * (1.0 - q)) / variance)
    p = two_sided(float(chi2.cdf(ratio * freedom, freedom)), float(chi2.sf(ratio * freedom, freedom)))
    passed = p >= chance
    finding = f"variance over {len(counts)} {of} {ratio:.3g} times that of independent draws"
    if not passed and ratio < 1.0:
        finding += f": a sign of {sign_of}"
    return Probe(name=f"spread of {name}", passed=passed, finding=finding)


def _together(included: Bool[np.ndarray, "T M"], q: float, chance: float) -> Probe:
    """Do canaries at some distance, or steps next to each other, go together? Equal seeds make them."""
    x = (included - q) / math.sqrt(q * (1.0 - q))
    lags = _autocorrelation(x)
    pairs = included.size - included.shape[1]
    after = float((x[1:] * x[:-1]).sum() / math.sqrt(max(pairs, 1)))
    limit = float(norm.isf(chance / (len(lags) + 1) / 2.0)) * 1.2
    if included.size * q * q < 20:  # too few meetings for a normal law
        return Probe(
            name="sampling independence", passed=True, finding="too few draws of two together", tested=False
        )
    worst = int(np.abs(lags).argmax()) if lags.size else 0
    if lags.size and abs(lags[worst]) > limit:
        return Probe(
            name="sampling independence",
            passed=False,
            finding=f"canaries at distance {worst + 1} are drawn together (z = {lags[worst]:.1f})",
        )
    if abs(after) > limit:
        return Probe(
            name="sampling independence",
            passed=False,
            finding=f"a step's draw depends on the one before (z = {after:.1f})",
        )
    return Probe(name="sampling independence", passed=True, finding="no relation between canaries or steps")


def recording_probes(seen: Recording, *, mechanism: Mechanism, noise: float, chance: float) -> list[Probe]:
    """The probes of a white-box recording: noise along canaries, and who took part.

    Args:
        seen: the recording.
        mechanism: what is claimed of a step.
        noise: claimed noise on the sum over the clipping norm.
        chance: of a false alarm, for all of these together.
    """
    level = float(seen.scores[seen.included].mean()) if seen.included.sum() >= _ENOUGH_IN else 1.0
    residual = seen.scores - level * seen.included
    return [
        noise_size(
            [(f"step {t}", values) for t, values in enumerate(residual, start=1)],
            std=noise,
            chance=chance / 4.0,
            name="noise of each step",
            of="steps",
        ),
        noise_fresh(list(residual), std=noise, chance=chance / 4.0, name="noise along canaries"),
        *sampling(seen.included[:, seen.member], mechanism=mechanism, chance=chance / 2.0),
    ]


def moved_probe(moved: Sequence[float], *, slack: float) -> Probe:
    """Did taking one row away ever move what was released by more than the bound?

    Args:
        moved: for each row, the L2 distance over the claimed bound, freed of noise.
        slack: what noise and rounding may add to it.
    """
    worst = max(moved)
    passed = worst <= 1.0 + slack + _SLACK
    word = "at most" if passed else "up to"
    return Probe(
        name="sensitivity",
        passed=passed,
        finding=f"taking one of {len(moved)} rows away moved the release by {word} {worst:.4f} of the bound",
    )
