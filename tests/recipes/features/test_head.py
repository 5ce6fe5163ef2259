"""The recipe `head`: a network of one or two layers on frozen features."""

import json

import numpy as np
import pytest
import torch

from reticent.recipes import go_on, request, run
from reticent.recipes.features._store import Split
from reticent.recipes.features.head import HEAD, HeadConfig, _rows

QUICK = ["num_steps=3", "expected_batch_size=1437", "physical_batch_size=1437", "ema=0"]


@pytest.mark.parametrize(("hidden", "parameters"), [(0, 650), (16, 1210)])
def test_it_trains_a_network_of_the_size_asked_for(tmp_path, hidden, parameters):
    result = run(request("head", [*QUICK, f"hidden={hidden}", "epsilon=8"]), out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["num_parameters"] == parameters
    assert result["test_accuracy"] > 0.2
    assert 7.9 < result["epsilon"] <= 8
    assert go_on(tmp_path / "run")["epsilon"] == result["epsilon"]


def test_lamb_at_the_full_batch_shows_its_trust_ratios(tmp_path):
    run(request("head", [*QUICK, "optimizer=lamb", "lr=0.03"]), out=tmp_path / "run")
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["trust_ratios"].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_row_is_scaled_by_itself_alone():
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    x[2] = 0.0
    rows, _ = _rows(Split(x, np.zeros(5, np.int64)), HeadConfig()).tensors
    alone, _ = _rows(Split(x[3:4], np.zeros(1, np.int64)), HeadConfig()).tensors
    assert torch.equal(rows[3:4], alone)
    assert torch.linalg.vector_norm(rows, dim=1).tolist() == pytest.approx([4, 4, 0, 4, 4], rel=1e-5)


def test_random_rows_have_the_shape_of_real_ones():
    config = HeadConfig()
    x, y = HEAD.random_rows(config, 3)
    assert (x.shape, y.shape) == ((3, 64), (3,))
