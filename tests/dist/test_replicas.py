"""Several processes take private steps as one would: the same sums, the noise of one, one ledger."""

import dataclasses

import numpy as np
import pytest
import torch

from reticent.account.ledger import read_ledger
from reticent.dist import ALONE, RanksLedger
from reticent.errors import LedgerError
from reticent.train._ledger import create_ledger
from tests.dist.ranks import results
from tests.dist.work import trained
from tests.train.joint import make_plan

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single process finds."""
    folder = tmp_path_factory.mktemp("alone")
    try:
        return {name: trained(ALONE, folder, name) for name in ("flat", "per-layer", "adaptive")}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Folder and results of one job of two ranks, for all tests that need no other: a start takes seconds."""
    folder = tmp_path_factory.mktemp("two") / "ranks"
    tasks = "one_fails+out_of_memory+differ+other_shards+orders+unnamed_group+reproducible_noise+same_sums"
    found = results(tasks, folder, size=2)
    return folder, {name: [of_rank[name] for of_rank in found] for name in found[0]}


def test_weights_norms_and_epsilon_are_those_of_a_single_process(of_two, alone):
    folder, found = of_two
    require_same(folder, found["same_sums"], alone)


@pytest.mark.slow
def test_with_four_ranks_too(tmp_path, alone):
    require_same(tmp_path / "ranks", results("same_sums", tmp_path / "ranks", size=4), alone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_sums_of_transformers_and_a_wide_resnet_are_those_of_one_process(tmp_path, size):
    pytest.importorskip("transformers")
    for found in results("networks", tmp_path / "ranks", size=size):
        for of_model in found.values():
            assert 0 < of_model["clipped"] < of_model["num_rows"]
            assert of_model["errors"]["flat"] < 1e-10 and of_model["errors"]["per-layer"] < 1e-10


def require_same(folder, of_ranks, alone):
    for found in of_ranks:
        for name, wanted in alone.items():
            for ours, theirs in zip(found[name]["weights"], wanted["weights"], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
            assert found[name]["clip_norms"] == pytest.approx(wanted["clip_norms"], rel=1e-10)
            assert found[name]["epsilon"] == wanted["epsilon"]
            ledger = read_ledger(folder / name / "ledger.jsonl")
            assert (found[name]["num_steps"], found[name]["head"]) == (ledger.num_steps, ledger.head)


def test_the_noise_in_total_is_that_of_one_process_also_where_ranks_have_no_example(tmp_path):
    results("noise", tmp_path, size=3)
    first, *others = (np.load(tmp_path / f"noise-{rank}.npy") for rank in range(3))
    assert all((first == other).all() for other in others)  # every rank has the same weights
    for step in first:
        error = 1 / (2 * step.size) ** 0.5
        assert abs(step.std() / (1.7 * 0.3) - 1) < 6 * error  # twice or half the variance is 80 errors off
        thirds = np.array_split(step, 3)  # what one rank noised each: none repeats another's
        assert abs(np.corrcoef(thirds[0][:40000], thirds[1][:40000])[0, 1]) < 6 / 200
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 6 / first[0].size ** 0.5


def test_an_error_on_one_rank_ends_the_step_on_all_and_spends_nothing(of_two):
    first, last = of_two[1]["one_fails"]
    assert (first["error"], last["error"]) == ("rank-failed", "mine")
    assert first["spent"] == last["spent"] == 0
    assert first["then"] == last["then"] == 1


def test_out_of_memory_on_one_rank_is_heard_as_that_on_all(of_two):
    assert [found["error"] for found in of_two[1]["out_of_memory"]] == ["out of memory"] * 2


def test_ranks_that_would_not_do_the_same_are_refused_and_one_that_errs_is_heard_of(of_two):
    first, second = (found["codes"] for found in of_two[1]["differ"])
    assert first == ["ranks-differ"] * 4 + ["physical-batch-size", None]
    assert second == ["ranks-differ"] * 4 + ["rank-failed", None]


def test_ranks_with_data_of_their_own_are_refused(of_two):
    assert [found["error"] for found in of_two[1]["other_shards"]] == ["ranks-differ"] * 2


def test_ranks_that_hold_the_rows_in_another_order_are_refused_and_random_rows_are_not(of_two):
    refused = ["ranks-differ", 0]
    for found in of_two[1]["orders"]:
        assert found == {
            "turned": refused,
            "labels": refused,
            "augmented": None,
            "augmented-turned": refused,
            "own-generator": None,
            "own-generator-turned": refused,  # by the labels
        }


def test_an_unnamed_group_is_refused_and_no_rank_moves_without_the_leaders_entry(of_two):
    first, second = of_two[1]["unnamed_group"]
    assert first["errors"] == ["several-ranks", "ledger-changed"]
    assert second["errors"] == ["several-ranks", "rank-failed"]
    assert not first["moved"] and not second["moved"]


def test_reproducible_noise_differs_between_ranks(of_two):
    first, second = of_two[1]["reproducible_noise"]
    assert not set(first["z"]) & set(second["z"])


def test_a_ledger_with_steps_of_another_mechanism_is_refused(tmp_path):
    plan = make_plan()
    path = tmp_path / "ledger.jsonl"
    with create_ledger(path, plan, run_id="a", reproducible=False) as ledger:
        ledger.append_step(dataclasses.replace(plan.mechanism, noise_multiplier=0.5))
        with pytest.raises(LedgerError, match="ledger-plan"):
            RanksLedger(ALONE, ledger, planned=plan.segments())
