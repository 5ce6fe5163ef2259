"""Plans whose batch size changes: every step draws by its own stage, and nothing speaks for all of them."""

import json
import math

import numpy as np
import pytest

from reticent.clipping import AdaptiveClipping, FlatClipping
from reticent.errors import ConfigError
from reticent.plan import Plan, Stage, StagedSampler
from reticent.records import Budget, NeighbouringRelation
from reticent.sample import (
    FixedSizeSampler,
    FullBatchSampler,
    PoissonSampler,
    SampleStream,
    read_batch_schedule,
)

CLIP = FlatClipping(max_norm=1.0)
N = 4000


def poisson(size, num_examples=N):
    return PoissonSampler(num_examples=num_examples, expected_batch_size=size)


STAGES = StagedSampler(
    stages=(
        Stage(sampler=poisson(100), num_steps=3),
        Stage(sampler=poisson(1000), num_steps=2, noise_scale=1.5),
        Stage(sampler=FullBatchSampler(num_examples=N), num_steps=1, noise_scale=4.0),
    )
)


def plan(**changes):
    settings = dict(sampler=STAGES, num_steps=6, noise_multiplier=2.0, clipping=CLIP, delta=1e-5)
    return Plan(**(settings | changes))


# -- what a step is -----------------------------------------------------------------------------------


def test_each_step_has_the_rate_divisor_and_noise_of_its_stage():
    found = [plan().at(t) for t in range(6)]
    assert [step.expected_batch_size for step in found] == [100, 100, 100, 1000, 1000, N]
    assert [step.mechanism.sampling_prob for step in found] == [0.025] * 3 + [0.25] * 2 + [1.0]
    assert [step.mechanism.noise_multiplier for step in found] == [2.0] * 3 + [3.0] * 2 + [8.0]
    for outside in (-1, 6):
        with pytest.raises(ConfigError, match="start-step"):
            plan().at(outside)


def test_segments_are_the_steps_in_order_from_the_first_on():
    kinds = [plan().at(t).mechanism for t in (0, 3, 5)]
    assert plan().segments() == tuple(zip(kinds, (3, 2, 1), strict=True))
    assert plan().segments(0) == ()
    assert plan().segments(4) == ((kinds[0], 3), (kinds[1], 1))


@pytest.mark.parametrize(
    "name", ["mechanism", "expected_batch_size", "gradient_noise_multiplier", "count_noise_multiplier"]
)
def test_what_only_equal_steps_have_is_refused(name):
    with pytest.raises(ConfigError, match="steps-differ"):
        getattr(plan(), name)


def test_mean_and_largest_batch():
    assert plan().mean_batch_size == (3 * 100 + 2 * 1000 + N) / 6
    assert plan().largest_batch_size == N
    assert plan(sampler=poisson(64)).mean_batch_size == plan(sampler=poisson(64)).largest_batch_size == 64


def test_one_count_of_adaptive_clipping_is_split_off_in_each_stage():
    clipping = AdaptiveClipping(initial_max_norm=1.0, target_quantile=0.5, count_noise_multiplier=40.0)
    steps = plan(clipping=clipping).steps
    for step, sigma in zip(steps, (2.0, 3.0, 8.0), strict=True):
        together = step.gradient_noise_multiplier**-2 + step.count_noise_multiplier**-2
        assert together**-0.5 == pytest.approx(sigma, rel=1e-9)
        assert step.mechanism.noise_multiplier == sigma


# -- draws: an attack on how often each example takes part -------------------------------------------------


def sizes_drawn(a_plan, *, start=0):
    return [len(batch.indices) for batch in a_plan.batches(np.zeros(N), start=start)]


def require_rates(sizes, rates):
    """Counts within 6 standard deviations of Binomial(N, q): false alarm below 1e-8, wrong stage certain."""
    for size, q in zip(sizes, rates, strict=True):
        assert abs(size - N * q) <= 6.0 * math.sqrt(N * q * (1.0 - q)), (size, q)


RATES = [0.025] * 3 + [0.25] * 2 + [1.0]


def test_each_step_draws_with_the_probability_of_its_own_stage():
    require_rates(sizes_drawn(plan()), RATES)
    for start in range(1, 6):  # a run that goes on in the middle of a stage
        require_rates(sizes_drawn(plan(), start=start), RATES[start:])


@pytest.mark.parametrize("off", [-1, 1])
def test_the_attack_sees_a_border_that_is_one_step_off(monkeypatch, off):
    right = Plan.at
    monkeypatch.setattr(Plan, "at", lambda self, step: right(self, min(max(step + off, 0), 5)))
    with pytest.raises(AssertionError):
        require_rates(sizes_drawn(plan()), RATES)


def test_each_example_is_drawn_alike_and_independently_of_the_stage_before():
    small = StagedSampler(
        stages=(
            Stage(sampler=poisson(20, 40), num_steps=400),
            Stage(sampler=poisson(8, 40), num_steps=400),
        )
    )
    a_plan = plan(sampler=small, num_steps=800)
    seen = np.zeros((800, 40))
    for batch in a_plan.batches(np.zeros(40)):
        seen[batch.step, batch.indices] = 1.0
    for steps, q in ((seen[:400], 0.5), (seen[400:], 0.2)):
        spread = math.sqrt(q * (1 - q) / 400)
        assert abs(steps.mean(0) - q).max() < 5.5 * spread  # of 40 examples
        assert abs((steps[1:] * steps[:-1]).mean() - q * q) < 5.0 * math.sqrt(q * q / (399 * 40))


