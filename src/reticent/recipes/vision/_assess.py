"""What a trained model is worth for each class, on public test images.

Room: recipes. May import torch.

Shape letters: N image, K class.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def assess(logits_NK: Tensor, y: Tensor, *, num_classes: int) -> dict[str, Any]:
    """Accuracy of each class, how far classes are apart, and areas under the ROC curves.

    With a_k the accuracy of class k and a that of all images together:

    | result | is |
    |---|---|
    | `test_class_accuracy` | a list of a_k |
    | `test_disparity` | max a_k - min a_k |
    | `test_disparity_below_average` | min (a_k - a): 0 or less [1, `min_disparity_abs`] |
    | `test_disparity_ratio` | max (1 - a_k) / (1 - a): 1 or more; 1 if a is 1 [1, `max_disparity_rel`] |
    | `test_auc_by_class` | a list of areas: images of class k against the rest, by its probability |
    | `test_auc` | their mean ("macro") |
    | `test_auc_micro` | the area of all pairs of image and class together |

    Where labels are rows of zeros and ones (N, K), a_k is the share of images whose label k is right, and a
    their mean.

    Args:
        logits_NK: a trained model's, of public images.
        y: labels (N,), or (N, K) of zeros and ones.
        num_classes: K.

    Returns:
        The table's. None, in a list too, stands for what is not defined: a class without images, an area of
        a class that no image has, or all.

    Sources:
        [1] jax_privacy, experiments/image_classification/metrics.py; its areas are by the sigmoid of a
            class's logit, ours of one label each by its softmax.
    """
    logits_NK = logits_NK.double()
    if y.ndim == 2:
        right_NK = (logits_NK > 0) == (y == 1)
        each = right_NK.double().mean(0).tolist()
        return {**_apart(each, float(right_NK.double().mean())), **_areas(logits_NK, y == 1)}
    scores_NK = logits_NK.softmax(1)
    right = (scores_NK.argmax(1) == y).double()
    has_NK = y[:, None] == torch.arange(num_classes)
    each = [float(right[has].mean()) if bool(has.any()) else None for has in has_NK.T]
    return {**_apart(each, float(right.mean())), **_areas(scores_NK, has_NK)}


def _apart(accuracy: Sequence[float | None], average: float) -> dict[str, Any]:
    found = [a for a in accuracy if a is not None]
    return {
        "test_class_accuracy": list(accuracy),
        "test_disparity": max(found) - min(found),
        "test_disparity_below_average": min(found) - average,
        "test_disparity_ratio": (1.0 - min(found)) / (1.0 - average) if average < 1.0 else 1.0,
    }


def _areas(scores_NK: Tensor, has_NK: Tensor) -> dict[str, Any]:
    each = [
        area_under_curve(scores, has) if 0 < int(has.sum()) < len(has) else None
        for scores, has in zip(scores_NK.T, has_NK.T, strict=True)
    ]
    found = [area for area in each if area is not None]
    return {
        "test_auc": sum(found) / len(found) if found else None,
        "test_auc_by_class": each,
        "test_auc_micro": area_under_curve(scores_NK.flatten(), has_NK.flatten()) if found else None,
    }


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Chance that a random positive scores above a random negative; a tie counts half."""
    values, place = scores.unique(return_inverse=True)
    counts = torch.zeros(2, len(values), dtype=torch.float64)
    counts[0].index_add_(0, place, (~positive).double())
    counts[1].index_add_(0, place, positive.double())
    below = counts[0].cumsum(0) - counts[0]
    wins = (counts[1] * (below + counts[0] / 2)).sum()
    return float(wins / (counts[0].sum() * counts[1].sum()))
