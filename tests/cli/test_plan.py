"""`reticent plan`: solves for what was left out, and warns before it is too late."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.recipes import plan_of, request

FASHION = "--delta 1e-5 --num-examples 60000"


def run(line):
    return CliRunner().invoke(main, ["plan", *line.split()])


def numbers(line):
    result = run(line + " --json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(line):
    result = run(line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize(
    ("line", "name", "low", "high"),
    [
        ("--epsilon 3 --expected-batch-size 4096 --num-steps 600", "noise_multiplier", 2.484, 2.486),
        ("--epsilon 3 --expected-batch-size 4096 --noise-multiplier 2.5", "num_steps", 605, 612),
        ("--epsilon 3 --num-steps 600 --noise-multiplier 2.5", "expected_batch_size", 4100, 4150),
        ("--expected-batch-size 4096 --num-steps 600 --noise-multiplier 2.5", "epsilon", 2.97, 2.999),
    ],
)
def test_the_setting_left_out_is_solved_for(line, name, low, high):
    found = numbers(f"{FASHION} {line}")
    assert low <= found[name] <= high
    assert 0.97 * 3 <= found["epsilon"] <= 3.0
    assert found["epsilon"] <= found["epsilon_rdp"]
    assert (found["delta"], found["neighbouring_relation"]) == (1e-5, "zero-out-one")
    assert found["warnings"] == []


def test_signal_and_cost_are_told():
    found = numbers(
        f"{FASHION} --expected-batch-size 6000 --num-steps 100 --noise-multiplier 2 --max-norm 0.5"
    )
    assert found["noise_std"] == 1.0
    assert found["noise_std_of_mean"] == 1.0 / 6000
    assert found["example_gradients"] == 600_000
    assert found["epochs"] == pytest.approx(10)


def test_a_sampling_probability_alone_keeps_the_number_of_examples_secret():
    found = numbers("--epsilon 3 --delta 1e-5 --sampling-prob 0.01 --num-steps 1000")
    assert 0.81 < found["noise_multiplier"] < 0.82
    assert found["neighbouring_relation"] == "add-or-remove-one"
    assert (found["num_examples"], found["expected_batch_size"]) == (None, None)
    known = numbers(
        "--epsilon 3 --delta 1e-5 --sampling-prob 0.01 --num-steps 1000 --expected-batch-size 600"
    )
    assert known["noise_multiplier"] == found["noise_multiplier"]
    assert known["example_gradients"] == 600_000


def test_full_batch_plans_use_the_exact_curve():
    found = numbers("--epsilon 8 --delta 1e-5 --sampler full-batch --num-examples 1437 --num-steps 1")
    assert 0.60022 <= found["noise_multiplier"] <= 0.6004
    assert (found["sampling_prob"], found["expected_batch_size"]) == (1.0, 1437.0)


@pytest.mark.parametrize(
    ("sampler", "relation", "least", "most"),
    [
        ("fixed-size", "replace-one", 1.58, 1.59),
        ("truncated-poisson --max-batch-size 700", "zero-out-one", 0.69, 0.70),
        ("shuffled", "zero-out-one", 1.96, 1.97),  # two epochs are two Gaussian steps
    ],
)
def test_each_sampler_can_be_planned(sampler, relation, least, most):
    found = numbers(
        f"--epsilon 3 --delta 1e-5 --num-examples 60000 --expected-batch-size 600 --num-steps 200 "
        f"--sampler {sampler}"
    )
    assert found["neighbouring_relation"] == relation
    assert least < found["noise_multiplier"] < most
    assert 2.99 < found["epsilon"] <= 3.0


def test_a_table_states_epsilon_relation_and_public_size():
    output = run(f"{FASHION} --epsilon 3 --expected-batch-size 4096 --num-steps 600").stdout
    for text in ("zero-out-one", "60000 (public)", "epsilon by RDP", "example gradients", "1e-05"):
        assert text in output


def test_a_delta_above_one_over_n_is_warned_about_on_standard_error():
    line = "--epsilon 3 --delta 0.01 --num-examples 600 --expected-batch-size 60 --num-steps 10 --json"
    result = run(line)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: delta 0.01 is above 1/N for the N = 600 examples")
    assert json.loads(result.stdout)["warnings"] != []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{FASHION} --num-steps 10", "Left out: --epsilon, --noise-multiplier, --expected-batch-size."),
        (
            f"{FASHION} --epsilon 1 --num-steps 9 --noise-multiplier 1 --expected-batch-size 5",
            "Left out: none.",
        ),
        ("--epsilon 1 --delta 1e-5 --num-steps 10", "Give either --num-examples"),
        (f"{FASHION} --sampling-prob 0.1 --epsilon 1 --num-steps 10", "Give either --num-examples"),
        (
            "--epsilon 1 --delta 1e-5 --sampler full-batch --num-steps 10",
            "full-batch batches take --num-examples",
        ),
        (
            f"{FASHION} --epsilon -1 --expected-batch-size 10 --num-steps 10",
            "epsilon must be a finite number > 0",
        ),
        (
            f"{FASHION} --epsilon nan --expected-batch-size 10 --num-steps 10",
            "epsilon must be a finite number > 0",
        ),
        (f"{FASHION} --epsilon 1 --expected-batch-size 70000 --num-steps 10", "is more than num_examples"),
        (
            f"{FASHION} --epsilon 1 --expected-batch-size 10 --num-steps 0",
            "num_steps must be an integer from 1",
        ),
        (f"{FASHION} --epsilon 1e-9 --expected-batch-size 60000 --num-steps 100000", "cannot be reached"),
    ],
)
def test_bad_input_is_one_line_and_status_2(line, message):
    assert message in refused(line)


def test_all_problems_are_told_at_once():
    message = refused(
        "--epsilon -1 --delta 2 --max-norm 0 --num-examples 0 --expected-batch-size 1 --num-steps 3"
    )
    assert "4 settings are wrong" in message
    for name in ("epsilon", "delta", "max_norm", "num_examples"):
        assert f"{name} must be" in message


@pytest.mark.parametrize("recipe", ["digits", "fashion-mnist"])
def test_a_recipes_plan_has_the_contracts_fields_and_its_cost(recipe):
    asked = request(recipe, [])
    found = numbers(recipe)
    config = asked.config
    assert (found["recipe"], found["private"]) == (recipe, True)
    assert (found["num_steps"], found["expected_batch_size"]) == (
        config.num_steps,
        config.expected_batch_size,
    )
    assert found["updates"] == config.num_steps
    assert found["example_gradients"] == config.num_steps * config.expected_batch_size
    assert 0 < found["epsilon"] <= config.epsilon
    assert found["noise_multiplier"] == plan_of(asked).noise_multiplier
    memory = found["memory"]
    parts = ("parameters", "clipped_sums", "optimizer_state", "averages")
    assert memory["total"] == sum(memory[name] for name in parts) + max(
        memory["noise"], memory["activations"]
    )


def test_the_memory_of_a_step_is_what_its_tensors_take():
    small, large = (
        numbers(f"digits --set model=logistic --set physical_batch_size={rows} --set optimizer=adam")[
            "memory"
        ]
        for rows in (32, 256)
    )
    weights = 4 * (64 * 10 + 10)
    assert small["parameters"] == small["clipped_sums"] == small["averages"] == weights
    assert small["optimizer_state"] == 2 * weights + 2 * 4  # two moments, and a step count each
    assert 32 * 10 * 4 < small["activations"] < large["activations"]
    assert 4 < large["activations"] / small["activations"] < 16
    assert {**small, "activations": 0, "total": 0} == {**large, "activations": 0, "total": 0}


def test_settings_and_options_change_a_recipes_plan():
    found = numbers("digits --epsilon 1 --set num_steps=30 --max-norm 0.5")
    assert (found["epsilon_budget"], found["num_steps"], found["max_norm"]) == (1.0, 30, 0.5)
    assert numbers("digits --set epsilon=inf")["epsilon"] is None
    seeded = numbers("digits --set noise_seed=1")
    assert (seeded["private"], seeded["epsilon"], seeded["epsilon_rdp"]) == (False, None, None)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("digits --noise-multiplier 1", "plan-recipe"),
        ("digits --sampling-prob 0.1 --sampler poisson", "--sampling-prob, --sampler"),
        ("--set epsilon=1 --delta 1e-5", "plan-recipe"),
        ("digist", "Did you mean 'digits'?"),
        ("digits --set epsilom=1", "Did you mean 'epsilon'?"),
        ("digits --epsilon -1", "epsilon: input should be greater than 0"),
        ("--epsilon 3", "Missing option '--delta'"),
    ],
)
def test_a_recipe_and_its_options_are_checked(line, text):
    assert text in refused(line)


def test_a_recipes_plan_reads_no_data_and_shows_its_memory(monkeypatch):
    monkeypatch.setattr("reticent.recipes._arrays.load", None)
    shown = run("digits").stdout
    for text in ("recipe", "updates", "memory of a step", "activations", "MiB"):
        assert text in shown


def test_without_a_recipe_torch_stays_out():
    program = """
