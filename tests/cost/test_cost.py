"""What runs would take: features from shapes, rates from a fit, and the arithmetic of ranks."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from reticent.cli import main
from reticent.clipping import FlatClipping
from reticent.cost import Features, Hardware, Held, estimate, features_of, read_hardware, write_hardware
from reticent.cost import _measure as measuring
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.recipes import describe, request
from reticent.sample import PoissonSampler

HARDWARE = Hardware(
    name="made up",
    source="assumed",
    seconds_per_operation=1e-12,
    seconds_per_byte=1e-9,
    seconds_per_call=1e-5,
    noise_seconds=1e-8,
    memory_factor=2.0,
    memory=2**30,
    bandwidth=1e9,
)
HELD = Held(
    num_parameters=1000,
    num_trained=800,
    parameter_bytes=4000,
    optimizer_bytes=6400,
    averaged=True,
    largest_part=400,
)
BATCH = Features(operations=8e9, bytes=10**6, calls=100, num_units=4)
PLAN = Plan(
    sampler=PoissonSampler(num_examples=1000, expected_batch_size=64),
    num_steps=90,
    noise_multiplier=1.0,
    clipping=FlatClipping(max_norm=1.0),
    delta=1e-5,
)


def test_features_come_from_shapes_alone():
    def features(device):
        model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).to(device)
        x = torch.zeros(8, 30, device=device)
        return features_of(lambda: model(x).sum(1), num_units=8)

    real, shapes = features("cpu"), features("meta")
    assert shapes == real
    assert real.operations == 3 * 2 * 8 * (30 * 20 + 20 * 5)
    assert real.bytes >= 4 * 8 * (20 + 5)  # the activation and the output


def test_the_fit_finds_the_rates_that_made_the_times():
    draw = np.random.default_rng(0)
    rates = np.array([2e-11, 3e-9, 4e-5])
    asked = [
        Features(
            operations=float(10 ** draw.uniform(7, 10)),
            bytes=int(10 ** draw.uniform(5, 8)),
            calls=int(draw.integers(5, 300)),
            num_units=1,
        )
        for _ in range(12)
    ]
    seconds = [float(rates @ [f.operations, f.bytes, f.calls]) for f in asked]
    assert measuring._fit(asked, seconds) == pytest.approx(rates, rel=1e-6)
    assert measuring._off_by(asked, seconds) == pytest.approx(1.0, rel=1e-6)
    seconds[3] *= 3
    assert measuring._off_by(asked, seconds) > 2


def test_one_rank_by_hand():
    found = estimate(PLAN, HELD, BATCH, HARDWARE)
    chunk = 8e9 * 1e-12 + 1e6 * 1e-9 + 100 * 1e-5
    assert found.chunks == 16
    assert found.compute_seconds == pytest.approx(16 * chunk)
    assert found.noise_seconds == pytest.approx(800e-8)
    assert found.communication_seconds == 0
    assert found.device_hours == pytest.approx(90 * found.step_seconds / 3600)
    lasting = 4000 + 3200 + 6400 + 3200
    assert found.memory["total"] == lasting + 2 * 10**6
    assert found.fits and not estimate(PLAN, HELD, BATCH, HARDWARE.model_copy(update={"memory": 10**6})).fits


def test_shards_hold_less_the_more_there_are_and_replicas_do_not():
    replicas = [estimate(PLAN, HELD, BATCH, HARDWARE, ranks=n, parallel="ddp") for n in (2, 4)]
    shards = [estimate(PLAN, HELD, BATCH, HARDWARE, ranks=n, parallel="fsdp2") for n in (2, 4)]
    assert replicas[0].memory == replicas[1].memory
    for name in ("parameters", "clipped_sums", "optimizer_state", "ema"):
        assert shards[1].memory[name] < shards[0].memory[name] < replicas[0].memory[name] + 401
    assert shards[0].memory["parameters"] == 4000 // 2 + 400
    assert replicas[1].compute_seconds == pytest.approx(
        estimate(PLAN, HELD, BATCH, HARDWARE).compute_seconds / 4
    )
    assert replicas[0].communication_seconds == pytest.approx(2 * 3200 / 2 / 1e9)
    assert shards[0].communication_seconds == pytest.approx(8 * (2 * 4000 + 3200) / 2 / 1e9)


@pytest.mark.parametrize(("ranks", "parallel"), [(1, "ddp"), (2, "none"), (0, "none")])
def test_ranks_that_do_not_fit_are_refused(ranks, parallel):
    with pytest.raises(ConfigError) as caught:
        estimate(PLAN, HELD, BATCH, HARDWARE, ranks=ranks, parallel=parallel)
    assert caught.value.code == "hardware"
    with pytest.raises(ConfigError, match="bandwidth"):
        estimate(PLAN, HELD, BATCH, HARDWARE.model_copy(update={"bandwidth": None}), ranks=2, parallel="ddp")


def test_a_file_is_what_was_written_and_anything_else_is_refused(tmp_path):
    path = tmp_path / "h.json"
    write_hardware(HARDWARE, path)
    assert read_hardware(path) == HARDWARE
    good = json.loads(path.read_text())
    for bad in ("[]", "{", "{}", json.dumps({**good, "memory": -1}), json.dumps({**good, "more": 1})):
        path.write_text(bad)
        with pytest.raises(ConfigError) as caught:
            read_hardware(path)
        assert caught.value.code == "hardware"
    with pytest.raises(ConfigError, match="reticent hardware --out"):
        read_hardware(tmp_path / "none.json")


def plan_command(tmp_path, *arguments):
    write_hardware(HARDWARE, tmp_path / "h.json")
    return CliRunner().invoke(main, ["plan", *arguments, "--hardware", str(tmp_path / "h.json")])


def test_a_recipe_is_estimated_from_the_command_line(tmp_path):
    done = plan_command(tmp_path, "digits", "--json", "--ranks", "2", "--parallel", "fsdp2")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["at_scale"]
    assert (found["ranks"], found["parallel"], found["hardware"]["name"]) == (2, "fsdp2", "made up")
    assert found["num_trained"] == found["num_parameters"] > 0
    assert found["step_seconds"] == pytest.approx(
        found["compute_seconds"] + found["noise_seconds"] + found["communication_seconds"]
    )
    table = plan_command(tmp_path, "digits").stdout
    assert "memory of a rank" in table and "device hours" in table


def test_published_shapes_are_those_of_the_network(tmp_path):
    done = plan_command(tmp_path, "cifar10-wrn-16-4-eps8", "--json")
    found = json.loads(done.stdout)["at_scale"]
    asked = describe(request("cifar10-wrn-16-4-eps8"))
    assert found["num_parameters"] == asked["num_parameters"]
    assert found["operations_per_step"] == pytest.approx(asked["operations"] / asked["num_steps"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["last-layer"], "does not train by gradient steps"),
        (["digits", "--set", "physical_batch_size=auto"], "set a number"),
        (["--delta", "1e-5", "--num-examples", "10"], "name one"),
    ],
)
def test_what_cannot_be_estimated_is_refused(tmp_path, arguments, message):
    done = plan_command(tmp_path, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    alone = CliRunner().invoke(main, ["plan", "digits", "--ranks", "2"])
    assert (alone.exit_code, "--hardware" in alone.stderr) == (2, True)
