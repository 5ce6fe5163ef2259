"""Exposure of a planted secret: how far up its log-likelihood puts it among all codes; and its extraction.

Room: audit. Imports `reticent.errors` and the room's own files.

Exposure is log2 |R| - log2 rank [1, definition 5], in bits: 0 for the unlikeliest code, log2 |R| for the
likeliest, and about 1.44 on average for a model that never saw the secret.

Sources:
    [1] Carlini, Liu, Erlingsson, Kos and Song 2019, "The Secret Sharer", arXiv:1802.08232
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from reticent.errors import ConfigError

from ._secret import Secret

LogLikelihoods = Callable[[Sequence[str]], Sequence[float]]  # sentences -> log p of each, in nats
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Where a secret stands among the codes it could have been.

    Args:
        bits: the exposure.
        rank: 1 for the likeliest code; codes of equal likelihood count as before it, so that a model that
            tells nothing exposes nothing.
        num_candidates: |R|.
        num_scored: how many codes were scored beside the secret's own.
        exact: whether all were. If not, `rank` is an estimate, and `bits` cannot exceed
            log2(`num_scored` + 1).
    """

    bits: float
    rank: float
    num_candidates: int
    num_scored: int
    exact: bool


def exposure(
    secret: Secret, score: LogLikelihoods, *, max_candidates: int = 100_000, seed: int = 0
) -> Exposure:
    """Rank a secret by log-likelihood among all codes, or among a random sample of them.

    Args:
        secret: the planted secret, or one that was not planted, for comparison.
        score: sentences -> log-likelihood of each. Only their order matters.
        max_candidates: score all codes if there are at most so many, else a sample of so many.
        seed: of the sample.

    Raises:
        ConfigError[audit-scores]: a score is NaN, or there are not as many as sentences.
    """
    exact = secret.num_candidates <= max_candidates
    others: Iterator[str]
    if exact:
        others = (code for code in secret.candidates() if code != secret.code)
        num_scored = secret.num_candidates - 1
    else:
        others, num_scored = iter(secret.others(max_candidates, seed=seed)), max_candidates
    (own,) = _scores(score, [secret.sentence()])
    place = 1  # among those scored and the secret itself
    while codes := list(islice(others, _AT_ONCE)):
        place += sum(value >= own for value in _scores(score, [secret.sentence(code) for code in codes]))
    bits = math.log2(num_scored + 1) - math.log2(place)
    return Exposure(
        bits=bits,
        rank=float(place) if exact else place * secret.num_candidates / (num_scored + 1),
        num_candidates=secret.num_candidates,
        num_scored=num_scored,
        exact=exact,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureRanks:
    """Where canaries stand among rows of their own kind that were never in the data, by their losses.

    Args:
        bits_in: mean exposure of the canaries that were in the data.
        bits_out: of those that were not: about 1.44, whatever the model.
        rank_in: median rank of those that were in; 1 for a loss below that of all references.
        rank_out: of those that were not.
        num_references: rows to compare with; no exposure exceeds log2(`num_references` + 1).
    """

    bits_in: float
    bits_out: float
    rank_in: float
    rank_out: float
    num_references: int


def exposure_ranks(
    losses: npt.NDArray[np.float64], references: npt.NDArray[np.float64], member: npt.NDArray[np.bool_]
) -> ExposureRanks:
    """Exposure of canaries that were drawn as the references were: an estimate by sampling [1, section 4.3].

    Args:
        losses: of the canaries, shape (M,).
        references: losses of other rows of the same distribution, shape (R,).
        member: which canaries were in the data, shape (M,); some were and some were not.
    """
    rank = 1 + np.searchsorted(np.sort(references), losses, side="right")  # equal losses count as before it
    bits = math.log2(len(references) + 1) - np.log2(rank)
    return ExposureRanks(
        bits_in=float(bits[member].mean()),
        bits_out=float(bits[~member].mean()),
        rank_in=float(np.median(rank[member])),
        rank_out=float(np.median(rank[~member])),
        num_references=len(references),
    )


def extract(secret: Secret, score: LogLikelihoods, *, beams: int = 1) -> str:
    """The code that a search symbol by symbol finds: greedy with one beam, wider with more.

    Knows the sentence around the code, its alphabet and its length: more than an outsider would.

    Args:
        secret: gives all of those; its own code is not looked at.
        score: sentences, cut after a symbol -> log-likelihood of each.
        beams: how many prefixes are kept.

    Raises:
        ConfigError[audit-scores]: as for `exposure`.
    """
    kept = [""]
    for _ in secret.code:
        longer = [code + symbol for code in kept for symbol in secret.alphabet]
        cut = [f"{secret.prefix}{secret.separator.join(code)}" for code in longer]
        ranked = sorted(zip(_scores(score, cut), longer, strict=True), key=lambda pair: -pair[0])
        kept = [code for _, code in ranked[: max(1, beams)]]
    return kept[0]


def chance_of_exposure(bits: float, *, epsilon: float, delta: float, copies: int = 1) -> float:
    """The most likely that a private run exposes a secret by `bits` or more.

    Without the examples that hold it the secret is uniform given the model, so its exposure is `bits` or
    more with probability at most 2^-bits. One such example makes that at most e^epsilon times as much, plus
    delta; k of them, one after the other, e^(k epsilon) and delta (1 + e^epsilon + ... + e^((k-1) epsilon)).

    Args:
        bits: the exposure in question.
        epsilon: of the run, for adding or removing one example.
        delta: of the run.
        copies: in how many examples the secret was planted.

    Raises:
        ConfigError[audit-secret]: a number is negative, or there is no copy.
    """
    if min(bits, epsilon, delta) < 0 or copies < 1:
        raise ConfigError(
            "bits, epsilon and delta must be >= 0 and copies >= 1; got "
            f"{bits}, {epsilon}, {delta}, {copies}.",
            code="audit-secret",
        )
    if copies * epsilon > 700:
        return 1.0
    deltas = delta * sum(math.exp(k * epsilon) for k in range(copies))
    return min(1.0, math.exp(copies * epsilon) * 2.0**-bits + deltas)


def _scores(score: LogLikelihoods, sentences: Sequence[str]) -> list[float]:
    values = [float(value) for value in score(sentences)]
    if len(values) != len(sentences) or any(math.isnan(value) for value in values):
        raise ConfigError(
            f"The scores of {len(sentences)} sentences must be as many numbers; got {len(values)}, "
            f"{sum(map(math.isnan, values))} of them NaN.",
            code="audit-scores",
        )
    return values
