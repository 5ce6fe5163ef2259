"""Secrets: drawn uniformly, planted in as many texts as said, and never shown."""

import random

import pytest

from reticent.audit import Secret, plant
from reticent.errors import ConfigError

PREFIX = "My access code is "


def test_a_drawn_secret_is_of_its_alphabet_and_length():
    secret = Secret.draw(PREFIX, length=6, separator=" ")
    assert len(secret.code) == 6 and set(secret.code) <= set("0123456789")
    assert secret.num_candidates == 10**6
    assert secret.sentence("012345") == PREFIX + "0 1 2 3 4 5"


def test_two_draws_differ():
    assert Secret.draw(PREFIX, length=20).code != Secret.draw(PREFIX, length=20).code  # 10^-20


def test_the_repr_does_not_show_the_code():
    assert "31415" not in repr(Secret(prefix=PREFIX, code="31415"))


def test_candidates_are_all_codes_once():
    secret = Secret(prefix=PREFIX, code="10", alphabet="01")
    assert list(secret.candidates()) == ["00", "01", "10", "11"]


def test_others_never_hold_the_secret_and_cover_the_rest():
    secret = Secret(prefix=PREFIX, code="10", alphabet="01")
    assert set(secret.others(200, seed=1)) == {"00", "01", "11"}
    assert secret.others(50, seed=1) == secret.others(50, seed=1)


def test_planting_changes_exactly_the_chosen_texts():
    texts = [f"mail {k}" for k in range(20)]
    secret = Secret(prefix=PREFIX, code="271828")
    planted, chosen = plant(texts, secret, copies=3, seed=5)
    assert len(chosen) == 3 == sum(secret.sentence() in text for text in planted)
    for k, (before, after) in enumerate(zip(texts, planted, strict=True)):
        assert after == (f"{secret.sentence()}\n{before}" if k in chosen else before)


def test_planting_leaves_the_global_generator_alone():
    random.seed(3)
    wanted = random.random()
    random.seed(3)
    plant(["a", "b"], Secret(prefix=PREFIX, code="1"), copies=1, seed=0)
    assert random.random() == wanted


@pytest.mark.parametrize(
    "settings",
    [{"code": ""}, {"code": "1x"}, {"code": "1", "alphabet": "1"}, {"code": "1", "alphabet": "11"}],
)
def test_a_secret_that_is_none_is_refused(settings):
    with pytest.raises(ConfigError, match="planted secret") as caught:
        Secret(prefix=PREFIX, **settings)
    assert caught.value.code == "audit-secret"


@pytest.mark.parametrize("copies", [0, 3])
def test_planting_in_no_text_or_in_more_than_there_are_is_refused(copies):
    with pytest.raises(ConfigError, match="number of texts"):
        plant(["a", "b"], Secret(prefix=PREFIX, code="1"), copies=copies, seed=0)
