"""Several processes with a slice of each layer take private steps as one would."""

from itertools import combinations

import numpy as np
import pytest
import torch

from reticent.dist import ALONE
from reticent.dist._tensor_layers import plan_cuts, plan_pairs
from reticent.train import load_tensors
from tests.dist import ranks, tensor
from tests.dist.test_shards import require_noise_of_one_process
from tests.train.joint import cross_entropy, make_data, make_model

pytestmark = pytest.mark.dist


def results(task, folder, *, size):
    return ranks.results(task, folder, size=size, module="tests.dist.tensor")


def require_exact(found, *, at_most):
    """`at_most`: the share of the model's bytes that a rank may hold."""
    assert 0 < found["clipped"] < found["num_rows"]
    assert found["errors"]["flat"] < 1e-10 and found["errors"]["per-layer"] < 1e-10 and found["norms"] < 1e-10
    assert found["share"] <= at_most


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """Folder and results of one job of two ranks."""
    folder = tmp_path_factory.mktemp("two") / "ranks"
    found = results("sums+planted+pairs+noise+refused+diverged+evaluated+same_training", folder, size=2)
    return folder, {name: [of_rank[name] for of_rank in found] for name in found[0]}


def test_sums_of_tables_attention_frozen_checkpointed_and_uneven_layers_are_those_of_one_process(of_two):
    for found in of_two[1]["sums"]:
        require_exact(found["shaped"], at_most=0.85)
        require_exact(found["odd"], at_most=0.75)
        assert found["half"] < 0.02


def test_a_gradient_or_a_norm_that_is_summed_over_the_ranks_wrongly_is_found(of_two):
    for found in of_two[1]["planted"]:
        assert set(found.values()) <= {"ranks-diverged", "self-check"} and len(found) == 3, found


def test_hidden_units_stay_in_slices_only_where_that_is_right(of_two):
    for found in of_two[1]["pairs"]:
        require_exact(found["right"], at_most=0.6)
        assert found["mixes"] == "self-check" and found["whole"] == "ranks-diverged"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_sums_of_transformers_are_those_of_one_process(tmp_path, size):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    for found in results("transformers", tmp_path, size=size):
        for name in ("gpt2", "vit", "llama", "lora"):
            require_exact(found[name], at_most=1 / size + 0.25)


@pytest.mark.slow
def test_what_a_rank_sends_and_holds_is_what_shapes_say(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    for found in results("traffic", tmp_path, size=2):
        for name, of_model in found.items():
            assert of_model["sent"] == pytest.approx(of_model["on_paper"], rel=1e-12), name
            assert of_model["held_alike"] and of_model["sent"] > 0, name


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "size", "wanted"), [(0.0, 2, 14), (0.0, 4, 6), (0.1, 2, 6)])
def test_heads_stay_in_slices_only_if_none_is_cut_and_none_is_dropped(dropout, size, wanted):
    """Two blocks of an attention of four and an MLP of three layers, with two heads of keys and values."""
    transformers = pytest.importorskip("transformers")
    from tests.support.hf import DECODER

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, attention_dropout=dropout))
    assert len(plan_pairs(model, plan_cuts(model, size), size)) == wanted


def test_training_is_that_of_one_process(of_two, tmp_path):
    require_same_training(of_two[1]["same_training"], tmp_path)


@pytest.mark.slow
def test_training_with_three_ranks_and_sums_with_four_too(tmp_path):
    require_same_training(results("same_training", tmp_path / "ranks", size=3), tmp_path)
    for found in results("sums", tmp_path / "four", size=4):
        require_exact(found["shaped"], at_most=0.8)


def require_same_training(of_all, tmp_path):
    (tmp_path / "alone").mkdir()
    try:
        alone = {name: tensor.trained(ALONE, tmp_path / "alone", name) for name in tensor.CLIPPINGS}
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


def test_the_noise_in_total_is_that_of_one_process(of_two):
    first, second = (np.load(of_two[0] / f"noise-{rank}.npy") for rank in range(2))
    assert (first == second).all()  # also of the vector that every rank has whole
    for step in first:
        slices, whole = np.split(step[: 300 * 400], 2), step[300 * 400 :]
        for part in (*slices, whole):  # each by itself: twice in one and half in another would not cancel
            require_noise_of_one_process(part)
        for a, b in combinations((*slices, whole), 2):  # what each rank noised: none repeats another's
            assert abs(np.corrcoef(a[:60000], b[:60000])[0, 1]) < 6 / 60000**0.5
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 6 / first[0].size ** 0.5


def test_what_cannot_be_cut_or_is_not_is_refused(of_two):
    wanted = ["tensor-parallel", *["sharded-model"] * 4, *["several-ranks"] * 2, "optimizer-foreach", None]
    for found in of_two[1]["refused"]:
        assert found["codes"] == wanted


def test_ranks_with_other_rows_or_other_random_draws_are_refused_and_nothing_is_spent(of_two):
    for found in of_two[1]["diverged"]:
        assert [spent for *_, spent in found["found"]] == [0, 0, 0]
        assert all(code == "shard-failed" for code, *_ in found["found"])
        assert {cause for _, cause, _ in found["found"]} <= {
            "ranks-diverged",
            "self-check",
            "loss-mixes-examples",
        }


def test_a_run_with_random_layers_writes_the_weights_that_it_scores(of_two):
    folder, found = of_two[0], of_two[1]["evaluated"]
    assert found[0]["gain"] == found[1]["gain"]
    model, (x, y) = torch.nn.Sequential(torch.nn.Dropout(0.2), *make_model()).eval(), make_data().tensors
    for name, file in (("last", "weights"), ("ema", "ema")):
        model.load_state_dict(load_tensors(folder / "evaluated" / f"{file}.safetensors")[0], strict=False)
        with torch.no_grad():
            wanted = float(cross_entropy(model, (x, y)).mean())
        assert [rank["scores"][name]["loss"] for rank in found] == pytest.approx([wanted] * 2, rel=1e-5)