def test_batches_say_their_own_divisor_and_sampler():
    for batch in plan().batches(np.zeros(N)):
        step = plan().at(batch.step)
        assert (batch.expected_batch_size, batch.sampler) == (step.expected_batch_size, step.sampler)


def test_a_reproducible_stream_is_marked_and_a_wrong_size_is_refused():
    stream = SampleStream.reproducible(3)
    assert not any(batch.private for batch in plan().batches(np.zeros(N), stream=stream))
    with pytest.raises(ConfigError, match="data-size"):
        plan().batches(np.zeros(N + 1))


# -- calibration -------------------------------------------------------------------------------------------


def test_one_noise_is_solved_for_all_stages():
    budget = Budget(epsilon=3.0, delta=1e-5)
    found = Plan.calibrate(budget=budget, sampler=STAGES, clipping=CLIP)
    assert found.num_steps == 6
    assert 0.999 * 3.0 <= found.epsilon().epsilon <= 3.0
    assert Plan.calibrate(budget=budget, sampler=STAGES, num_steps=6, clipping=CLIP) == found
    assert float(f"{found.noise_multiplier:.6g}") == found.noise_multiplier


def test_a_plan_of_stages_over_its_budget_is_refused():
    with pytest.raises(ConfigError, match="plan-over-budget"):
        plan(budget=Budget(epsilon=0.1, delta=1e-5))


def test_stages_say_how_many_steps_there_are():
    with pytest.raises(ConfigError, match="num-steps"):
        plan(num_steps=7)
    with pytest.raises(ConfigError, match="plan-unknowns"):
        Plan.calibrate(
            budget=Budget(epsilon=3.0, delta=1e-5),
            sampler=STAGES,
            noise_multiplier=2.0,
            num_steps=6,
            clipping=CLIP,
        )


def test_the_relation_is_that_of_the_stages():
    assert plan().relation is NeighbouringRelation.ZERO_OUT
    secret = StagedSampler(
        stages=tuple(
            Stage(sampler=PoissonSampler(sampling_prob=q, expected_batch_size=50), num_steps=2)
            for q in (0.01, 0.02)
        )
    )
    assert plan(sampler=secret, num_steps=4).relation is NeighbouringRelation.ADD_OR_REMOVE
    replaced = plan(neighbours=NeighbouringRelation.REPLACE_ONE)
    assert replaced.epsilon().epsilon > 1.5 * plan().epsilon().epsilon


# -- the record --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clipping",
    [CLIP, AdaptiveClipping(initial_max_norm=1.0, target_quantile=0.5, count_noise_multiplier=40.0)],
)
def test_a_record_is_read_back_as_it_was(clipping):
    written = json.loads(json.dumps(plan(clipping=clipping).describe()))
    assert Plan.from_dict(written) == plan(clipping=clipping)


@pytest.mark.parametrize(
    "edit",
    [
        lambda sampler: sampler.update(num_examples=5),
        lambda sampler: sampler.update(stages="all"),
        lambda sampler: sampler.update(more=1),
        lambda sampler: sampler["stages"][0].pop("noise_scale"),
        lambda sampler: sampler["stages"][0]["sampler"].update(sampling_prob=0.5),
        lambda sampler: sampler["stages"][0].update(sampler=None),
        lambda sampler: sampler["stages"][0].update(sampler=sampler),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(edit):
    written = plan().describe()
    edit(written["sampler"])
    with pytest.raises(ConfigError, match="plan-record"):
        Plan.from_dict(written)


# -- what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stage(sampler=FixedSizeSampler(num_examples=N, batch_size=10), num_steps=1),
        lambda: Stage(sampler=STAGES, num_steps=1),
        lambda: Stage(sampler=poisson(10), num_steps=0),
        lambda: Stage(sampler=poisson(10), num_steps=True),
        lambda: Stage(sampler=poisson(10), num_steps=1, noise_scale=0.0),
        lambda: Stage(sampler=poisson(10), num_steps=1, noise_scale=math.nan),
        lambda: StagedSampler(stages=()),
        lambda: StagedSampler(stages=(poisson(10),)),
        lambda: StagedSampler(stages=(STAGES.stages[0], STAGES.stages[0])),
        lambda: StagedSampler(stages=(STAGES.stages[0], Stage(sampler=poisson(10, 50), num_steps=1))),
        lambda: StagedSampler.from_schedule(((0.0, 1.0), (0.5, 2.0)), num_examples=N, num_steps=1),
    ],
)
def test_stages_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigError, match="batch-schedule"):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "", "0.0:64", "0.5:64", "0.0:64,0.0:32", "0.0:64,1.0:32", "0.0:64,0.5", "0.0:64,0.5:64",
        "0.0:64,0.5:inf", "0.0:64,0.5:-1", "0.0:64,0.7:32,0.5:16", "0.0:64,nan:32", "0.0:nan,0.5:32",
        "0.1:64,0.5:32", "a:b",
    ],
)  # fmt: skip
def test_a_schedule_that_says_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="batch-schedule"):
        read_batch_schedule(text)


def test_a_schedule_is_relative_to_the_number_of_steps():
    schedule = read_batch_schedule("0.0:1024, 0.25:512,0.5:2048")
    assert schedule == ((0.0, 1024.0), (0.25, 512.0), (0.5, 2048.0))
    staged = StagedSampler.from_schedule(schedule, num_examples=N, num_steps=1000)
    assert [(s.num_steps, s.sampler.expected_batch_size) for s in staged.stages] == [
        (250, 1024.0), (250, 512.0), (500, 2048.0),
    ]  # fmt: skip
