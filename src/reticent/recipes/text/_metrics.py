"""Scores of generated texts against references, and of predicted labels: each by a well-kept library.

Room: recipes.text. Imports sacrebleu, rouge-score and nltk when a metric of theirs is asked for.

| name | by | what it is |
|---|---|---|
| `bleu` | sacrebleu | corpus BLEU, 0 to 100, tokenised by 13a, case kept, all references |
| `rouge_l` | rouge-score | longest common subsequence, F-measure, best reference, mean over texts |
| `nist` | nltk | corpus NIST with n-grams up to 5, all references, tokenised by 13a |
| `meteor` | nltk | METEOR of 2007 [1], Porter stems and WordNet, best reference, mean over texts |

The numbers of the E2E and GEM scripts differ a little: they tokenise otherwise, weigh recall in ROUGE-L, and
run METEOR 1.5; nltk's METEOR looks synonyms up by stem, and so misses those of words that stemming changes.
CIDEr is refused: no library that is kept up offers it without a Java tokeniser. Take it from the task's own
script, on the texts that `reticent generate --out` writes.

Sources:
    [1] Lavie and Agarwal 2007, "METEOR: An Automatic Metric for MT Evaluation"
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from reticent.errors import ConfigError

from ._packages import missing

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def text_metrics(texts: Texts, references: References, *, names: Sequence[str]) -> dict[str, float]:
    """Score generated texts against their references.

    Args:
        texts: one generated text for each source; empty ones count, as misses.
        references: one or more reference texts for each source, in the same order.
        names: which metrics, of `METRICS`.

    Returns:
        Name -> score, in the order of `names`.

    Raises:
        ConfigError[text-metric]: a name is unknown, or of a metric that is refused.
        ConfigError[text-references]: nothing to score, or the two sequences do not match.
        ConfigError[missing-library]: a metric's library is not installed, or METEOR's WordNet is not there.
    """
    for name in names:
        if name in REFUSED:
            raise ConfigError(
                f"The metric '{name}' is not computed here: {REFUSED[name]}", code="text-metric"
            )
        if name not in METRICS:
            raise ConfigError(
                f"No metric is named '{name}'. Known: {', '.join(METRICS)}.", code="text-metric"
            )
    if not texts or len(texts) != len(references) or not all(references):
        raise ConfigError(
            "Metrics need at least one text, and one or more references for each; got "
            f"{len(texts)} texts and references for {sum(map(bool, references))}.",
            code="text-references",
        )
    return {name: METRICS[name](texts, references) for name in names}


def bleu(texts: Texts, references: References) -> float:
    """Corpus BLEU, 0 to 100."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise missing("sacrebleu", "BLEU", extra="text-metrics") from error
    most = max(map(len, references))
    streams = [[refs[k] if k < len(refs) else None for refs in references] for k in range(most)]
    return float(BLEU().corpus_score(list(texts), streams).score)  # pyright: ignore[reportArgumentType]


def rouge_l(texts: Texts, references: References) -> float:
    """Mean over texts of the best reference's ROUGE-L F-measure, 0 to 1."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge-score", "ROUGE-L", extra="text-metrics") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    best = [
        scorer.score_multi(list(refs), text)["rougeL"].fmeasure
        for text, refs in zip(texts, references, strict=True)
    ]
    return sum(best) / len(best)


def nist(texts: Texts, references: References) -> float:
    """Corpus NIST, n-grams up to 5; 0 if no text has a token."""
    try:
        from nltk.translate.nist_score import corpus_nist
    except ImportError as error:
        raise missing("nltk", "NIST", extra="text-metrics") from error
    tokens = _tokeniser("NIST")
    guesses = [tokens(text) for text in texts]
    longest = max(map(len, guesses))  # of n-grams longer than every text there are none: they add 0, not 0/0
    if longest == 0:
        return 0.0
    return float(
        corpus_nist([[tokens(ref) for ref in refs] for refs in references], guesses, n=min(5, longest))
    )


def meteor(texts: Texts, references: References) -> float:
    """Mean over texts of the best reference's METEOR, 0 to 1."""
    try:
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise missing("nltk", "METEOR", extra="text-metrics") from error
    tokens, wordnet = _tokeniser("METEOR"), _wordnet()
    scores = [
        meteor_score([tokens(ref) for ref in refs], tokens(text), wordnet=wordnet)
        for text, refs in zip(texts, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


METRICS: Final[Mapping[str, Callable[[Texts, References], float]]] = MappingProxyType(
    {"bleu": bleu, "rouge_l": rouge_l, "nist": nist, "meteor": meteor}
)

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cider": "no library that is kept up offers CIDEr without a Java tokeniser. Write the texts with "
        "`reticent generate RUN --out texts.jsonl` and score them with the task's own script."
    }
)


def _tokeniser(metric: str) -> Callable[[str], list[str]]:
    """sacrebleu's 13a, the tokeniser of the NIST evaluations, in lower case as those were scored."""
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise missing("sacrebleu", metric, extra="text-metrics") from error
    tokenise = Tokenizer13a()
    return lambda text: tokenise(text.lower()).split()


@cache
def _wordnet() -> Any:
    """nltk's reader of WordNet, opened once.

    Raises:
        ConfigError[missing-library]: nltk has no WordNet. Without it the number would not be METEOR.
    """
    from nltk.corpus import wordnet

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about languages other than English, which are not used
            wordnet.ensure_loaded()
    except LookupError as error:
        raise ConfigError(
            "METEOR needs WordNet, which nltk keeps apart: python -m nltk.downloader wordnet. Without it "
            "only equal words and stems would match, and the number would not be METEOR.",
            code="missing-library",
        ) from error
    return wordnet


# ---- labels --------------------------------------------------------------------------------------


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """The share of labels that were predicted.

    Raises:
        ConfigError[text-references]: nothing to score, or different numbers of both.
    """
    _check_labels(predicted, labels)
    return sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)


def f1(predicted: Sequence[int], labels: Sequence[int], *, positive: int | None = None) -> float:
    """The harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    Args:
        predicted: one label for each text.
        labels: the right ones.
        positive: the class that is looked for; None: the mean over the classes that occur in either
            (macro F1).

    Returns:
        F1 from 0 to 1; 0 for a class of which nothing was found.

    Raises:
        ConfigError[text-references]: nothing to score, or different numbers of both.
    """
    _check_labels(predicted, labels)
    classes = sorted({*predicted, *labels}) if positive is None else [positive]
    scores = []
    for label in classes:
        hits = sum(p == y == label for p, y in zip(predicted, labels, strict=True))
        named = sum(p == label for p in predicted) + sum(y == label for y in labels)
        scores.append(2 * hits / named if named else 0.0)
    return sum(scores) / len(scores)


def _check_labels(predicted: Sequence[int], labels: Sequence[int]) -> None:
    if not labels or len(predicted) != len(labels):
        raise ConfigError(
            f"Scores need one prediction for each label and at least one; got {len(predicted)} predictions "
            f"and {len(labels)} labels.",
            code="text-references",
        )
