"""Counts what is allocated: no gradient of a big layer is ever held for each example."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from reticent.clip import ClipEngine

B, T = 6, 12


class Shapes(TorchDispatchMode):
    """Remembers the number of elements of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes |= {t.numel() for t in tree_flatten(out)[0] if isinstance(t, Tensor)}
        return out


def _language_model() -> tuple[nn.Module, Any, Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=64, n_head=2, vocab_size=1009, n_positions=31, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)

    def losses(ids: Tensor) -> Tensor:
        logits = model(ids).logits[:, :-1]
        return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(1)

    return model, losses, torch.randint(0, 1009, (B, T))


def test_no_gradient_of_a_transformer_matrix_is_held_for_each_example() -> None:
    model, losses, ids = _language_model()
    engine = ClipEngine(model, max_norm=1.0)
    with Shapes() as seen:
        engine.clipped_sum(losses, ids)
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.dim() == 2}
    assert len(matrices) == 10
    held = {n for n, size in matrices.items() if size * B in seen.sizes}
    assert not held


def test_the_count_would_notice_one() -> None:
    model, _, _ = _language_model()
    matrix = next(p for n, p in model.named_parameters() if p.dim() == 2)
    with Shapes() as seen:
        torch.zeros(B, *matrix.shape) + 1.0
    assert matrix.numel() * B in seen.sizes


@pytest.mark.parametrize("num_examples", [2, 8])
def test_frozen_layers_leave_nothing_on_the_tape(num_examples: int) -> None:
    model = nn.Sequential(nn.Linear(32, 33), nn.Tanh(), nn.Linear(33, 2))
    model[0].requires_grad_(False)
    x = torch.randn(num_examples, T, 32)
    engine = ClipEngine(model, max_norm=1.0)
    with Shapes() as seen:
        total = engine.clipped_sum(lambda b: model(b).square().sum((1, 2)), x).total
    assert set(total) == {"2.weight", "2.bias"}
    assert 32 * 33 * num_examples not in seen.sizes
