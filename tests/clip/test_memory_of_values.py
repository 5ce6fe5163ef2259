"""What is computed from parameters alone is let go after each sum."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from reticent.clip import ClipEngine


class Squashed(nn.Module):
    """A weight through tanh, whose graph keeps its own output."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.seen = []

    def forward(self, x):
        weight = torch.tanh(self.weight)
        self.seen.append(StorageWeakRef(weight.untyped_storage()))
        return x @ weight


@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
def test_a_value_that_keeps_its_own_output_is_let_go(method):
    model = Squashed()
    engine = ClipEngine(model, max_norm=1.0, method=method)
    for _ in range(3):
        engine.clipped_sum(lambda batch: model(batch).square().sum(1), torch.randn(5, 4))
    assert model.seen and all(seen.expired() for seen in model.seen)
