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


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_norms_and_epsilon_are_those_of_a_single_process(tmp_path, alone, size):
    for found in results("same_sums", tmp_path / "ranks", size=size):
        for name, wanted in alone.items():
            for ours, theirs in zip(found[name]["weights"], wanted["weights"], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
            assert found[name]["clip_norms"] == pytest.approx(wanted["clip_norms"], rel=1e-10)
            assert found[name]["epsilon"] == wanted["epsilon"]
            ledger = read_ledger(tmp_path / "ranks" / name / "ledger.jsonl")
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


def test_an_error_on_one_rank_ends_the_step_on_all_and_spends_nothing(tmp_path):
    first, last = results("one_fails", tmp_path, size=2)
    assert (first["error"], last["error"]) == ("rank-failed", "mine")
    assert first["spent"] == last["spent"] == 0
    assert first["then"] == last["then"] == 1


def test_out_of_memory_on_one_rank_is_heard_as_that_on_all(tmp_path):
    assert [found["error"] for found in results("out_of_memory", tmp_path, size=2)] == ["out of memory"] * 2


def test_ranks_with_different_plans_are_refused(tmp_path):
    assert [found["error"] for found in results("differ", tmp_path, size=2)] == ["ranks-differ"] * 2


def test_ranks_with_data_of_their_own_are_refused(tmp_path):
    assert [found["error"] for found in results("other_shards", tmp_path, size=2)] == ["ranks-differ"] * 2


def test_an_unnamed_group_is_refused_and_no_rank_moves_without_the_leaders_entry(tmp_path):
    first, second = results("unnamed_group", tmp_path, size=2)
    assert first["errors"] == ["several-ranks", "ledger-changed"]
    assert second["errors"] == ["several-ranks", "rank-failed"]
    assert not first["moved"] and not second["moved"]


def test_reproducible_noise_differs_between_ranks(tmp_path):
    first, second = results("reproducible_noise", tmp_path, size=2)
    assert not set(first["z"]) & set(second["z"])


def test_a_ledger_with_steps_of_another_mechanism_is_refused(tmp_path):
    plan = make_plan()
    path = tmp_path / "ledger.jsonl"
    with create_ledger(path, plan, run_id="a", reproducible=False) as ledger:
        ledger.append_step(dataclasses.replace(plan.mechanism, noise_multiplier=0.5))
        with pytest.raises(LedgerError, match="ledger-plan"):
            RanksLedger(ALONE, ledger, mechanism=plan.mechanism)
