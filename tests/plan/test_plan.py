"""Plans: validated whole, calibrated one-sidedly, described for others, and the source of batches."""

import itertools
import json
import math

import numpy as np
import pytest

from reticent.clipping import (
    AdaptiveClipping,
    AutomaticClipping,
    FlatClipping,
    GroupedClipping,
    PerLayerClipping,
)
from reticent.errors import AccountingError, ConfigError, DataError
from reticent.plan import LogicalBatch, Plan
from reticent.records import Budget, Mechanism, NeighbouringRelation, SamplingScheme
from reticent.sample import FullBatchSampler, PoissonSampler, SampleStream, Stage

CLIP = FlatClipping(max_norm=0.5)
BUDGET = Budget(epsilon=3.0, delta=1e-5)
PUBLIC = PoissonSampler(num_examples=60_000, expected_batch_size=4096)
SECRET = PoissonSampler(sampling_prob=0.05, expected_batch_size=500.0)
SMALL = PoissonSampler(num_examples=50, expected_batch_size=10)


def plan(**changes):
    settings = dict(sampler=SMALL, num_steps=6, noise_multiplier=1.5, clipping=CLIP, delta=1e-3, budget=None)
    return Plan(**(settings | changes))


# --- calibration ----------------------------------------------------------------------------------


def test_noise_is_solved_for():
    solved = Plan.calibrate(budget=BUDGET, sampler=PUBLIC, num_steps=600, clipping=CLIP)
    assert 2.4840 <= solved.noise_multiplier <= 2.4860
    assert 0.999 * 3.0 <= solved.epsilon().epsilon <= 3.0
    assert (solved.delta, solved.budget) == (1e-5, BUDGET)


def test_number_of_steps_is_solved_for():
    solved = Plan.calibrate(budget=BUDGET, sampler=PUBLIC, noise_multiplier=2.5, clipping=CLIP)
    longer = Plan(
        sampler=PUBLIC, num_steps=solved.num_steps + 1, noise_multiplier=2.5, clipping=CLIP, delta=1e-5
    )
    assert solved.epsilon().epsilon <= 3.0 < longer.epsilon().epsilon


def test_expected_batch_size_is_solved_for():
    solved = Plan.calibrate(
        budget=BUDGET, num_examples=60_000, num_steps=600, noise_multiplier=2.5, clipping=CLIP
    )
    assert 4096 < solved.expected_batch_size < 4150
    assert solved.sampler.num_examples == 60_000
    assert 0.999 * 3.0 <= solved.epsilon().epsilon <= 3.0


def test_only_epsilon_left_out():
    found = Plan.calibrate(delta=1e-5, sampler=PUBLIC, num_steps=600, noise_multiplier=2.5, clipping=CLIP)
    assert 2.97 < found.epsilon().epsilon < 3.0
    assert found.budget is None


GRID = list(
    itertools.product(
        (0.5, 2.0, 3.0, 8.0, 15.0),
        (1e-5, 1e-7),
        ((60_000, 600), (50_000, 4096), (1_281_167, 16_384), (2_000, 100), (1_000, 1_000)),
        (30, 1000),
    )
)


def check_inside_the_budget(target, delta, size, num_steps):
    num_examples, batch = size
    sampler = (
        FullBatchSampler(num_examples=num_examples)
        if batch == num_examples
        else PoissonSampler(num_examples=num_examples, expected_batch_size=batch)
    )
    budget = Budget(epsilon=target, delta=delta)
    solved = Plan.calibrate(budget=budget, sampler=sampler, num_steps=num_steps, clipping=CLIP)
    assert 0.999 * target <= solved.epsilon().epsilon <= target


@pytest.mark.slow
def test_no_plan_of_a_hundred_spends_more_than_its_budget():
    assert len(GRID) == 100
    for point in GRID:
        check_inside_the_budget(*point)


@pytest.mark.parametrize("point", GRID[::9], ids=str)
def test_a_plan_spends_at_most_its_budget(point):
    check_inside_the_budget(*point)


ALL = dict(sampler=SMALL, budget=Budget(epsilon=3.0, delta=1e-3), num_steps=10, noise_multiplier=3.0)


@pytest.mark.parametrize(
    ("left_out", "named"),
    [((), "none"), (("budget", "num_steps"), "num_steps, budget"), (tuple(ALL), "noise_mult")],
)
def test_exactly_one_setting_is_left_out(left_out, named):
    settings = {name: value for name, value in ALL.items() if name not in left_out}
    with pytest.raises(ConfigError, match=f"Left out: {named}") as caught:
        Plan.calibrate(clipping=CLIP, **settings)
    assert caught.value.code == "plan-unknowns"


