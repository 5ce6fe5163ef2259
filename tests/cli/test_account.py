"""`reticent account`: the accountant's numbers, from options and from ledgers."""

import json
import math

import pytest
from click.testing import CliRunner

from reticent.account import RandomTrials, TrialsDistribution, choice_epsilon, epsilon
from reticent.account.ledger import Ledger
from reticent.cli import main
from reticent.records import Mechanism, NeighbouringRelation, SamplingScheme
from tests.report.runs import make_run

STEP = Mechanism(scheme=SamplingScheme.FULL_BATCH, sampling_prob=1.0, noise_multiplier=20.0)


def run(line, *more):
    return CliRunner().invoke(main, ["account", *line.split(), *map(str, more)])


def numbers(line, *more):
    result = run(line, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    return json.loads(result.stdout)


def refused(line, *more):
    result = run(line, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def make_ledger(folder, *, steps=5, reproducible=False, lost=0, run_id="a run"):
    folder.mkdir()
    with Ledger.create(
        folder / "ledger.jsonl",
        run_id=run_id,
        relation=NeighbouringRelation.ZERO_OUT,
        delta=1e-5,
        num_steps=10,
        reproducible=reproducible,
        public={"max_norm": 1.0},
    ) as ledger:
        for _ in range(steps):
            ledger.append_step(STEP)
        if lost:
            ledger.append_resume(checkpoint_step=steps - lost)
    return folder


def test_numbers_are_those_of_the_accountant():
    found = numbers(
        "--sampler poisson --sampling-prob 0.08192 --noise-multiplier 3 --num-steps 2000 --delta 1e-5"
    )
    assert 5.7742721 <= found["epsilon"] <= 5.7753
    assert found["epsilon_rdp"] == pytest.approx(6.239059, abs=1e-5)
    assert (found["delta"], found["num_steps"], found["private"]) == (1e-5, 2000, True)
    assert found["neighbouring_relation"] == "add-or-remove-one"
    assert found["accountant"].startswith("PLD (dp-accounting ")


def test_full_batch_needs_no_sampling_probability():
    found = numbers("--sampler full-batch --noise-multiplier 10 --num-steps 1 --delta 8e-7")
    assert found["epsilon"] == pytest.approx(0.4019553711, abs=1e-9)
    assert found["accountant"].startswith("exact Gaussian")


@pytest.mark.parametrize("sampler", ["fixed-size", "truncated-poisson --max-batch-size 20", "cyclic"])
def test_numbers_of_each_sampler_are_those_of_its_plan(sampler):
    drawn = f"--sampler {sampler} --num-examples 300 --expected-batch-size 15 --num-steps 40 --delta 1e-4"
    found = numbers(f"{drawn} --noise-multiplier 2")
    planned = CliRunner().invoke(main, ["plan", "--noise-multiplier", "2", "--json", *drawn.split()])
    assert found["epsilon"] == json.loads(planned.stdout)["epsilon"] > 0
    assert found["neighbouring_relation"] == json.loads(planned.stdout)["neighbouring_relation"]


def test_no_noise_is_null_because_json_has_no_infinity():
    found = numbers("--sampler full-batch --noise-multiplier 0 --num-steps 1 --delta 8e-7")
    assert (found["epsilon"], found["epsilon_rdp"], found["private"]) == (None, None, False)


def test_no_steps_spend_nothing():
    assert numbers("--sampler full-batch --noise-multiplier 1 --num-steps 0 --delta 1e-5")["epsilon"] == 0.0


def test_table_states_relation_and_delta_and_never_rounds_epsilon_down():
    result = run("--sampler poisson --sampling-prob 0.01 --noise-multiplier 1 --num-steps 1000 --delta 1e-5")
    assert result.exit_code == 0
    assert "add-or-remove-one" in result.stdout
    assert "1e-05" in result.stdout
    shown = float(next(line for line in result.stdout.splitlines() if " epsilon  " in line).split()[1])
    step = Mechanism(scheme=SamplingScheme.POISSON, sampling_prob=0.01, noise_multiplier=1.0)
    exact = epsilon([(step, 1000)], delta=1e-5).epsilon
    assert exact <= shown <= exact + 1e-3


def test_epsilon_of_a_run_is_that_of_its_ledger(tmp_path):
    folder = make_ledger(tmp_path / "run")
    expected = epsilon([(STEP, 5)], delta=1e-5, relation=NeighbouringRelation.ZERO_OUT)
    for place in (folder, folder / "ledger.jsonl"):
        found = numbers("", place)
        assert found["epsilon"] == expected.epsilon
        assert (found["num_steps"], found["planned_steps"]) == (5, 10)
        assert found["neighbouring_relation"] == "zero-out-one"
    assert "a run" in found["run_id"]
    assert "noise_multiplier 20.0" in run("", folder).stdout


def test_lost_steps_stay_spent_and_are_told(tmp_path):
    found = numbers("", make_ledger(tmp_path / "run", lost=2))
    assert (found["num_steps"], found["num_lost"]) == (5, 2)
    assert "2 steps were lost" in found["notes"][-1]


def test_a_ledger_can_be_stated_at_another_delta(tmp_path):
    found = numbers("--delta 1e-7", make_ledger(tmp_path / "run"))
    assert found["epsilon"] == epsilon([(STEP, 5)], delta=1e-7).epsilon
    assert found["delta"] == 1e-7


def test_a_reproducible_run_has_no_epsilon(tmp_path):
    folder = make_ledger(tmp_path / "run", reproducible=True)
    found = numbers("", folder)
    assert (found["epsilon"], found["epsilon_rdp"], found["private"]) == (None, None, False)
    assert "no privacy" in run("", folder).stdout


def test_a_damaged_or_missing_ledger_is_refused(tmp_path):
    assert "There is no ledger at" in refused("", tmp_path / "nowhere")
    folder = make_ledger(tmp_path / "run")
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text().replace("20.0", "30.0"))
    assert "ledger" in refused("", folder)


GOOD = {"sampler": "poisson", "sampling-prob": 0.1, "noise-multiplier": 1.0, "num-steps": 10, "delta": 1e-5}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("sampling-prob", math.nan, "sampling-prob"),
        ("sampling-prob", 0.0, "sampling-prob"),
        ("sampling-prob", 1.5, "sampling-prob"),
        ("noise-multiplier", "nan", "noise-multiplier"),
        ("noise-multiplier", -1, "noise-multiplier"),
        ("noise-multiplier", "inf", "noise-multiplier"),
        ("num-steps", -1, "num-steps"),
        ("delta", 0, "delta"),
        ("delta", 1, "delta"),
        ("delta", 2, "delta"),
        ("delta", "nan", "delta"),
        ("sampler", "full-batch", "sampling-prob"),
    ],
)
def test_nonsense_is_refused_with_its_code(name, value, code):
    options = GOOD | {name: value}
    assert f"[{code}]" in refused(" ".join(f"--{key} {value}" for key, value in options.items()))


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_missing_number_is_named(missing):
    line = " ".join(f"--{key} {value}" for key, value in GOOD.items() if key != missing)
    assert f"--{missing} is missing" in refused(line)


