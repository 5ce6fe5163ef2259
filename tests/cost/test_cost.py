"""What runs would take: features from shapes, rates from a fit, and the arithmetic of ranks."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from reticent.cli import main
from reticent.clipping import FlatClipping
from reticent.cost import (
    Features,
    Hardware,
    Held,
    Sliced,
    estimate,
    features_of,
    read_hardware,
    shapes_alone,
    write_hardware,
)
from reticent.cost import _measure as measuring
from reticent.dist import sliced_shapes
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
    num_averages=1,
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
    for name in ("parameters", "clipped_sums", "optimizer_state", "averages"):
        assert shards[1].memory[name] < shards[0].memory[name] < replicas[0].memory[name] + 401
    assert shards[0].memory["parameters"] == 4000 // 2 + 400
    assert replicas[1].compute_seconds == pytest.approx(
        estimate(PLAN, HELD, BATCH, HARDWARE).compute_seconds / 4
    )
    assert replicas[0].communication_seconds == pytest.approx(2 * 3200 / 2 / 1e9)
    assert shards[0].communication_seconds == pytest.approx(8 * (2 * 4000 + 3200) / 2 / 1e9)


def test_copies_of_a_sharded_model_by_hand():
    """Two copies, each in two shards: 16 rows a rank are 4 physical batches."""
    found = estimate(PLAN, HELD, BATCH, HARDWARE, ranks=4, parallel="fsdp2", num_replicas=2)
    of_a_copy = estimate(PLAN, HELD, BATCH, HARDWARE, ranks=2, parallel="fsdp2")
    assert found.memory == of_a_copy.memory
    assert found.memory["parameters"] == 2000 + 400 and found.memory["optimizer_state"] == 3200
    within = 4 * (4000 + 4000 + 3200) // 2  # each physical batch: gathered twice, sums scattered; half leaves
    across = (1600 + 1600) // 2  # each step: a shard's sums scattered over the copies, and gathered
    assert found.chunks == 4 and found.communication_seconds == pytest.approx((within + across) / 1e9)
    assert found.noise_seconds == pytest.approx(200e-8)  # each of four ranks noises its part of 800
    assert found.device_hours == pytest.approx(4 * 90 * found.step_seconds / 3600)
    whole = estimate(PLAN, HELD, BATCH, HARDWARE, ranks=4, parallel="fsdp2", num_replicas=4)
    replicas = estimate(PLAN, HELD, BATCH, HARDWARE, ranks=4, parallel="ddp")
    assert whole.memory == replicas.memory  # a copy on each rank is DDP
    assert whole.communication_seconds == replicas.communication_seconds


def test_slices_by_hand():
    """Every rank runs all 64 rows, in 16 physical batches; 500 of 800 trained numbers are on this one."""
    sliced = Sliced(num_trained=500, num_whole=200, parameter_bytes=2500, sent=3000.0)
    found = estimate(PLAN, HELD, BATCH, HARDWARE, ranks=2, parallel="tp", sliced=sliced)
    assert found.chunks == 16
    assert found.compute_seconds == pytest.approx(16 * (8e-3 + 1e-3 + 1e-3))
    assert found.noise_seconds == pytest.approx(5e-6)
    assert found.communication_seconds == pytest.approx((16 * 3000 + 4 * 200) / 1e9)
    assert found.memory["optimizer_state"] == 4000  # 8 bytes for each of 500
    assert found.memory["activations"] == 2 * 10**6  # as whole as the features say
    assert found.memory["total"] == 2500 + 2000 + 4000 + 2000 + 2 * 10**6
    for parallel, given in (("tp", None), ("ddp", sliced)):
        with pytest.raises(ConfigError, match="tp"):
            estimate(PLAN, HELD, BATCH, HARDWARE, ranks=2, parallel=parallel, sliced=given)


class Table(nn.Module):
    """A table of 10 x 8, a layer to 12, and one to 7, which two ranks cut along its inputs."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.head = nn.Embedding(10, 8), nn.Linear(8, 12), nn.Linear(12, 7)

    def forward(self, ids):
        return self.head(torch.tanh(self.up(self.table(ids))))


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_layers_slices_and_what_crosses_ranks_by_hand(ranks):
    """15 positions of float32. Of what all ranks have at the end, (N - 1) / N leaves each; sums do twice."""
    ids = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        whole, model = Table(), Table()
    of_whole = features_of(lambda: whole(ids).sum(2), num_units=3)
    shapes = sliced_shapes(model, ranks)
    of_slices = features_of(lambda: model(ids).sum(2), num_units=3)
    table, up, head = 15 * 8 * 4, 15 * 12 * 4, 15 * 7 * 4
    crosses = (
        table + (up + 2 * table) + (2 * head + up)
    )  # gathered; and its input's gradient; summed; gathered
    assert shapes.sent(lambda: model(ids)) == crosses * (ranks - 1) / ranks
    on_a_rank = {
        "table.weight": 80 // ranks,
        "up.weight": 96 // ranks,
        "up.bias": 12 // ranks,
        "head.weight": 84 // ranks,
        "head.bias": 7,
    }
    assert {name: p.numel() for name, p in model.named_parameters()} == on_a_rank
    assert shapes.whole == {"head.bias"}
    assert of_slices.operations == of_whole.operations / ranks  # all of it is in layers that are cut
    assert of_slices.bytes >= of_whole.bytes  # what lies between layers is whole on every rank