@pytest.mark.parametrize(
    ("left_out", "extra", "message"),
    [
        ("budget", {}, "Solving for budget needs delta"),
        ("sampler", {}, "Solving for sampler needs num_examples"),
        ("num_steps", {"delta": 1e-3}, "Solving for num_steps does not take delta"),
        ("noise_multiplier", {"num_examples": 50}, "does not take num_examples"),
    ],
)
def test_a_setting_that_would_be_ignored_or_is_missing_is_an_error(left_out, extra, message):
    settings = {name: value for name, value in ALL.items() if name != left_out}
    with pytest.raises(ConfigError, match=message) as caught:
        Plan.calibrate(clipping=CLIP, **settings, **extra)
    assert caught.value.code == "plan-unknowns"


def test_an_unreachable_budget_is_refused():
    with pytest.raises(AccountingError, match="cannot be reached"):
        Plan.calibrate(
            budget=Budget(epsilon=0.01, delta=1e-9), sampler=SMALL, noise_multiplier=1.0, clipping=CLIP
        )


# --- the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sampler": "poisson"}, "sampler"),
        ({"num_steps": 0}, "num-steps"),
        ({"num_steps": 2.0}, "num-steps"),
        ({"num_steps": True}, "num-steps"),
        ({"noise_multiplier": math.nan}, "noise-multiplier"),
        ({"noise_multiplier": -1.0}, "noise-multiplier"),
        ({"clipping": 1.0}, "clipping"),
        ({"delta": 1.0}, "delta"),
        ({"budget": 3.0}, "budget"),
        ({"budget": Budget(epsilon=3.0, delta=1e-5)}, "budget"),
    ],
)
def test_a_bad_setting_is_refused(change, code):
    with pytest.raises(ConfigError) as caught:
        plan(**change)
    assert caught.value.code == code


class EveryStepTheSame(PoissonSampler):
    def draw(self, stream, step):
        return super().draw(stream, 0)


def test_a_sampler_that_may_draw_otherwise_than_is_accounted_for_is_refused():
    other = EveryStepTheSame(num_examples=50, expected_batch_size=10)
    with pytest.raises(ConfigError, match="EveryStepTheSame: only what the accountant knows") as caught:
        plan(sampler=other)
    assert caught.value.code == "sampler"
    with pytest.raises(ConfigError, match="EveryStepTheSame"):
        Stage(sampler=other, num_steps=2)


def test_all_bad_settings_are_told_at_once():
    with pytest.raises(
        ConfigError, match=r"3 settings are wrong: .*num_steps.*noise_multiplier.*delta"
    ) as caught:
        plan(num_steps=0, noise_multiplier=math.inf, delta=2.0)
    assert caught.value.code == "plan-invalid"
    with pytest.raises(ConfigError, match="2 settings are wrong"):
        Plan.calibrate(budget=3.0, sampler=SMALL, num_steps=0, clipping=CLIP)


def test_a_budget_that_the_steps_overspend_is_refused():
    with pytest.raises(ConfigError, match=r"spend epsilon .* more than the budget's 0\.5") as caught:
        plan(budget=Budget(epsilon=0.5, delta=1e-3))
    assert caught.value.code == "plan-over-budget"


def test_mechanism_relation_and_divisor_come_from_the_sampler():
    secret = plan(sampler=SECRET)
    assert secret.relation is NeighbouringRelation.ADD_OR_REMOVE
    assert plan().relation is NeighbouringRelation.ZERO_OUT
    assert plan().epsilon().neighbouring_relation is NeighbouringRelation.ZERO_OUT
    assert (plan().expected_batch_size, secret.expected_batch_size) == (10.0, 500.0)
    assert secret.mechanism == Mechanism(
        scheme=SamplingScheme.POISSON, sampling_prob=0.05, noise_multiplier=1.5
    )


