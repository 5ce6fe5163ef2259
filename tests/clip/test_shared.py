"""Inner products of an input that several matrices multiply: formed once, and never taken for another's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import reticent as rt
from reticent.clip._shared import SharedInputs
from reticent.clipping import PerLayerClipping
from reticent.rules import Form, Outer

B, T, D = 3, 70, 24  # two strips


class _Attention(nn.Module):
    """Queries, keys and values of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, D)
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.last(torch.softmax(q @ k.mT, -1) @ v)


_WAYS: dict[str, dict[str, Any]] = {
    "flat": {"max_norm": 1.0},
    "two backwards": {"max_norm": 1.0, "method": "ghost"},
    "per layer": {"clipping": PerLayerClipping(max_norm=1.0)},
}


def _sum(model: nn.Module, x: Tensor, way: str) -> dict[str, Tensor]:
    engine = rt.ClipEngine(model, **_WAYS[way])
    return dict(engine.clipped_sum(lambda x: model(x).square().mean((1, 2)), x).total)


@pytest.fixture
def only_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram matrix takes fewer operations for wide layers only: asked for all the same."""
    plain = Outer.methods
    monkeypatch.setattr(Outer, "methods", lambda form: tuple(m for m in plain(form) if m.name == "gram"))


@pytest.mark.usefixtures("only_gram")
@pytest.mark.parametrize("way", _WAYS)
def test_an_input_is_looked_at_once_and_nothing_changes(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    torch.manual_seed(0)
    model, x = _Attention(), torch.randn(B, T, D)
    formed: list[tuple[int, ...]] = []
    plain = Outer.input_gram

    def counted(form: Outer) -> tuple[Tensor, ...]:
        formed.append(tuple(form.x_UPI.shape))
        return plain(form)

    monkeypatch.setattr(Outer, "input_gram", counted)
    got = _sum(model, x, way)
    passes = 2 if way == "two backwards" else 1  # the second looks whether the first came out the same
    assert formed == [(B, T, D)] * 3 * passes  # last; values, keys and queries; first

    def alone(_: SharedInputs, form: Form, method: str) -> tuple[Tensor, Form]:
        return form.settle(method)

    monkeypatch.setattr(SharedInputs, "settle", alone)
    for name, want in _sum(model, x, way).items():
        assert torch.equal(got[name], want), name


def _truth(form: Outer) -> Tensor:
    return torch.einsum("upi,upo->uio", form.x_UPI.double(), form.g_UPO.double()).square().sum((1, 2))


def test_no_input_is_taken_for_another() -> None:
    torch.manual_seed(0)
    shared, base = SharedInputs(), torch.randn(B, 2 * T, D)
    g = torch.randn(B, T, D)

    def check(x: Tensor) -> None:
        form = Outer(x, g)
        torch.testing.assert_close(shared.settle(form, "gram")[0], _truth(form), rtol=1e-3, atol=0.0)

    check(base[:, :T])
    check(base[:, T:])  # the same memory, another part
    check(base[:, ::2])  # and other strides from the same address on
    check(base[:, :T])
    base.mul_(3.0)  # written to since
    check(base[:, :T])
    with torch.no_grad():
        base[:, :T].detach().neg_().add_(1.0)  # by way of another view
    check(base[:, :T])
    for _ in range(8):  # memory that was given back comes again
        check(torch.randn(B, T, D))
    x = torch.randn(B, T, D, dtype=torch.float64)
    check(x)
    check(x.float())


def _remembered(engine: rt.ClipEngine) -> object:
    return engine._planner._shared._last


@pytest.mark.usefixtures("only_gram")
@pytest.mark.parametrize("fails", (False, True))
def test_nothing_is_remembered_after_a_sum(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    torch.manual_seed(0)
    model, x = _Attention(), torch.randn(B, T, D)
    seen: list[object] = []
    plain = SharedInputs.settle

    def settle(shared: SharedInputs, form: Form, method: str) -> tuple[Tensor, Form]:
        found = plain(shared, form, method)
        seen.append(shared._last)
        if fails and len(seen) == 5:
            raise RuntimeError("out of memory, say")
        return found

    monkeypatch.setattr(SharedInputs, "settle", settle)
    engine = rt.ClipEngine(model, max_norm=1.0)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory, say"):
            engine.clipped_sum(lambda x: model(x).square().mean((1, 2)), x)
    else:
        engine.clipped_sum(lambda x: model(x).square().mean((1, 2)), x)
    assert any(seen) and _remembered(engine) is None


@pytest.mark.usefixtures("only_gram")
def test_with_a_budget_nothing_is_held_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _Attention(), torch.randn(B, T, D)
    formed: list[Outer] = []
    plain = Outer.input_gram
    monkeypatch.setattr(Outer, "input_gram", lambda form: (formed.append(form), plain(form))[1])
    for budget in (1 << 30, None):
        assert not formed
        engine = rt.ClipEngine(model, max_norm=1.0, memory_budget=budget)
        engine.clipped_sum(lambda x: model(x).square().mean((1, 2)), x)
    assert formed


def test_what_a_checkpoint_runs_again_is_looked_at_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part may write into memory that is remembered, and torch need not notice."""
    torch.manual_seed(0)
    model = nn.Sequential(_Attention(), nn.Linear(D, D))
    x = torch.randn(B, T, D)
    met: list[str] = []
    forget, settle = SharedInputs.forget, SharedInputs.settle
    monkeypatch.setattr(SharedInputs, "forget", lambda shared: (met.append("forget"), forget(shared))[1])

    def settled(shared: SharedInputs, form: Form, method: str) -> tuple[Tensor, Form]:
        met.append("settle")
        return settle(shared, form, method)

    monkeypatch.setattr(SharedInputs, "settle", settled)
    engine = rt.ClipEngine(model, max_norm=1.0)

    def losses(x: Tensor) -> Tensor:
        y = checkpoint(model[0], x, use_reentrant=False)
        return checkpoint(model[1], y, use_reentrant=False).square().mean((1, 2))

    engine.clipped_sum(losses, x)
    first = met.index("settle")
    assert "forget" in met[:first]  # the last layer ran again
    assert met[first:].count("forget") >= 5  # the attention's layers, and the end
    assert met[-1] == "forget"
