"""The head and its loss in one: exact, with nothing of the size of the logits but a few rows at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reticent.clip import ClipEngine
from reticent.rules import _head
from tests.clip.test_no_materialisation import Shapes
from tests.support import oracle

pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy"
)
B, T, D, V = 5, 6, 4, 37


class Head(nn.Module):
    """Embedding, one layer, and a head: of its own, with bias, or tied; used twice if asked."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(V, D), nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=kind != "tied")
        if kind == "tied":
            self.head.weight = self.embed.weight
        self.kind = kind

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.embed(ids)))[:, :-1]
        targets = ids[:, 1:].masked_fill(ids[:, :-1] % 3 == 0, -100).reshape(-1)

        def fused(h: Tensor, **settings: Any) -> Tensor:
            settings = {"linear_bias": self.head.bias, "reduction": "none"} | settings
            return F.linear_cross_entropy(h.reshape(-1, D), self.head.weight, targets, **settings)

        if self.kind == "options":
            settings = {"options": torch.nn.LinearCrossEntropyOptions()}
        else:
            settings = {"label_smoothing": 0.1} if self.kind == "smooth" else {}
        losses = fused(h, **settings)
        if self.kind == "twice":
            losses = losses + fused(torch.sin(h))
        return losses.view(len(ids), -1).mean(1)


def _problem(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Head(kind).double()
    return model, torch.randint(0, V, (B, T))


@pytest.mark.parametrize("entries", [1, 3 * T * V, 1 << 23])
@pytest.mark.parametrize("method", ["book-keeping", "ghost"])
@pytest.mark.parametrize("kind", ["own", "tied", "twice", "smooth", "options"])
def test_the_sum_is_the_oracles(monkeypatch: Any, kind: str, method: Any, entries: int) -> None:
    monkeypatch.setattr(_head, "_ENTRIES", entries)
    model, ids = _problem(kind)
    want, norms = oracle.loop_clipped_sum(model, model, ids, 0.1)
    got = ClipEngine(model, max_norm=0.1, method=method).clipped_sum(model, ids)
    assert oracle.distance(dict(got.total), want) < 1e-10
    torch.testing.assert_close(got.norms, norms, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", ["own", "tied"])
def test_no_logits_are_held(monkeypatch: Any, kind: str) -> None:
    monkeypatch.setattr(_head, "_ENTRIES", 2 * T * V)
    model, ids = _problem(kind)
    engine = ClipEngine(model, max_norm=0.1)
    engine.clipped_sum(model, ids)
    with Shapes() as seen:
        engine.clipped_sum(model, ids)
    assert max(seen.sizes) <= 2 * T * V
    assert max(seen.sizes) < B * (T - 1) * V


@pytest.mark.parametrize("kind", ["own", "tied"])
def test_under_autocast_no_logits_are_held_and_the_sum_is_the_plain_heads(
    monkeypatch: Any, kind: str
) -> None:
    monkeypatch.setattr(_head, "_ENTRIES", 2 * T * V)
    model, ids = _problem(kind)
    model = model.float()
    want, norms = oracle.loop_clipped_sum(model.double(), model, ids, 0.1)
    model = model.float()

    def losses(ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = model(ids)
        assert found.dtype == torch.float32
        return found

    for method in ("book-keeping", "ghost"):
        engine = ClipEngine(model, max_norm=0.1, method=method)
        got = engine.clipped_sum(losses, ids)
        assert oracle.distance({n: t.double() for n, t in got.total.items()}, want) < 0.02 * B * 0.1
        torch.testing.assert_close(got.norms, norms, rtol=0.05, atol=0)
        assert "HeadForm" in {layer.form for layer in engine.explain().layers}
        with Shapes() as seen:
            engine.clipped_sum(losses, ids)
        assert max(seen.sizes) <= 2 * T * V


@pytest.mark.parametrize("wrong", ["input", "bias"])
def test_precisions_that_torch_does_not_bring_together_are_refused_by_it(wrong: str) -> None:
    layer, x, target = nn.Linear(8, 9).bfloat16(), torch.randn(4, 8), torch.randint(0, 9, (4,))
    if wrong == "bias":
        x, layer.bias = x.bfloat16(), nn.Parameter(torch.zeros(9))

    def losses(x: Tensor) -> Tensor:
        return F.linear_cross_entropy(x, layer.weight, target, linear_bias=layer.bias, reduction="none")

    with pytest.raises(RuntimeError):
        losses(x)
    with pytest.raises(RuntimeError):
        ClipEngine(layer, max_norm=1.0).clipped_sum(losses, x)


def test_a_bad_example_stays_alone() -> None:
    model, ids = _problem("own")
    model = model.float()
    with torch.no_grad():
        model.embed.weight[36] = float("nan")
    ids = ids.clamp_max(35)
    ids[2, 0] = 36
    got = ClipEngine(model, max_norm=0.1).clipped_sum(model, ids)
    assert torch.isinf(got.norms).tolist() == [False, False, True, False, False]
    assert all(bool(torch.isfinite(t).all()) for t in got.total.values())
