"""Metrics: each library called as it is meant to be, against values worked out by hand."""

import math
import sys
import types

import pytest
from sklearn.metrics import f1_score

from reticent.errors import ConfigError
from reticent.recipes.text import _metrics
from reticent.recipes.text._metrics import accuracy, f1, text_metrics

RIGHT = ["the cat sat on the mat", "a dog barks loudly at night"]


def score(name, texts, references):
    return text_metrics(texts, references, names=[name])[name]


def test_bleu_of_the_references_is_100_and_counts_every_reference():
    assert score("bleu", RIGHT, [[text] for text in RIGHT]) == pytest.approx(100)
    uneven = [["nothing like it here", RIGHT[0]], [RIGHT[1]]]  # different numbers of references
    assert score("bleu", RIGHT, uneven) == pytest.approx(100)
    assert score("bleu", RIGHT, [["nothing like it here"], [RIGHT[1]]]) < 60


def test_bleu_of_a_known_pair():
    # Unigrams 5/6, bigrams 3/5, trigrams 1/4, 4-grams smoothed by sacrebleu to 1/(2*3); equal lengths.
    wanted = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert score("bleu", ["the cat sat on the mat"], [["the cat lay on the mat"]]) == pytest.approx(
        wanted, rel=1e-6
    )


def test_rouge_l_takes_the_best_reference_and_the_mean_over_texts():
    # Longest common subsequence 2 of 3 and 2 words: P = 2/3, R = 1, F = 0.8; the other text scores 0.
    found = score("rouge_l", ["a big cat", "xyz"], [["a cat", "dog"], ["word"]])
    assert found == pytest.approx((0.8 + 0) / 2)


def test_nist_of_a_known_pair():
    # One text equal to its only reference of 5 different words: log2(5/1) a word, and 0 for longer n-grams.
    assert score("nist", ["one two three four five"], [["One two three four five"]]) == pytest.approx(
        math.log2(5)
    )


@pytest.mark.parametrize("texts", [["", ""], ["", "one two"]])
def test_nist_of_short_texts_is_a_number(texts):
    assert score("nist", texts, [["one two three"], ["one two"]]) >= 0


def test_an_empty_text_counts_as_a_miss():
    found = text_metrics(["", RIGHT[1]], [[text] for text in RIGHT], names=["bleu", "rouge_l"])
    assert found["rouge_l"] == pytest.approx(0.5) and found["bleu"] < 70


class FakeWordNet:
    """Knows that a car is an auto, and nothing else."""

    def synsets(self, word, **_):
        names = ["car", "auto"] if word in ("car", "auto") else []
        return [
            types.SimpleNamespace(lemmas=lambda: [types.SimpleNamespace(name=lambda n=n: n) for n in names])
        ]


def test_meteor_uses_synonyms_of_wordnet(monkeypatch):
    monkeypatch.setattr(_metrics, "_wordnet", FakeWordNet)
    same = score("meteor", ["the car sat"], [["the car sat"]])
    assert same == pytest.approx(1 - 0.5 * (1 / 3) ** 3)  # one chunk of three matches
    assert score("meteor", ["the auto sat"], [["the car sat"]]) == pytest.approx(same)
    assert score("meteor", ["the dog sat"], [["the car sat"]]) < same


def test_meteor_without_wordnet_is_refused_and_not_a_weaker_number(monkeypatch):
    def nowhere():
        raise LookupError("no corpora/wordnet")

    _metrics._wordnet.cache_clear()
    monkeypatch.setattr("nltk.corpus.wordnet", types.SimpleNamespace(ensure_loaded=nowhere))
    with pytest.raises(ConfigError, match="would not be METEOR") as caught:
        score("meteor", ["a"], [["a"]])
    assert caught.value.code == "missing-library"


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "nist", "meteor"])
def test_a_metric_without_its_library_names_it(monkeypatch, name):
    for module in ("sacrebleu.metrics.bleu", "rouge_score.rouge_scorer", "nltk.translate.nist_score",
                   "nltk.translate.meteor_score"):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'reticent\[text-metrics\]'"):
        score(name, ["a"], [["a"]])


@pytest.mark.parametrize(("name", "match"), [("cider", "Java tokeniser"), ("blue", "Known: bleu, rouge_l")])
def test_metrics_that_are_not_computed_are_refused_by_name(name, match):
    with pytest.raises(ConfigError, match=match) as caught:
        score(name, ["a"], [["a"]])
    assert caught.value.code == "text-metric"


@pytest.mark.parametrize(
    ("texts", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], [["b"], ["c"]])]
)
def test_texts_and_references_that_do_not_match_are_refused(texts, references):
    with pytest.raises(ConfigError) as caught:
        score("bleu", texts, references)
    assert caught.value.code == "text-references"


@pytest.mark.parametrize("positive", [None, 0, 1, 2])
def test_f1_is_that_of_scikit_learn(positive):
    predicted, labels = [0, 1, 1, 2, 0, 0, 3], [0, 1, 0, 2, 2, 0, 0]
    kept = {} if positive is None else {"labels": [positive]}
    wanted = f1_score(labels, predicted, average="macro", **kept, zero_division=0.0)
    assert f1(predicted, labels, positive=positive) == pytest.approx(wanted)
    assert accuracy(predicted, labels) == pytest.approx(4 / 7)


@pytest.mark.parametrize("measure", [accuracy, f1])
def test_scores_of_nothing_are_refused(measure):
    with pytest.raises(ConfigError, match="one prediction for each label"):
        measure([], [])
