"""Several processes with shards of the model take private steps as one would, and hold less."""

import json
from contextlib import nullcontext
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from reticent.dist import ALONE
from reticent.dist._sharded_model import ScatteredSums, _marks
from reticent.errors import StepError
from reticent.train import load_tensors
from tests.dist import ranks, sharded
from tests.train.joint import cross_entropy, make_data

pytestmark = pytest.mark.dist


def results(task, folder, *, size):
    return ranks.results(task, folder, size=size, module="tests.dist.sharded")


def require_exact(found, *, num_rows, size):
    """`size`: how many ranks hold a copy of the model together."""
    assert 0 < found["clipped"] < num_rows
    assert found["errors"]["flat"] < 1e-10 and found["errors"]["per-layer"] < 1e-10
    assert found["share"] < 1.05 / size + 0.02 and found["sums_share"] < 1.05 / size + 0.02


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Folder and results of one job of two ranks."""
    folder = tmp_path_factory.mktemp("two") / "ranks"
    tasks = "wide_resnet+odd_model+noise+refused+guards+evaluated+orders+node_hook+same_training+hybrid_sums"
    found = results(tasks, folder, size=2)
    return folder, {name: [of_rank[name] for of_rank in found] for name in found[0]}


def test_sums_of_a_wide_resnet_are_those_of_one_process(of_two):
    for found in of_two[1]["wide_resnet"]:
        require_exact(found, num_rows=5, size=2)


def test_so_are_those_of_frozen_checkpointed_parametrized_and_offloaded_layers_and_in_half_precision(of_two):
    for found in of_two[1]["odd_model"]:
        require_exact(found, num_rows=5, size=2)
        for name in ("wrapped", "offload"):
            require_exact(found["variants"][name], num_rows=5, size=2)
        assert found["half"] < 0.02
        assert 0.5 < max(found["moved"]) <= 1 + 1e-5  # one row moves the sum of half precision by its bound


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_sums_of_transformers_with_tied_weights_and_a_wide_resnet_are_those_of_one_process(tmp_path, size):
    pytest.importorskip("transformers")
    for found in results("transformers+wide_resnet", tmp_path, size=size):
        require_exact(found["transformers"]["gpt2"], num_rows=3, size=size)
        require_exact(found["transformers"]["vit"], num_rows=5, size=size)
        require_exact(found["wide_resnet"], num_rows=5, size=size)


def test_training_is_that_of_one_process_and_optimizer_states_are_shards(of_two, tmp_path):
    require_same_training(of_two[1]["same_training"], tmp_path)


@pytest.mark.slow
def test_training_with_four_ranks_too(tmp_path):
    found = results("wide_resnet+same_training", tmp_path / "ranks", size=4)
    for of_rank in found:
        require_exact(of_rank["wide_resnet"], num_rows=5, size=4)
    require_same_training([of_rank["same_training"] for of_rank in found], tmp_path)


def require_same_training(of_all, tmp_path, *, copies=1):
    (tmp_path / "alone").mkdir()
    try:
        alone = {name: sharded.trained(ALONE, tmp_path / "alone", name) for name in sharded.CLIPPINGS}
    finally:
        torch.set_default_dtype(torch.float32)
    for found in of_all:
        for name, wanted in alone.items():
            for ours, theirs in zip(found[name]["weights"], wanted["weights"], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)  # noise of 0 has a grid of 2e-9
            assert found[name]["clip_norms"] == pytest.approx(wanted["clip_norms"], rel=1e-10)
            assert (found[name]["epsilon"], found[name]["num_steps"]) == (
                wanted["epsilon"],
                wanted["num_steps"],
            )
            assert found[name]["head"] == of_all[0][name]["head"]
    for name, wanted in alone.items():
        assert sum(found[name]["momentum"] for found in of_all) == copies * wanted["momentum"]


def test_the_noise_in_total_is_that_of_one_process(of_two):
    folder, found = of_two[0], of_two[1]["noise"]
    first, second = (np.load(folder / f"noise-{rank}.npy") for rank in range(2))
    assert (first == second).all()
    for step in first:
        require_noise_of_one_process(step)
        halves = step[: 150 * 400], step[found[0]["rows"] * 400 :]  # what each rank noised
        assert abs(np.corrcoef(*halves)[0, 1]) < 6 / 60000**0.5
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 6 / first[0].size ** 0.5


def test_sums_of_two_copies_are_added_up(of_two):
    """Hybrid, with one rank a copy: what is scattered is whole, and copies are summed by `across` only."""
    for found in of_two[1]["hybrid_sums"]:
        require_exact(found["wrn"], num_rows=5, size=1)
        require_exact(found["odd"], num_rows=5, size=1)


@pytest.mark.slow
def test_hybrid_sharding_of_two_by_two_is_exact_and_its_noise_is_that_of_one_process(tmp_path):
    pytest.importorskip("transformers")
    folder = tmp_path / "ranks"
    tasks = "hybrid_sums+hybrid_transformers+hybrid_training+hybrid_noise"
    found = results(tasks, folder, size=4)
    for of_rank in found:
        for name, num_rows in (("wrn", 5), ("odd", 5)):
            require_exact(of_rank["hybrid_sums"][name], num_rows=num_rows, size=2)
        for name, num_rows in (("gpt2", 3), ("vit", 5)):
            require_exact(of_rank["hybrid_transformers"][name], num_rows=num_rows, size=2)
    require_same_training([of_rank["hybrid_training"] for of_rank in found], tmp_path, copies=2)
    first, *others = (np.load(folder / f"noise-{rank}.npy") for rank in range(4))
    assert all((first == other).all() for other in others)
    for step in first:
        require_noise_of_one_process(step)
        parts = [p for half in (step[: 151 * 400], step[151 * 400 :]) for p in np.array_split(half, 2)]
        for i, j in combinations(range(4), 2):  # what each rank noised: none repeats another's
            assert abs(np.corrcoef(parts[i][:30000], parts[j][:30000])[0, 1]) < 6 / 30000**0.5


def require_noise_of_one_process(noise):
    """Multiplier 1.7 and norm 0.3; twice or half the variance is 80 errors off."""
    error = 1 / (2 * noise.size) ** 0.5
    assert abs(noise.std() / (1.7 * 0.3) - 1) < 6 * error


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_twice_and_half_the_variance_are_rejected(factor):
    noise = np.random.default_rng(1).normal(0.0, 1.7 * 0.3 * factor**0.5, 400 * 301)
    with pytest.raises(AssertionError):
        require_noise_of_one_process(noise)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_no_rank_holds_the_whole_gradient_or_model(tmp_path, size):
    """Twelve equal units: a pass holds a few of them at once, and what stays is one part in `size`."""
    for found in results("memory", tmp_path, size=size):
        assert found["flat"] < 3.5 / 12 and found["per-layer"] < 3.5 / 12
        assert found["stays"] < 1.02 * 4 / size  # parameters, sums, two moments


def test_what_is_sharded_otherwise_or_clipped_by_other_engines_is_refused(of_two):
    for found in of_two[1]["refused"]:
        assert found["codes"][:7] == ["sharded-model"] * 5 + ["several-ranks"] * 2
    first, second = (found["codes"][7:] for found in of_two[1]["refused"])
    assert first == ["rank-failed", "rank-failed", "sharded-model", "ranks-differ"]
    assert second == ["ledger-plan", "noise-rank", "sharded-model", "ranks-differ"]


def test_scores_are_those_of_the_written_weights_and_hooks_and_missing_parts_are_refused(of_two):
    folder, found = of_two[0], of_two[1]["evaluated"]
    model, (x, y) = sharded.Rooted(), make_data().tensors
    for name, file in (("last", "weights"), ("ema", "ema")):
        model.load_state_dict(load_tensors(folder / "evaluated" / f"{file}.safetensors")[0], strict=False)
        with torch.no_grad():
            wanted = float(cross_entropy(model, (x, y)).mean())
        assert [rank["scores"][name]["loss"] for rank in found] == pytest.approx([wanted] * 2, rel=1e-5)
    lines = [json.loads(line) for line in (folder / "evaluated" / "metrics.jsonl").read_text().splitlines()]
    of_all = {name for name, _ in model.named_parameters()}
    assert all(line["trust_ratios"].keys() == of_all for line in lines if line["weights"] == "last")
    assert [rank["codes"] for rank in found] == [["parameter-hook", "checkpoint-parts"], ["parameter-hook"]]


def test_losses_that_couple_examples_are_refused_and_nothing_is_spent(of_two):
    for found in of_two[1]["guards"]:
        causes = ("loss-mixes-examples", "gradient-mixes-examples")
        assert found["found"] == [["shard-failed", cause, 0] for cause in causes]
        assert found["left"] == []


def test_ranks_that_would_come_to_the_units_in_another_order_are_told_so_at_once(of_two):
    for found in of_two[1]["orders"]:
        assert found == [["shard-failed", "ranks-order", 0], [None, None, 1]]


def test_a_hook_that_updates_a_shard_in_the_self_check_is_found(of_two):
    assert of_two[1]["node_hook"] == [["shard-failed", "parameter-hook", 0]] * 2


def test_a_rank_that_fails_in_a_pass_ends_the_job_on_all(tmp_path):
    jobs = ranks.start("one_fails", tmp_path, size=2, module="tests.dist.sharded")
    for job in jobs:
        job.communicate(timeout=60)
    said = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert all(text.startswith("shard-failed") for text in said) and "mine" in said[1]


class Summing:
    """Many ranks at once, of which the last may be at another unit: what `Replicas.scatter_sum` does."""

    size = 1000

    def __init__(self, others_mark):
        self.others_mark = others_mark

    def scatter_sum(self, mine, parts):
        rows = parts.view(self.size, -1).clone()
        rows[-1, -len(self.others_mark) :] = torch.tensor(self.others_mark)
        mine.copy_(torch.stack([row.clone() for row in rows]).cumsum(0)[-1])


@pytest.mark.parametrize("other", [2999, 2998, 0, 2999 - 16])
def test_ranks_at_different_units_are_told_apart_however_many_there_are(other):
    number = 2999
    names = [f"p{i}" for i in range(number + 1)]
    local = SimpleNamespace(requires_grad=True, shape=torch.Size([1000]), to_local=lambda: torch.zeros(1))
    model = SimpleNamespace(sharded=dict.fromkeys(names, local), units=[(name,) for name in names])
    sums = ScatteredSums(cast(Any, model), within=cast(Any, Summing(_marks(other))))
    same = other == number
    with (
        nullcontext() if same else pytest.raises(StepError, match="ranks-order"),
        sums.adding(f"p{number}") as into,
    ):
        into.fill_(1.0)
    assert sums[f"p{number}"].tolist() == [1000.0 if same else 0.0]
