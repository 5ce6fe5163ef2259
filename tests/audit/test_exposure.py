"""Exposure: the rank of the paper, honest about ties and samples, bounded where a run is private."""

import math
import random

import pytest

from reticent.audit import Secret, chance_of_exposure, exposure, extract
from reticent.errors import ConfigError

PREFIX = "code "


def likes(code, *, prefix=PREFIX):
    """A scorer whose log-likelihood falls by 1 for each symbol that is not the code's."""

    def score(sentences):
        return [
            -float(sum(a != b for a, b in zip(s.removeprefix(prefix), code, strict=False))) for s in sentences
        ]

    return score


def hashed(sentences):
    """A scorer that knows nothing: a fixed random number for each sentence."""
    return [random.Random(sentence).random() for sentence in sentences]


def test_a_model_that_knows_the_secret_gives_all_its_bits():
    secret = Secret(prefix=PREFIX, code="4711")
    found = exposure(secret, likes("4711"))
    assert (found.rank, found.bits, found.exact) == (1, math.log2(10_000), True)
    assert (found.num_candidates, found.num_scored) == (10_000, 9_999)


def test_a_model_that_knows_another_code_gives_none():
    secret = Secret(prefix=PREFIX, code="00", alphabet="01")
    assert exposure(secret, likes("11")).bits == 0.0


def test_a_model_that_tells_nothing_exposes_nothing():
    assert exposure(Secret(prefix=PREFIX, code="472"), lambda sentences: [0.0] * len(sentences)).bits == 0.0


def test_the_rank_is_the_one_that_sorting_gives():
    secret = Secret(prefix=PREFIX, code="472")
    everything = [secret.sentence(code) for code in secret.candidates()]
    ranked = sorted(everything, key=lambda s: -hashed([s])[0])
    assert exposure(secret, hashed).rank == pytest.approx(1 + ranked.index(secret.sentence()))


def test_without_knowledge_exposure_is_b_bits_with_probability_two_to_the_minus_b():
    found = [exposure(Secret(prefix=PREFIX, code=f"{n:03}"), hashed).bits for n in range(0, 1000, 7)]
    # 143 of 1,000 codes without replacement; 5 sigma of a binomial: false alarms below 1e-5.
    for bits in (1, 2, 4):
        share, wanted = sum(b >= bits for b in found) / len(found), 2.0**-bits
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / len(found))
    assert 1.0 < sum(found) / len(found) < 1.9  # log2(e) = 1.44


def test_a_sample_says_that_it_is_one_and_how_far_it_can_see():
    secret = Secret(prefix=PREFIX, code="4711")
    found = exposure(secret, likes("4711"), max_candidates=255)
    assert (found.exact, found.num_scored, found.bits) == (False, 255, 8.0)
    assert found.rank == pytest.approx(10_000 / 256)


def test_greedy_search_finds_what_the_model_knows():
    secret = Secret(prefix=PREFIX, code="90210")
    assert extract(secret, likes("90210")) == "90210"
    assert extract(secret, likes("12345")) == "12345"


def test_beams_find_what_greedy_search_misses():
    def score(sentences):  # "0" looks better at first, and is a dead end
        worth = {"0": -1.0, "1": -1.1, "00": -9.0, "01": -9.0, "10": -1.2, "11": -9.0}
        return [worth[sentence.removeprefix(PREFIX)] for sentence in sentences]

    secret = Secret(prefix=PREFIX, code="00", alphabet="01")
    assert (extract(secret, score), extract(secret, score, beams=2)) == ("00", "10")


def test_the_chance_is_that_of_the_guarantee():
    assert chance_of_exposure(10, epsilon=0, delta=0) == 2.0**-10
    assert chance_of_exposure(20, epsilon=3, delta=1e-5) == pytest.approx(math.e**3 / 2**20 + 1e-5)
    assert chance_of_exposure(40, epsilon=1, delta=1e-9, copies=2) == pytest.approx(
        math.e**2 / 2**40 + 1e-9 * (1 + math.e)
    )
    assert chance_of_exposure(1, epsilon=8, delta=1e-5) == 1.0
    assert chance_of_exposure(1, epsilon=math.inf, delta=0) == 1.0


@pytest.mark.parametrize("scores", [[math.nan], [1.0, 2.0]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ConfigError, match="as many numbers") as caught:
        exposure(Secret(prefix=PREFIX, code="1"), lambda sentences: scores)
    assert caught.value.code == "audit-scores"
