"""Membership by likelihood ratio (LiRA): models trained with and without an example say what its score means.

Room: audit. May import NumPy, SciPy, `reticent.errors`; never torch. Any trainer will do: it is a function.

Shape letters (this file): K model, N example, L label.

Sources:
    [1] Carlini et al. 2022, arXiv:2112.03570, algorithm 1 (on-line) and section VI.B (off-line).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from reticent.errors import ConfigError

Model = TypeVar("Model")
_LEAST_DEVIATION: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shadows:
    """What many models say about each example, and which of them were trained on it.

    Args:
        scores: shape (K, N): model k's score of example n; for LiRA a scaled confidence, about Gaussian.
        member: shape (K, N): whether n was in k's training data.

    Raises:
        ConfigError[audit-shadows]: shapes differ or a score is not finite.
    """

    scores: Float[np.ndarray, "K N"] = field(repr=False)
    member: Bool[np.ndarray, "K N"] = field(repr=False)

    def __post_init__(self) -> None:
        if self.scores.shape != self.member.shape or not np.isfinite(self.scores).all():
            raise ConfigError(
                "Each model must give each example one finite score, and each pair of them one coin; got "
                f"shapes {self.scores.shape} and {self.member.shape}.",
                code="audit-shadows",
            )


def balanced_halves(num_models: int, num_examples: int, *, seed: int) -> Bool[np.ndarray, "K N"]:
    """Which model trains on what: each example in exactly half of the models, for shadows.

    Raises:
        ConfigError[audit-shadows]: `num_models` is odd or below 4: one model on a side has no spread.
    """
    if num_models < 4 or num_models % 2:
        raise ConfigError(f"Shadow models come in pairs, at least 4; got {num_models}.", code="audit-shadows")
    one = np.arange(num_models) < num_models // 2
    return np.random.default_rng(seed).permuted(np.tile(one, (num_examples, 1)), axis=1).T


def fair_coins(num_models: int, num_examples: int, *, seed: int) -> Bool[np.ndarray, "K N"]:
    """Which model trains on what: each by its own fair coin, for models under attack (`one_run_bound`)."""
    return np.random.default_rng(seed).random((num_models, num_examples)) < 0.5


def train_shadows(
    train: Callable[[Any], Model],
    score: Callable[[Model], Any],
    dataset: tuple[Any, ...],
    member: Bool[np.ndarray, "K N"],
    *,
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Shadows:
    """Train a model on each row of coins, and let it score every example.

    Args:
        train: a tuple of arrays or tensors, rows along the first axis -> a model. Fresh randomness each time.
        score: a model -> one number for each of the N examples, in or out; see `scaled_confidence`.
        dataset: arrays or tensors of N rows each.
        member: shape (K, N): who is in model k's data.
        watch: wraps the loop, e.g. with a progress bar.

    Raises:
        ConfigError[audit-shadows]: an array of another length than N, or scores that are not N finite
            numbers.
    """
    if any(len(part) != member.shape[1] for part in dataset):
        raise ConfigError(
            f"There are coins for {member.shape[1]} examples; each array needs as many rows.",
            code="audit-shadows",
        )
    scores = [
        np.asarray(score(train(tuple(part[np.flatnonzero(coins)] for part in dataset))), dtype=np.float64)
        for coins in watch(member)
    ]
    if any(row.shape != member.shape[1:] for row in scores):
        raise ConfigError(
            f"score must return one number for each of the {member.shape[1]} examples, got shape "
            f"{next(r.shape for r in scores if r.shape != member.shape[1:])}.",
            code="audit-shadows",
        )
    return Shadows(scores=np.stack(scores), member=member)


def scaled_confidence(
    logits: Float[np.ndarray, "N L"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """log p / (1 - p) of the label's probability p, about Gaussian over models [1]; exact for p near 1."""
    logits = np.asarray(logits, dtype=np.float64)
    places = np.arange(len(logits))
    others = logits.copy()
    others[places, labels] = -np.inf
    return logits[places, labels] - logsumexp(others, axis=1)


def lira_online(
    shadows: Shadows, scores: Float[np.ndarray, "... N"], *, own_spread: bool = False
) -> Float[np.ndarray, "... N"]:
    """log N(score; in) - log N(score; out), with means of each example's own shadows [1, alg. 1].

    Args:
        shadows: models of the same trainer.
        scores: of the models under attack, which are none of the shadows.
        own_spread: estimate each example's variances by themselves; better above some 64 models, noise below.

    Raises:
        ConfigError[audit-shadows]: an example in all shadows or in none.
    """
    (mean_in, spread_in), (mean_out, spread_out) = (
        _gaussian(shadows, shadows.member, own_spread),
        _gaussian(shadows, ~shadows.member, own_spread),
    )
    likely_in = -(((scores - mean_in) / spread_in) ** 2) / 2 - np.log(spread_in)
    likely_out = -(((scores - mean_out) / spread_out) ** 2) / 2 - np.log(spread_out)
    return likely_in - likely_out


def lira_offline(
    shadows: Shadows, scores: Float[np.ndarray, "... N"], *, own_spread: bool = False
) -> Float[np.ndarray, "... N"]:
    """How many deviations a score lies above those of models without the example [1, sect. VI.B].

    Needs no model trained on the example: shadows in which it is "in" are not looked at. The order is that of
    the one-sided test's level, which rounds to 1 where this does not.

    Args:
        shadows: models of the same trainer.
        scores: of the models under attack, which are none of the shadows.
        own_spread: see `lira_online`.

    Raises:
        ConfigError[audit-shadows]: an example in all shadows.
    """
    mean, spread = _gaussian(shadows, ~shadows.member, own_spread)
    return (scores - mean) / spread


def _gaussian(
    shadows: Shadows, side: Bool[np.ndarray, "K N"], own_spread: bool
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Each example's mean and deviation over the models of one side."""
    counts = side.sum(0)
    if counts.min(initial=len(side)) < (2 if own_spread else 1) or counts.sum() <= len(counts):
        raise ConfigError(
            "An example is in too many or too few of the shadow models to say what its score means; "
            "`balanced_halves` puts each in half of them.",
            code="audit-shadows",
        )
    mean = np.where(side, shadows.scores, 0.0).sum(0) / counts
    squares = (np.where(side, shadows.scores - mean, 0.0) ** 2).sum(0)
    if own_spread:
        variance = squares / (counts - 1)
    else:
        variance = np.full(len(counts), squares.sum() / (counts.sum() - len(counts)))
    return mean, np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
