"""Hyperparameters for private fine-tuning from public facts: number of rows, epsilon, delta, what is trained.

Room: recipes.text. Standard library only; reads no data.

    steps    N / 333, from 120 to 1200. [1] trains SST-2, QNLI, QQP and MNLI (N = 67 to 393 thousand) for 203,
             315, 1092 and 1179 updates: N / 332, 333, 333, 333. With minilm on 7,464 rows 120 updates did
             better on training rows held out than 60 of twice as many rows. To generate, N / 100, from 60 to
             1400: E2E and DART (N = 42 and 93 thousand) have 411 and 1366 updates, N / 102 and N / 68.
    batch    q N. [1] has q = 1.5 to 1.9 % on the same four, 2.4 and 1.1 % on the other two. Smaller data
             need more: a larger q, as long as that lowers the noise of the mean gradient by much, and for no
             more than four epochs, or 100,000 rows in all.
    noise    At T steps with probability q, the central limit theorem of [2] says sigma = 1 / sqrt(ln(1 +
             x^2)), x = mu / (q sqrt(T)), where a Gaussian mechanism of mean mu is (epsilon, delta). Noise in
             the mean gradient, sigma C / (q N), is x / sqrt(ln(1 + x^2)) times what it is for q = 1: 1.25
             at x = 1.1. It only picks the batch; what is spent is always computed exactly.
    rate     5e-4 in full with linear decay [1]; ten times less without privacy [1], whose batches are small
             there: with the same large batches here, a fifth. Few weights, or rank-r ones, move further.
    words    Embeddings stay where a new head is trained in full. They are half of minilm's weights, take half
             of the noise, and hardly move the norm of its gradients.
    norm     [1] has 0.1, below every gradient. Then each class of a balanced task pulls with the same force,
             however wrong the model is about it, and nothing brings back a drift to one class: fine with
             [1]'s many rows, chance on 7,464. At the median norm of random rows before training, a row that
             has become more wrong pulls harder. The run measures it (`with_measured_norm`).
    delta    The smaller of 1e-5 and N^-1.1 (the released code of [1]).

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679, and the scripts of its code.
    [2] Bu, Dong, Long and Su 2020, arXiv:1911.11607, Corollary 5.4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

_NORMAL: Final = NormalDist()
_PAPER_PROB: Final = 0.015
_X: Final = 1.1  # noise 1.25 times the least possible
_MOST_EPOCHS: Final = 4.0
_MOST_ROWS: Final = 100_000
_CLASSIFY: Final = (333, 120, 1200)  # rows for each step, the fewest steps and the most
_GENERATE: Final = (100, 60, 1400)
_RATES: Final[Mapping[str, float]] = {
    "full": 5e-4,
    "attention": 5e-4,
    "lora": 2e-3,
    "ia3": 5e-3,
    "bias": 2e-3,
    "last-layer": 5e-3,
}
# Of a model by name, with privacy and without: the best of those tried with the noise of epsilon 8 on 2,500
# training rows of rotten-tomatoes that were held out: in full 1e-3, 2e-3 and 3e-3 for 60 steps, of which 120
# have three quarters; lora 2.5e-3, 5e-3 and 1.5e-2, likewise; bias 1e-2, the only one. Those without privacy
# are our guess.
_MEASURED: Final[Mapping[tuple[str, str], tuple[float, float]]] = {
    ("minilm", "full"): (1.5e-3, 1e-4),
    ("minilm", "lora"): (4e-3, 8e-4),
    ("minilm", "bias"): (1e-2, 2e-3),
}
_FROZEN: Final = "a row has a gradient for its own few words, and noise moves all words"
_FIXED: Final[Mapping[str, str]] = {
    "max_norm": "0.1: below most gradients, as published",
    "optimizer": "adam: no weight decay, as published",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Settings, and why each of them.

    Args:
        values: setting -> value.
        reasons: setting -> one line for people.
    """

    values: Mapping[str, Any]
    reasons: Mapping[str, str]


