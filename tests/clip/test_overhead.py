"""What a clipped sum does once, or not at all, whatever the number of layers and calls."""

import pytest
import torch
from torch import Tensor, nn

from reticent.clip import ClipEngine, _engine
from reticent.clip._capture import Capture
from reticent.clipping import GroupedClipping, PerLayerClipping
from reticent.errors import UnsupportedModel


def deep(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(3, 3), nn.Tanh())])


def seen_in_backward(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the recording mode is asked about something outside of the forward."""
    model, seen, plain = deep(layers), [], Capture.__torch_function__

    def asked(self, func, types, args=(), kwargs=None):
        if not self._in_forward:
            seen.append(func)
        return plain(self, func, types, args, kwargs)

    engine, x = ClipEngine(model, max_norm=1.0), torch.randn(4, 3)
    engine.clipped_sum(lambda x: model(x).square().sum(1), x)
    with monkeypatch.context() as patch:
        patch.setattr(Capture, "__torch_function__", asked)
        engine.clipped_sum(lambda x: model(x).square().sum(1), x)
    return len(seen)


def test_the_recording_mode_is_not_asked_about_what_a_backward_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = seen_in_backward(2, monkeypatch), seen_in_backward(12, monkeypatch)
    assert few == many


def test_groups_are_looked_up_again_when_what_they_depend_on_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, plain = deep(3), [], _engine.resolve
    monkeypatch.setattr(_engine, "resolve", lambda *args: asked.append(args) or plain(*args))
    clipping = GroupedClipping(max_norms=(("0.*", 1.0), ("*", 2.0)))
    engine, x = ClipEngine(model, clipping=clipping), torch.randn(4, 3)

    def add(**options: PerLayerClipping) -> int:
        found = engine.clipped_sum(lambda x: model(x).square().sum(1), x, **options).group_norms
        assert found is not None
        return found.shape[1]

    assert [add(), add(), add()] == [2, 2, 2] and len(asked) == 1
    assert add(clipping=PerLayerClipping(max_norm=1.0)) > 2 and len(asked) == 2
    assert add() == 2
    model[0].requires_grad_(False)  # so that a pattern matches nothing
    with pytest.raises(Exception, match="clip-groups"):
        add()


def test_a_gradient_past_every_recorded_operation_is_still_refused() -> None:
    """What is looked at outside the recording mode is the same `.grad`."""
    model = nn.Linear(3, 3)

    def losses(x: Tensor) -> Tensor:
        class Sneaks(torch.autograd.Function):
            @staticmethod
            def forward(ctx, y: Tensor) -> Tensor:
                return y.clone()

            @staticmethod
            def backward(ctx, g: Tensor) -> Tensor:
                for leaf in leaves:
                    leaf.grad = torch.ones_like(leaf)
                return g

        return Sneaks.apply(model(x)).sum(1)

    engine, leaves = ClipEngine(model, max_norm=1.0), []
    plain = Capture.__init__

    def kept(self: Capture, *args, **kwargs) -> None:
        plain(self, *args, **kwargs)
        leaves[:] = self.leaves.values()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Capture, "__init__", kept)
        with pytest.raises(UnsupportedModel, match="hidden-use"):
            engine.clipped_sum(losses, torch.randn(4, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_tensors_of_a_scripted_part_are_constants_of_the_model() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 3))
            self.scripted = torch.jit.script(Scale())

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.w * self.scripted.scale)

    model = Scaled()
    engine = ClipEngine(model, max_norm=1.0)
    assert engine.clipped_sum(lambda x: model(x).sum(1), torch.randn(4, 3)).norms.shape == (4,)
