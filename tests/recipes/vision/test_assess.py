"""Scores class by class, against numbers worked out by hand and against scikit-learn's."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from reticent.cli._run_screen import _scores
from reticent.cli.simulate import _rows
from reticent.recipes import recipes, request
from reticent.recipes.vision._assess import assess


def assessed(logits, y, *, num_classes=None) -> dict[str, Any]:
    x = torch.as_tensor(np.asarray(logits, dtype=np.float32))
    return assess(x, torch.as_tensor(np.asarray(y)), num_classes=num_classes or x.shape[1])


def logits_of(guesses, num_classes):
    return 2.0 * np.eye(num_classes)[guesses]


def test_how_far_classes_are_apart_by_hand():
    y = [0] * 4 + [1] * 2 + [2] * 2
    guesses = [0, 0, 0, 1, 1, 0, 2, 2]  # right: 3 of 4, 1 of 2, 2 of 2; 6 of 8 in all
    found = assessed(logits_of(guesses, 3), y)
    assert found["test_class_accuracy"] == [0.75, 0.5, 1.0]
    assert found["test_disparity"] == 0.5
    assert found["test_disparity_below_average"] == pytest.approx(0.5 - 0.75)
    assert found["test_disparity_ratio"] == pytest.approx((1 - 0.5) / (1 - 0.75))


def test_classes_without_images_count_nowhere_and_perfection_has_no_gap():
    found = assessed(logits_of([0, 1, 3, 1], 4), [0, 1, 3, 3])
    assert found["test_class_accuracy"] == [1.0, 1.0, None, 0.5]
    assert found["test_auc_by_class"][2] is None
    assert (found["test_disparity_below_average"], found["test_disparity_ratio"]) == (-0.25, 2.0)
    perfect = assessed(logits_of([0, 1], 2), [0, 1])
    assert (perfect["test_disparity"], perfect["test_disparity_ratio"]) == (0.0, 1.0)
    assert (perfect["test_auc"], perfect["test_auc_micro"]) == (1.0, 1.0)
    alone = assessed(logits_of([0, 1], 2), [0, 0])
    assert (alone["test_auc"], alone["test_auc_micro"]) == (None, None)
    assert alone["test_auc_by_class"] == [None, None]


@pytest.mark.parametrize("several", [False, True])
def test_areas_are_scikit_learns(several):
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=(60, 4)), 1).astype(np.float32)  # with ties
    y = (rng.random((60, 4)) < 0.4).astype(int) if several else rng.integers(0, 4, 60)
    found = assessed(logits, y)
    has = y if several else np.eye(4, dtype=int)[y]
    scores = logits if several else torch.from_numpy(logits).double().softmax(1).numpy()
    each = [roc_auc_score(has[:, k], scores[:, k]) for k in range(4)]
    assert found["test_auc_by_class"] == pytest.approx(each)
    assert found["test_auc"] == pytest.approx(np.mean(each))
    assert found["test_auc_micro"] == pytest.approx(roc_auc_score(has.ravel(), scores.ravel()))


def test_several_labels_are_assessed_label_by_label():
    logits = [[1, -1, 1], [1, -1, -1], [-1, -1, 1], [-1, 1, 1]]
    y = [[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    found = assessed(logits, y)
    assert found["test_class_accuracy"] == [1.0, 0.5, 0.5]
    assert found["test_disparity_below_average"] == pytest.approx(0.5 - 2 / 3)
    assert found["test_disparity_ratio"] == pytest.approx(0.5 / (1 / 3))
    nobody = assessed(logits, np.array(y) * [1, 0, 1])
    assert nobody["test_auc_by_class"][1] is None and nobody["test_auc_by_class"][0] == 1.0


def test_a_network_that_diverged_still_gives_a_result_that_can_be_written():
    logits = np.full((4, 2), np.nan)
    for y in ([0, 1, 0, 1], [[0, 1], [1, 0], [0, 0], [1, 1]]):
        json.dumps(assessed(logits, y), allow_nan=False)


def test_screens_show_numbers_and_leave_lists_to_the_report():
    found = assessed(logits_of([0, 1, 1, 1], 2), [0, 1, 0, 1])
    shown = dict(_scores(found))
    assert set(shown) == {
        "test disparity",
        "test disparity below average",
        "test disparity ratio",
        "test auc",
        "test auc micro",
    }
    plan = {"epsilon": 1.0, "num_steps": 1, "expected_batch_size": 1, "noise_multiplier": 1.0}
    said = {
        "result": {**found, "run": "r"},
        "simulation": plan,
        "stands_for": plan,
        "command": "",
        "note": "",
    }
    assert {name for name, _ in _rows(said)} >= {*shown, "run"}
    assert not any("class" in name for name, _ in _rows(said))


@pytest.mark.parametrize("views", [0, 3])
def test_label_smoothing_is_its_formula(views):
    """(1 - s) times the cross-entropy, plus s times its mean over all classes as if each were the label."""
    recipe: Any = recipes()["cifar10"]
    more = [f"augmult={views}"] if views else []
    losses = recipe.loss_per_example(request("cifar10", ["label_smoothing=0.2", *more]).config)
    generator = torch.Generator().manual_seed(0)
    shape = (5, views, 10) if views else (5, 10)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 3, 9, 1, 1])
    log_p = (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()
    target = 0.8 * torch.eye(10, dtype=torch.float64)[y] + 0.2 / 10
    expected = -(log_p * (target[:, None] if views else target)).sum(-1)
    expected = expected.mean(1) if views else expected
    torch.testing.assert_close(losses(torch.nn.Identity(), (logits, y)), expected)
    plain = recipe.loss_per_example(request("cifar10", more).config)
    assert not torch.allclose(plain(torch.nn.Identity(), (logits, y)), expected)
