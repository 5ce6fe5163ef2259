"""`--set sampler=...`: the plan draws as asked, states what has a bound, and refuses idle settings."""

import pytest

from reticent.errors import AuditError, ConfigError
from reticent.plan import Plan
from reticent.recipes import audit_recipe, describe, plan_of, request, simulation
from reticent.records import NeighbouringRelation

LOOSE = ["epsilon=1000", "noise_multiplier=3", "num_steps=10"]


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        (["sampler=poisson", "expected_batch_size=100"], 100),
        (["sampler=truncated-poisson", "max_batch_size=120", "expected_batch_size=100"], 100),
        (["sampler=fixed-size", "expected_batch_size=100"], 100),
        (["sampler=cyclic", "expected_batch_size=100"], pytest.approx(100, rel=0.05)),
        (["sampler=shuffled", "expected_batch_size=100"], pytest.approx(100, rel=0.05)),
        (["sampler=balls-in-bins", "expected_batch_size=100"], pytest.approx(100, rel=0.05)),
        (["sampler=full-batch"], None),
    ],
)
def test_a_recipe_draws_as_asked(settings, batch):
    plan = plan_of(request("digits", [*LOOSE, *settings]))
    kind = settings[0].removeprefix("sampler=")
    assert plan.sampler.scheme == kind
    assert plan.expected_batch_size == (plan.sampler.num_examples if batch is None else batch)
    replaced = plan.relation is NeighbouringRelation.REPLACE_ONE
    assert replaced == (kind == "fixed-size")
    assert Plan.from_dict(plan.describe()) == plan


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["sampler=truncated-poisson"], "max_batch_size"),
        (["max_batch_size=9"], "max_batch_size"),
        (["sampler=full-batch", "expected_batch_size=9"], "would be ignored"),
        (["sampler=sorted"], "sampler"),
    ],
)
def test_settings_of_another_sampler_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        request("digits", settings)


def test_a_fixed_size_that_is_no_integer_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be an integer"):
        plan_of(request("digits", [*LOOSE, "sampler=fixed-size", "expected_batch_size=10.5"]))


# -- a batch size that changes ----------------------------------------------------------------------------


def test_a_schedule_is_relative_to_the_steps_and_its_mean_is_the_batch_size():
    asked = request("digits", [*LOOSE, "batch_schedule=0.0:50,0.4:100"])
    plan = plan_of(asked)
    assert [(kind.num_steps, kind.expected_batch_size) for kind in plan.steps] == [(4, 50), (6, 100)]
    assert asked.config.expected_batch_size == plan.mean_batch_size == 80
    said = describe(asked)
    assert [stage["sampling_prob"] for stage in said["stages"]] == [50 / 1437, 100 / 1437]
    assert said["expected_batch_size"] == 80
    assert Plan.from_dict(plan.describe()) == plan


def test_a_schedule_is_solved_for_the_noise_inside_the_budget():
    plan = plan_of(request("digits", ["batch_schedule=0:64,0.5:128", "num_steps=20", "epsilon=2"]))
    assert 0.999 * 2.0 <= plan.epsilon().epsilon <= 2.0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["batch_schedule=0.0:50,0.4:100", "expected_batch_size=50"], "would be ignored"),
        (["batch_schedule=0.0:50,0.4:100", "sampler=shuffled"], "sampler = poisson"),
        (["batch_schedule=0.0:50,0.4:100", "sampler=full-batch"], "sampler = poisson"),
        (["batch_schedule=0.2:50,0.4:100"], "shares grow from 0.0"),
        (["batch_schedule=64"], "string"),
    ],
)
def test_a_schedule_that_would_not_be_kept_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        request("digits", settings)


def test_a_stage_without_a_step_or_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="batch-schedule"):
        plan_of(request("digits", [*LOOSE, "batch_schedule=0.0:50,0.99:100"]))
    with pytest.raises(ConfigError, match="expected-batch-size"):
        plan_of(request("digits", [*LOOSE, "batch_schedule=0.0:50,0.5:100000"]))


def test_what_looks_at_one_kind_of_step_refuses_a_schedule():
    asked = request("digits", [*LOOSE, "batch_schedule=0.0:50,0.4:100"])
    with pytest.raises(AuditError, match="audit-recipe"):
        audit_recipe(asked)
    with pytest.raises(ConfigError, match="simulation"):
        simulation(asked, batch_size=5)
