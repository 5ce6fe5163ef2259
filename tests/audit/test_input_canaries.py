"""Input-space canaries against trainers whose memory is known."""

import math

import numpy as np
import pytest

from reticent.audit import Claim, Examples, audit_inputs, mislabelled, one_run_inputs, out_of_distribution
from reticent.errors import AuditError, ConfigError
from reticent.records import Mechanism, SamplingScheme

CLAIM = Claim(
    epsilon=1.0,
    delta=1e-5,
    mechanism=Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.1, noise_multiplier=4.0),
    num_steps=100,
)


def examples(num=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, 5)).astype(np.float32)
    return Examples(x=x, y=(x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0))


def remembers_all(rows):
    """One-nearest neighbour: no loss on what it has seen with this label."""
    seen = {(tuple(x), int(y)) for x, y in zip(rows.x, rows.y, strict=True)}
    return lambda asked: np.array(
        [0.0 if (tuple(x), int(y)) in seen else 1.0 for x, y in zip(asked.x, asked.y, strict=True)]
    )


def remembers_nothing(rows):
    return lambda asked: np.square(asked.x).sum(1)


def responds_at_random(epsilon):
    """Tells of each row whether it was there, rightly with probability e^eps / (1 + e^eps): (eps, 0)-DP."""

    def train(rows):
        truth, rng = remembers_all(rows), np.random.default_rng(1)
        right = 1.0 / (1.0 + math.exp(-epsilon))
        return lambda asked: np.where(rng.random(len(asked)) < right, truth(asked), 1.0 - truth(asked))

    return train


@pytest.mark.parametrize("kind", ["mislabelled", "out of distribution"])
def test_memory_without_privacy_refutes_a_claim(kind):
    result = audit_inputs(
        remembers_all, examples(), target="t", claim=CLAIM, num_classes=3, kind=kind, num_canaries=300
    )
    assert result.bound.epsilon > 1.5
    assert result.refuted and not result.passed


def test_no_memory_gives_no_bound_worth_speaking_of():
    found = one_run_inputs(
        remembers_nothing, examples(), examples(300, 1), delta=1e-5, confidence=0.999, seed=1
    )
    assert found.bound.epsilon < 0.1


def test_the_bound_is_below_what_a_known_mechanism_leaks_and_not_far():
    canaries = examples(1000, 2)
    found = one_run_inputs(
        responds_at_random(2.0), examples(10), canaries, delta=1e-5, confidence=0.99, seed=2
    )
    assert 1.0 < found.bound.epsilon <= 2.0


def test_mislabelled_rows_all_have_another_label_and_noise_keeps_shape_and_range():
    rows = examples()
    wrong = mislabelled(rows, num_classes=3, seed=0)
    assert (wrong.y != rows.y).all() and wrong.y.min() >= 0 and wrong.y.max() <= 2
    noise = out_of_distribution(rows, num=7, num_classes=3, seed=0)
    assert noise.x.shape == (7, 5) and noise.x.dtype == rows.x.dtype
    assert noise.x.min() >= rows.x.min() and noise.x.max() <= rows.x.max()


def test_what_is_no_trainer_of_losses_is_refused():
    def run(train, num=10):
        return one_run_inputs(train, examples(), examples(num, 1), delta=1e-5, confidence=0.99, seed=1)

    with pytest.raises(AuditError, match="returned a NoneType") as caught:
        run(lambda rows: None)
    assert caught.value.code == "audit-function"
    with pytest.raises(AuditError, match="one loss for each") as caught:
        run(lambda rows: lambda asked: np.zeros(3))
    assert caught.value.code == "audit-scores"
    with pytest.raises(ConfigError, match="one label for each input"):
        Examples(x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(ConfigError, match="cannot be made of 600 rows") as caught:
        audit_inputs(remembers_all, examples(), target="t", claim=CLAIM, num_classes=3, num_canaries=700)
    assert caught.value.code == "audit-size"


@pytest.mark.parametrize("loss", [0.25, np.inf])
def test_losses_that_are_all_the_same_tell_nothing(loss):
    def run(rows):
        return lambda asked: np.full(len(asked), loss)

    with pytest.raises(AuditError, match="40 canaries have the same score") as caught:
        one_run_inputs(run, examples(), examples(40), delta=1e-5, confidence=0.99, seed=1)
    assert caught.value.code == "audit-saw-nothing"


def test_coins_that_all_fell_alike_are_refused_before_training():
    with pytest.raises(AuditError, match="none of 2 canaries were put into the data") as caught:
        one_run_inputs(pytest.fail, examples(), examples(2), delta=1e-5, confidence=0.99, seed=1)
    assert caught.value.code == "audit-saw-nothing"