import sys
from reticent.cli import main
line = "plan --delta 1e-5 --num-examples 100 --expected-batch-size 10 --num-steps 5 --noise-multiplier 2"
main(line.split(), standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0


def test_a_recipes_clipping_is_shown_with_the_noises_shares():
    line = "digits --set clipping=adaptive --set num_steps=30 --set max_norm=0.25"
    shown = " ".join(run(line).stdout.split())
    for text in ("adaptive: initial_max_norm 0.25", "on the gradient", "on the count"):
        assert text in shown
    found = numbers(line)
    assert found["clipping"]["kind"] == "adaptive"
    assert found["max_norm"] == 0.25
    assert found["noise_std"] == found["gradient_noise_multiplier"] * 0.25 > found["noise_multiplier"] * 0.25


# -- a batch size that changes ----------------------------------------------------------------------------


def test_a_schedule_is_planned_and_its_stages_are_shown():
    line = f"{FASHION} --epsilon 3 --num-steps 100 --batch-schedule 0.0:600,0.5:1200"
    found = numbers(line)
    assert 0.999 * 3 <= found["epsilon"] <= 3
    assert [(s["num_steps"], s["sampling_prob"]) for s in found["stages"]] == [(50, 0.01), (50, 0.02)]
    assert (found["expected_batch_size"], found["example_gradients"]) == (900, 90_000)
    assert found["noise_std_of_mean"] == [found["noise_multiplier"] / b for b in (600, 1200)]
    assert found["epochs"] == pytest.approx(1.5)
    told = " ".join(run(line).stdout.split())
    assert "steps 0 to 49" in told and "steps 50 to 99" in told


@pytest.mark.parametrize(
    "more",
    ["--expected-batch-size 9", "--sampler full-batch", "--max-batch-size 9", "--sampling-prob 0.1"],
)
def test_a_schedule_beside_another_size_is_refused(more):
    assert "leave out" in refused(f"{FASHION} --epsilon 3 --num-steps 9 --batch-schedule 0:6,0.5:9 {more}")


def test_a_schedule_needs_steps_and_examples():
    assert "--num-steps" in refused(f"{FASHION} --epsilon 3 --noise-multiplier 2 --batch-schedule 0:6,0.5:9")
    assert "one of" in refused(f"{FASHION} --num-steps 9 --batch-schedule 0:6,0.5:9")


def test_the_batches_of_a_recipe_can_be_scheduled():
    settings = "--set noise_multiplier=4 --epsilon 50 --num-steps 10"
    found = numbers(f"digits --batch-schedule 0:64,0.5:128 {settings}")
    assert [stage["expected_batch_size"] for stage in found["stages"]] == [64, 128]
    assert found["expected_batch_size"] == 96
