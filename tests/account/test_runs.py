"""Several runs together, and the best of many trials."""

import math

import pytest

from reticent.account import RandomTrials, choice_epsilon, compose_runs, epsilon
from reticent.account.ledger import Ledger, read_ledger
from reticent.errors import LedgerError
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme

STEP = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=1.1)
CIFAR = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=4096 / 50_000, noise_multiplier=3.0)


def ledger(path, name, *, steps=10, delta=1e-5, relation=NeighbouringRelation.ZERO_OUT, reproducible=False):
    with Ledger.create(
        path / f"{name}.jsonl",
        run_id=name,
        relation=relation,
        delta=delta,
        num_steps=100,
        reproducible=reproducible,
        public={},
    ) as made:
        for _ in range(steps):
            made.append_step(STEP)
    return read_ledger(path / f"{name}.jsonl")


def test_runs_add_up_to_the_epsilon_of_all_their_steps(tmp_path):
    together = compose_runs([ledger(tmp_path, "a"), ledger(tmp_path, "b", steps=30)])
    assert together == epsilon([(STEP, 40)], delta=1e-5, relation=NeighbouringRelation.ZERO_OUT)


def test_one_reproducible_run_takes_the_privacy_of_all(tmp_path):
    together = compose_runs([ledger(tmp_path, "a"), ledger(tmp_path, "b", reproducible=True)])
    assert together.epsilon == math.inf
    assert "run b is reproducible" in together.notes[-1]


def test_a_delta_for_all_of_them_can_be_named(tmp_path):
    views = [ledger(tmp_path, "a"), ledger(tmp_path, "b", delta=1e-6)]
    assert compose_runs(views, delta=1e-7).delta == 1e-7
    with pytest.raises(LedgerError, match="different deltas"):
        compose_runs(views)


def test_what_does_not_belong_together_is_refused(tmp_path):
    one = ledger(tmp_path, "a")
    other = ledger(tmp_path, "b", relation=NeighbouringRelation.ADD_OR_REMOVE)
    for views, text in (([], "none was given"), ([one, one], "given twice"), ([one, other], "neighbours")):
        with pytest.raises(LedgerError, match=text):
            compose_runs(views)


# Papernot and Steinke's bounds for the same RDP curve, computed apart.
@pytest.mark.parametrize(
    ("mean", "distribution", "value"),
    [
        (10.0, "geometric", 10.752284929613),
        (100.0, "geometric", 13.52),
        (10.0, "logarithmic", 9.46),
        (10.0, "poisson", 14.23),
    ],
)
def test_the_best_of_a_random_number_of_trials(mean, distribution, value):
    trials = RandomTrials(distribution=distribution, mean=mean)
    chosen = choice_epsilon([[(CIFAR, 2000)]], trials=trials, delta=1e-5)
    assert chosen.epsilon == pytest.approx(value, abs=1e-2)
    assert chosen.epsilon > epsilon([(CIFAR, 2000)], delta=1e-5).epsilon