@pytest.mark.parametrize("sampler", [SMALL, SECRET, FullBatchSampler(num_examples=50)])
@pytest.mark.parametrize("budget", [None, Budget(epsilon=30.0, delta=1e-3)])
def test_a_description_survives_json_and_comes_back_equal(sampler, budget):
    original = plan(sampler=sampler, budget=budget)
    assert Plan.from_dict(json.loads(json.dumps(original.describe(), allow_nan=False))) == original


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("delta"), r"missing: \['delta'\]"),
        (lambda d: d.update(epsilon=3.0), r"unknown: \['epsilon'\]"),
        (lambda d: d.update(sampler="poisson"), "sampler is a str"),
        (lambda d: d["sampler"].update(kind="shuffle"), "sampler kind 'shuffle' is not known"),
        (lambda d: d["sampler"].update(sampling_prob=0.3), "disagree"),
        (lambda d: d["clipping"].update(kind="layer"), "clipping kind 'layer' is not known"),
        (lambda d: d["clipping"].update(scale=2), r"in clipping, missing: \[\], unknown: \['scale'\]"),
        (lambda d: d.update(neighbouring_relation="add-or-remove-one"), "no bound for it"),
    ],
)
def test_a_description_that_was_changed_is_refused(damage, message):
    record = plan().describe()
    damage(record)
    with pytest.raises(ConfigError, match=message) as caught:
        Plan.from_dict(record)
    assert caught.value.code == "plan-record"


def test_a_description_with_a_bad_value_is_refused():
    with pytest.raises(ConfigError, match="num_steps must be an integer"):
        Plan.from_dict(plan().describe() | {"num_steps": 2.5})


@pytest.mark.parametrize(
    ("sampler", "text"),
    [
        (SMALL, "the N = 50"),
        (PoissonSampler(sampling_prob=0.2, expected_batch_size=10), "an expected N = 50"),
    ],
)
def test_a_delta_above_one_over_n_is_pointed_out(sampler, text):
    (warning,) = plan(sampler=sampler, delta=0.03).warnings()
    assert f"delta 0.03 is above 1/N for {text}" in warning
    assert plan(sampler=sampler, delta=0.03).describe()["notes"] == [warning]
    assert plan(sampler=sampler, delta=0.019).warnings() == ()


def test_a_plan_without_noise_says_that_it_is_not_private():
    silent = plan(noise_multiplier=0.0)
    assert silent.epsilon().epsilon == math.inf
    assert "no privacy" in silent.warnings()[0]


# --- batches --------------------------------------------------------------------------------------


def test_batches_are_one_a_step_with_the_public_divisor():
    batches = list(plan().batches(np.zeros((50, 3))))
    assert [batch.step for batch in batches] == list(range(6))
    assert {batch.expected_batch_size for batch in batches} == {10.0}
    for batch in batches:
        assert np.array_equal(batch.indices, np.unique(batch.indices))
        assert batch.indices.size == 0 or 0 <= batch.indices.min() <= batch.indices.max() < 50


def test_a_resumed_plan_goes_on_at_its_step_and_a_finished_one_has_no_batch():
    assert [batch.step for batch in plan().batches(range(50), start=4)] == [4, 5]
    assert list(plan().batches(range(50), start=6)) == []


def test_draws_are_fresh_each_time_unless_a_reproducible_stream_is_given():
    def drawn(**stream):
        return [batch.indices.tolist() for batch in plan(num_steps=20).batches(range(50), **stream)]

    assert drawn() != drawn()
    seeded = [drawn(stream=SampleStream.reproducible(3)) for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_a_full_batch_plan_hands_out_everything():
    whole = plan(sampler=FullBatchSampler(num_examples=5), num_steps=2)
    assert [batch.indices.tolist() for batch in whole.batches(range(5))] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    "dataset",
    [(np.zeros((50, 2)), np.zeros(50)), [np.zeros(50)], {"x": np.zeros(50), "y": list(range(50))}, range(50)],
)
def test_rows_are_counted_in_every_form_of_data_set(dataset):
    assert next(plan().batches(dataset)).dataset is dataset


def test_a_data_set_of_another_size_is_refused_before_any_draw():
    with pytest.raises(ConfigError, match=r"declares N = 50 .* holds 51") as caught:
        plan().batches(range(51))
    assert caught.value.code == "data-size"


@pytest.mark.parametrize("size", [1, 50, 51])
def test_a_secret_number_of_examples_is_not_compared_with_anything(size):
    batch = next(plan(sampler=SECRET).batches(range(size)))
    assert batch.expected_batch_size == 500.0


