"""Every sampler through training: the ledger says how steps were drawn, and is verified by it."""
# pyright: reportArgumentType=false

import json

import pytest
import torch

from reticent.account.ledger import read_ledger
from reticent.clipping import FlatClipping
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.records import Budget, NeighbouringRelation
from reticent.report import verify_run
from reticent.sample import (
    FixedSizeSampler,
    FullBatchSampler,
    PartitionSampler,
    PoissonSampler,
    TruncatedPoissonSampler,
)
from reticent.train import train
from tests.train.joint import NUM_EXAMPLES as N
from tests.train.joint import cross_entropy, make_data, make_model

REPLACE = NeighbouringRelation.REPLACE_ONE
CASES = {
    "fixed size": (FixedSizeSampler(num_examples=N, batch_size=4), None),
    "truncated": (TruncatedPoissonSampler(num_examples=N, expected_batch_size=4, max_batch_size=6), None),
    "cyclic": (PartitionSampler(num_examples=N, num_batches=3, order="cyclic"), None),
    "shuffled, replace-one": (
        PartitionSampler(num_examples=N, num_batches=3, order="shuffled", seed=1),
        REPLACE,
    ),
    "bins": (PartitionSampler(num_examples=N, num_batches=3, order="balls-in-bins", seed=1), None),
    "full, replace-one": (FullBatchSampler(num_examples=N), REPLACE),
}


def plan_of(sampler, neighbours, **more):
    settings = {"num_steps": 4, "noise_multiplier": 4.0, "delta": 1e-3, **more}
    return Plan(sampler=sampler, clipping=FlatClipping(max_norm=1.0), neighbours=neighbours, **settings)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_verified_by_its_samplers_own_account(tmp_path, case):
    plan = plan_of(*CASES[case])
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = tmp_path / "run"
    result = train(model, optimizer, plan=plan, dataset=make_data(), loss_per_example=cross_entropy, out=out)
    view = read_ledger(out / "ledger.jsonl")
    assert view.segments() == ((plan.mechanism, 4),) and view.relation is plan.relation
    assert result.epsilon.epsilon == plan.epsilon().epsilon
    found = verify_run(out)
    assert found.sound and found.statement is not None, found.problems
    assert found.statement["mechanisms"] == [{**plan.mechanism.describe(), "num_steps": 4}]
    assert Plan.from_dict(json.loads((out / "run.json").read_text())["plan"]) == plan


def test_neighbours_that_a_sampler_has_no_statement_for_are_refused():
    cut = CASES["truncated"][0]
    for sampler, neighbours in (
        (cut, REPLACE),
        (CASES["cyclic"][0], NeighbouringRelation.ADD_OR_REMOVE),
        (PoissonSampler(sampling_prob=0.1, expected_batch_size=2), NeighbouringRelation.ZERO_OUT),
        (PoissonSampler(num_examples=9, expected_batch_size=2), NeighbouringRelation.ADD_OR_REMOVE),
    ):
        with pytest.raises(ConfigError, match="neighbours must be"):
            plan_of(sampler, neighbours)


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        (FullBatchSampler(num_examples=1000), 2.0),  # the sum moves twice as far
        # Drawn rarely, an example is hidden by its absence more than by which one it is.
        (PoissonSampler(num_examples=1000, expected_batch_size=20), 1.0),
    ],
)
def test_noise_is_solved_for_under_replace_one_too(sampler, times):
    asked = {"budget": Budget(epsilon=2.0, delta=1e-5), "num_steps": 50, "sampler": sampler}
    usual, exchanged = (
        Plan.calibrate(clipping=FlatClipping(max_norm=1.0), neighbours=neighbours, **asked)
        for neighbours in (None, REPLACE)
    )
    assert 0.999 * 2 <= exchanged.epsilon().epsilon <= 2.0
    assert times * 0.999 < exchanged.noise_multiplier / usual.noise_multiplier < 2.001
