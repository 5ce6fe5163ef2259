"""A large run imitated at small batches: what stays, what it says of itself, what is refused."""

import json

import pytest
from click.testing import CliRunner

from reticent.account.ledger import read_ledger
from reticent.cli import main
from reticent.errors import ConfigError
from reticent.recipes import plan_of, request, simulation

LARGE = ["expected_batch_size=600", "num_steps=20", "epsilon=3", "delta=1e-4"]


def test_noise_over_batch_steps_clipping_and_rate_stay():
    asked = request("digits", LARGE)
    found = simulation(asked, batch_size=60)
    large, small = plan_of(found.large), plan_of(found.small)
    assert small.expected_batch_size == 60
    assert small.noise_multiplier / 60 == pytest.approx(large.noise_multiplier / 600, rel=1e-12)
    assert (small.num_steps, small.clipping, small.delta) == (large.num_steps, large.clipping, large.delta)
    changed = {"expected_batch_size", "noise_multiplier", "epsilon"}
    assert found.small.config.model_dump(exclude=changed) == asked.config.model_dump(exclude=changed)


def test_it_says_that_it_is_not_private_and_how_large_its_own_epsilon_is(tmp_path):
    args = ["simulate", "digits", "--batch-size", "60", "--json", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*args, *(f"--set={s}" for s in LARGE)])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["private"] is False and "NOT private" in said["note"]
    assert said["stands_for"]["epsilon"] <= 3.0 < 10 < said["simulation"]["epsilon"]
    ran = read_ledger(tmp_path / "run" / "ledger.jsonl").segments()
    assert [count for _, count in ran] == [20]
    assert ran[0][0].noise_multiplier == said["simulation"]["noise_multiplier"]
    assert said["result"]["epsilon"] == pytest.approx(said["simulation"]["epsilon"])
    assert json.loads((tmp_path / "run" / "simulation.json").read_text())["private"] is False
    assert said["command"] == "reticent train digits " + " ".join(
        f"--set {s}" for s in ("expected_batch_size=600", "num_steps=20", "epsilon=3", "delta=0.0001")
    )


@pytest.mark.parametrize(
    ("name", "settings", "batch", "why"),
    [
        ("digits", LARGE, 600, "below the run's, 600; got 600"),
        ("digits", LARGE, -1, "above 0"),
        ("digits", ["epsilon=inf"], 10, "no noise to keep"),
        ("digits", [*LARGE, "clipping=adaptive"], 60, "adapts"),
        ("last-layer", [], 60, "does not train by gradient steps"),
    ],
)
def test_what_cannot_be_simulated_is_refused(name, settings, batch, why):
    with pytest.raises(ConfigError, match=why) as e:
        simulation(request(name, settings), batch_size=batch)
    assert e.value.code == "simulation"


def test_the_published_run_is_imitated_at_a_sixteenth_of_its_work():
    shown = CliRunner().invoke(
        main, ["simulate", "cifar10-wrn-16-4-eps8", "--batch-size", "256", "--dry-run", "--json"]
    )
    said = json.loads(shown.stdout)
    assert said["simulation"]["noise_multiplier"] == pytest.approx(3.0 * 256 / 4096)
    assert said["simulation"]["operations"] == pytest.approx(said["stands_for"]["operations"] / 16)
    assert said["stands_for"]["epsilon"] < 8 < said["simulation"]["epsilon"]