@pytest.mark.parametrize("dataset", [[], (), {}, np.zeros((0, 3)), (np.zeros(0), np.zeros(0))])
@pytest.mark.parametrize("sampler", [SMALL, SECRET])
def test_an_empty_data_set_is_refused(dataset, sampler):
    with pytest.raises(DataError, match="The data set is empty") as caught:
        plan(sampler=sampler).batches(dataset)
    assert caught.value.code == "data-empty"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter(range(50)), "has no length"),
        ((np.zeros(50), np.zeros(49)), r"different lengths: \[49, 50\]"),
        (type("ImageDataset", (list,), {"__module__": "timm.data.dataset"})(range(50)), "would count twice"),
        (type("DataLoader", (list,), {})(range(50)), r"DataLoader hands out batches .* its `\.dataset`"),
    ],
)
def test_a_data_set_whose_rows_cannot_be_counted_is_refused(dataset, message):
    with pytest.raises(DataError, match=message) as caught:
        plan().batches(dataset)
    assert caught.value.code == "data-rows"


@pytest.mark.parametrize("start", [-1, 7, 1.0, True])
def test_a_start_outside_the_plan_is_refused(start):
    with pytest.raises(ConfigError, match="start must be an integer from 0 to num_steps = 6") as caught:
        plan().batches(range(50), start=start)
    assert caught.value.code == "start-step"


def test_a_batch_shows_neither_its_rows_nor_how_many():
    batch = next(plan(sampler=SECRET).batches([7, 8, 9] * 100))
    assert isinstance(batch, LogicalBatch)
    assert repr(batch) == "LogicalBatch(step=0, expected_batch_size=500.0)"


# -- every kind of clipping ---------------------------------------------------------------------------

KINDS = [
    FlatClipping(max_norm=0.3),
    AutomaticClipping(max_norm=2.0, stability=1e-4),
    PerLayerClipping(max_norm=0.3, split="size"),
    GroupedClipping(max_norms=(("head.*", 0.3), ("*", 0.4))),
    AdaptiveClipping(initial_max_norm=0.3, count_noise_multiplier=8.0, per_layer=True),
    AdaptiveClipping(initial_max_norm=0.3),
]


@pytest.mark.parametrize("clipping", KINDS, ids=repr)
def test_a_plan_of_every_clipping_comes_back_from_its_description(clipping):
    original = plan(clipping=clipping)
    described = json.loads(json.dumps(original.describe(), allow_nan=False))
    assert Plan.from_dict(described) == original
    assert original.epsilon() == plan().epsilon()  # the clipping does not change what is accounted
    share = 1.0 if original.count_noise_multiplier is None else original.gradient_noise_multiplier
    bound = {GroupedClipping: 0.5, AutomaticClipping: 2.0}.get(type(clipping), 0.3)
    noise = original.noise_multiplier if share == 1.0 else share
    assert described["noise_std"] == pytest.approx(noise * bound)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "flatt", "max_norm": 1.0}, "kind 'flatt' is not known; flat, automatic, per-layer"),
        ({"kind": ["flat"], "max_norm": 1.0}, "is not known"),
        ({"max_norm": 1.0}, "no object with a kind"),
        ("flat", "no object with a kind"),
        ({"kind": "automatic", "max_norm": 1.0}, r"missing: \['stability'\]"),
        ({"kind": "flat", "max_norm": 1.0, "split": "equal"}, r"unknown: \['split'\]"),
        ({"kind": "grouped", "max_norms": [["*"]]}, "max_norms must be a tuple"),
        ({"kind": "per-layer", "max_norm": 1.0, "split": "half"}, "split must be"),
    ],
)
def test_a_clipping_that_no_plan_wrote_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        Plan.from_dict(plan().describe() | {"clipping": changed})


def test_the_counts_share_of_the_noise_is_checked_against_what_was_solved_for():
    settings = {name: value for name, value in ALL.items() if name != "noise_multiplier"}
    free = Plan.calibrate(clipping=AdaptiveClipping(initial_max_norm=1.0), **settings)
    assert free.count_noise_multiplier == pytest.approx(10 * free.noise_multiplier)
    assert free.gradient_noise_multiplier > free.noise_multiplier
    too_little = AdaptiveClipping(initial_max_norm=1.0, count_noise_multiplier=0.99 * free.noise_multiplier)
    with pytest.raises(ConfigError, match="must be above the plan's noise multiplier") as caught:
        Plan.calibrate(clipping=too_little, **settings)
    assert caught.value.code == "count-noise"


def test_a_count_that_drowns_in_its_noise_is_warned_about():
    clipping = AdaptiveClipping(initial_max_norm=1.0)  # 15 of noise on a sensitivity of 1/2, 10 units a step
    (warning,) = plan(clipping=clipping).warnings()
    assert "standard deviation 0.75 in every step" in warning
    assert plan(clipping=AdaptiveClipping(initial_max_norm=1.0, count_noise_multiplier=9.0)).warnings() == ()
