"""What a trained model is worth for each class, on public test images.

Room: recipes. May import torch, `reticent.train`.

Shape letters: N image, K class.
"""

from typing import Any

import torch
from torch import Tensor, nn

from reticent.train import chunks_of, eval_mode, num_rows


@torch.no_grad()
def assess(model: nn.Module, test: Any, *, num_classes: int) -> dict[str, Any]:
    """Accuracy of each class, the gap between best and worst, and the mean area under the ROC curves.

    Args:
        model: images -> logits (N, K).
        test: public images and labels, in any form that `reticent.train` takes.
        num_classes: K.

    Returns:
        `test_class_accuracy` (a list; None for a class without images), `test_disparity` (largest less
        smallest of them) and `test_auc` (one class against the rest, mean over classes). Where labels are
        rows of zeros and ones (N, K), a class's accuracy is over all images.
    """
    device = next(model.parameters()).device
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with eval_mode(model):
        for rows in chunks_of(test, torch.arange(num_rows(test)).numpy(), size=1024, device=device):
            assert isinstance(rows, tuple), "images and labels"
            x, y = rows
            logits.append(model(x).double().cpu())
            labels.append(y.cpu())
    if labels[0].ndim == 2:
        return _of_several(torch.cat(logits), torch.cat(labels) == 1)
    scores_NK, y_N = torch.cat(logits).softmax(1), torch.cat(labels)
    right = scores_NK.argmax(1) == y_N
    present = [k for k in range(num_classes) if bool((y_N == k).any())]
    accuracy = {k: float(right[y_N == k].double().mean()) for k in present}
    curves = [area_under_curve(scores_NK[:, k], y_N == k) for k in present if len(present) > 1]
    return {
        "test_class_accuracy": [accuracy.get(k) for k in range(num_classes)],
        "test_disparity": max(accuracy.values()) - min(accuracy.values()),
        "test_auc": sum(curves) / len(curves) if curves else None,
    }


def _of_several(logits_NK: Tensor, has_NK: Tensor) -> dict[str, Any]:
    """The same of images with several labels: a label is right where its presence or absence is."""
    accuracy = ((logits_NK > 0) == has_NK).double().mean(0).tolist()
    both = [k for k in range(has_NK.shape[1]) if 0 < int(has_NK[:, k].sum()) < len(has_NK)]
    curves = [area_under_curve(logits_NK[:, k], has_NK[:, k]) for k in both]
    return {
        "test_class_accuracy": accuracy,
        "test_disparity": max(accuracy) - min(accuracy),
        "test_auc": sum(curves) / len(curves) if curves else None,
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