def test_a_transformer_in_slices_by_hand():
    """Two blocks of GPT-2 in width 8, 15 positions: hidden units stay in slices, all else is whole."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=8,
        n_head=2,
        vocab_size=10,
        n_positions=5,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    ids = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        whole, model = (transformers.GPT2LMHeadModel(config) for _ in range(2))
    of_whole = features_of(lambda: whole(ids).logits.sum((1, 2)), num_units=3)
    shapes = sliced_shapes(model, 2)
    of_slices = features_of(lambda: model(ids).logits.sum((1, 2)), num_units=3)
    x = 15 * 8 * 4  # bytes of what runs through the blocks
    attention = (3 * x + 2 * x) + (x + 2 * x)  # two layers gathered, their inputs' gradients summed
    mlp = 2 * x + 2 * x  # two sums: one backward, one forward
    head = 2 * (15 * 10 * 4) + x  # logits summed, the gradient of what it was given gathered
    tables = x + 5 * 8 * 4  # of tokens, and of positions, for one row
    with shapes_alone():
        sent = shapes.sent(lambda: model(ids).logits)
    assert sent == (2 * (attention + mlp) + head + tables) / 2
    assert x * 2 * 4 // 2 <= of_whole.bytes - of_slices.bytes < of_whole.bytes / 2  # half the hidden units


@pytest.mark.parametrize(
    ("ranks", "parallel", "num_replicas", "code"),
    [(4, "fsdp2", 3, "num-replicas"), (4, "ddp", 2, "hardware"), (4, "fsdp2", 0, "num-replicas")],
)
def test_copies_that_do_not_fit_are_refused(ranks, parallel, num_replicas, code):
    with pytest.raises(ConfigError) as caught:
        estimate(PLAN, HELD, BATCH, HARDWARE, ranks=ranks, parallel=parallel, num_replicas=num_replicas)
    assert caught.value.code == code


@pytest.mark.parametrize(("ranks", "parallel"), [(1, "ddp"), (2, "none"), (0, "none"), (1, "tp")])
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


def test_copies_and_slices_are_estimated_from_the_command_line(tmp_path):
    copies = plan_command(
        tmp_path, "digits", "--json", "--ranks", "4", "--parallel", "fsdp2", "--num-replicas", "2"
    )
    assert json.loads(copies.stdout)["at_scale"]["num_replicas"] == 2
    table = plan_command(tmp_path, "digits", "--ranks", "4", "--parallel", "fsdp2", "--num-replicas", "2")
    assert "fsdp2, 2 copies" in table.stdout
    of_recipe = plan_command(tmp_path, "digits", "--json", "--ranks", "2", "--set", "parallel=fsdp2")
    assert json.loads(of_recipe.stdout)["at_scale"]["parallel"] == "fsdp2"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cifar10-wrn-16-4-eps8", "--parallel", "tp"], "tensor-parallel", "model's"),
        (["digits", "--parallel", "fsdp2", "--num-replicas", "3"], "num-replicas", "divisor"),
        (["digits", "--parallel", "fsdp2", "--set", "compile=true"], "config", "compile"),
        (["digits", "--parallel", "ddp", "--set", "twin=true"], "several-ranks", "twin"),
    ],
)
def test_what_several_ranks_would_refuse_is_refused(tmp_path, arguments, code, message):
    done = plan_command(tmp_path, *arguments, "--ranks", "4")
    assert done.exit_code == 2
    assert message in done.stderr and code in done.stderr


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
        (["digits", "--set", "low_memory=true"], "low_memory is true"),
        (["digits", "--set", "compile=true"], "compile is true"),
        (["--delta", "1e-5", "--num-examples", "10"], "name one"),
    ],
)
def test_what_cannot_be_estimated_is_refused(tmp_path, arguments, message):
    done = plan_command(tmp_path, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    alone = CliRunner().invoke(main, ["plan", "digits", "--ranks", "2"])
    assert (alone.exit_code, "--hardware" in alone.stderr) == (2, True)