def test_numbers_beside_a_ledger_are_refused(tmp_path):
    message = refused("--num-steps 7", make_ledger(tmp_path / "run"))
    assert "A run's ledger already says --num-steps" in message


def test_several_runs_are_stated_together_and_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # the folders' names are long
    runs = [make_ledger(tmp_path / name, run_id=name, steps=n) for name, n in (("a", 3), ("b", 5))]
    found = numbers("", *runs)
    assert found["epsilon"] == epsilon([(STEP, 8)], delta=1e-5).epsilon
    assert (found["num_steps"], found["neighbouring_relation"]) == (8, "zero-out-one")
    assert [one["run_id"] for one in found["runs"]] == ["a", "b"]
    assert [one["epsilon"] for one in found["runs"]] == [
        epsilon([(STEP, n)], delta=1e-5).epsilon for n in (3, 5)
    ]
    assert numbers("--delta 1e-6", *runs)["epsilon"] > found["epsilon"]
    shown = run("", *runs)
    assert shown.exit_code == 0 and "3 steps" in " ".join(shown.stdout.split())


def test_a_reproducible_run_leaves_no_epsilon_for_all(tmp_path):
    runs = [
        make_ledger(tmp_path / "a", run_id="a"),
        make_ledger(tmp_path / "b", run_id="b", reproducible=True),
    ]
    found = numbers("", *runs)
    assert (found["private"], found["epsilon"]) == (False, None)


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    one = make_ledger(tmp_path / "a")
    assert "[ledgers-differ]" in refused("", one, one)