def suggest(
    *,
    num_examples: int,
    epsilon: float,
    delta: float,
    adaptation: str,
    model: str,
    freeze_embeddings: bool = False,
) -> Suggestion:
    """What to begin with; each value can be set otherwise.

    Args:
        num_examples: rows to train on, public.
        epsilon: the budget; infinite: as for 8, so that the twin without privacy differs in nothing else.
        delta: as the settings have it.
        adaptation: which weights are trained.
        model: the model's name.
        freeze_embeddings: whether they may stay as they are: a new head is trained, and all else in full.
    """
    drawn = _drawn(num_examples, epsilon, delta, *_CLASSIFY)
    rate = _RATES[adaptation]
    private_rate, twin_rate = _MEASURED.get((model, adaptation), (rate, rate / 5))
    source = "0.0005 in full as published" if private_rate == rate else f"{model}'s, measured"
    if math.isinf(epsilon):
        source = "a fifth of the published rate" if twin_rate == rate / 5 else f"{model}'s"
    return Suggestion(
        values={
            **drawn.values,
            "lr": private_rate,
            "twin_lr": twin_rate,
            "freeze_embeddings": freeze_embeddings,
        },
        reasons={
            **({"freeze_embeddings": _FROZEN} if freeze_embeddings else {}),
            **drawn.reasons,
            "lr": f"for adaptation = {adaptation}; {source}, falling to 0",
            **_FIXED,
            "max_norm": "a run begins by taking the median gradient norm of made-up rows",
        },
    )


def suggest_generation(*, num_examples: int, epsilon: float, delta: float) -> Suggestion:
    """`suggest`, for a model that generates: rates are the published ones, whatever is trained."""
    drawn = _drawn(num_examples, epsilon, delta, *_GENERATE)
    return Suggestion(
        values=drawn.values,
        reasons={**drawn.reasons, "lr": "0.002, not falling, as published for E2E", **_FIXED},
    )


def _drawn(
    num_examples: int, epsilon: float, delta: float, rows_each: int, fewest: int, most: int
) -> Suggestion:
    """Steps, batch and delta."""
    steps = min(max(round(num_examples / rows_each), fewest), most)
    delta = min(delta, _floor(num_examples**-1.1))
    mu = gaussian_mean(epsilon if math.isfinite(epsilon) else 8.0, delta)
    enough = mu / (_X * math.sqrt(steps))
    epochs = max(_MOST_EPOCHS, _MOST_ROWS / num_examples)
    prob = min(1.0, max(_PAPER_PROB, min(enough, epochs / steps)))
    batch = min(num_examples, _round(prob * num_examples))  # 555 of 555 would become 560
    at_most = "four epochs" if epochs == _MOST_EPOCHS else f"{_MOST_ROWS:,} rows in all"
    limit = at_most if enough > epochs / steps else "noise within 1.25 of the least"
    why = "1.5 % of N" if prob == _PAPER_PROB else limit
    return Suggestion(
        values={"num_steps": steps, "expected_batch_size": float(batch), "delta": delta},
        reasons={
            "num_steps": f"N / {rows_each}, from {fewest} to {most}; N = {num_examples:,}",
            "expected_batch_size": f"{100 * batch / num_examples:.2g} % of N: {why}",
            "delta": "the smaller of 1e-5 and N^-1.1",
        },
    )


def gaussian_mean(epsilon: float, delta: float) -> float:
    """The largest mu for which N(0, 1) against N(mu, 1) is (epsilon, delta)-close, to 1e-6."""

    def spent(mu: float) -> float:
        least, most = -epsilon / mu - mu / 2, -epsilon / mu + mu / 2
        tail = _NORMAL.cdf(least)
        return _NORMAL.cdf(most) - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)

    low, high = 1e-6, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= delta else (low, middle)
    return low


def _round(batch: float) -> int:
    """Two leading digits, and at least 1."""
    if batch < 10:
        return max(1, round(batch))
    digits = 10 ** (math.floor(math.log10(batch)) - 1)
    return int(round(batch / digits) * digits)


def _floor(delta: float) -> float:
    """One leading digit, never more than it was."""
    unit = 10.0 ** math.floor(math.log10(delta))
    return float(f"{math.floor(delta / unit)}e{math.floor(math.log10(delta))}")
