"""`--set sampler=...`: the plan draws as asked, states what has a bound, and refuses idle settings."""

import pytest

from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.recipes import plan_of, request
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