def test_what_an_attacker_can_do_at_most_is_said_beside_epsilon(tmp_path):
    found = numbers("--sampler full-batch --noise-multiplier 10 --num-steps 100 --delta 1e-5")
    assert found["advantage"] == pytest.approx(math.erf(0.5 / math.sqrt(2)), rel=1e-9)
    assert dict(found["reconstruction"])[0.1] == pytest.approx(0.389, abs=1e-3)
    assert dict(found["trade_off"])[0.1] == pytest.approx(1 - 0.389, abs=1e-3)
    one = numbers("", make_ledger(tmp_path / "a", reproducible=True))
    assert (one["advantage"], one["reconstruction"]) == (1.0, None)


def test_a_user_with_rows_drawn_one_by_one():
    """2 rows: the contour integral's 3.97909 for this mixture, an independent code's."""
    line = "--sampler poisson --sampling-prob 0.01 --noise-multiplier 1 --num-steps 1000 --delta 1e-5"
    record = numbers(line + " --user-rows 2")
    assert 3.9790857 <= record["user_epsilon"] <= 3.981
    assert record["user_epsilon"] > 2 * record["epsilon"]  # so twice the epsilon would have been false
    assert "user_epsilon" not in numbers(line)


def test_a_run_of_users_is_not_restated_for_users(tmp_path):
    with Ledger.create(
        tmp_path / "ledger.jsonl",
        run_id="a",
        relation=NeighbouringRelation.ZERO_OUT,
        delta=1e-5,
        num_steps=1,
        reproducible=False,
        public={"unit": "user"},
    ) as ledger:
        ledger.append_step(STEP)
    assert numbers("", tmp_path / "ledger.jsonl")["unit"] == "user"
    assert "account-arguments" in refused("--user-rows 2", tmp_path / "ledger.jsonl")
    make_ledger(tmp_path / "rows")
    assert "privacy units differ" in refused("", tmp_path / "rows", tmp_path / "ledger.jsonl")
    assert "one run at a time" in refused("--user-rows 2", tmp_path / "a", tmp_path / "b")


def test_a_bad_number_of_rows_is_refused():
    line = "--sampler full-batch --noise-multiplier 20 --num-steps 5 --delta 1e-5 --user-rows 0"
    assert "group-size" in refused(line)


def test_a_run_kept_as_the_best_of_several_is_stated_as_the_choice_that_it_is(tmp_path):
    """Its ledger holds its own steps alone: read by itself it would say less than was spent."""
    folder = make_run(tmp_path / "best")
    alone = numbers(str(folder))["epsilon"]
    candidate = ["full-batch", 1.0, 10.0, 40]
    selection = {"distribution": "geometric", "mean": 5.0, "candidates": [[candidate]]}
    (folder / "selection.json").write_text(json.dumps(selection))
    trials = RandomTrials(distribution=TrialsDistribution.GEOMETRIC, mean=5.0)
    step = Mechanism(scheme="full-batch", sampling_prob=1.0, noise_multiplier=10.0)
    truth = choice_epsilon(
        [[(step, 40)]], trials=trials, delta=1e-5, relation=NeighbouringRelation.ZERO_OUT
    ).epsilon
    for run_ in (folder, folder / "ledger.jsonl"):
        assert numbers(str(run_))["epsilon"] == pytest.approx(truth)
    assert truth > 1.2 * alone
    assert "best of several" in refused(str(folder), make_ledger(tmp_path / "other"))
    assert "best of several" in refused(str(folder), "--user-rows", 2)
