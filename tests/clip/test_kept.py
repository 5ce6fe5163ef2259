"""What sums are made of is what norms were taken of, whatever the model does to its memory in between."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import reticent as rt
from reticent.clipping import PerLayerClipping
from reticent.errors import UnsupportedModel
from tests.support import oracle

B, T, D = 3, 8, 64
METHODS = ("book-keeping", "ghost")


def _model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(D, D, bias=False) for _ in range(3)))


def _plain(model: nn.Module) -> Any:
    return lambda x: model(x).mean((1, 2))


def _into_one_buffer(way: str) -> saved_tensors_hooks:
    """Hooks that unpack everything of a shape into the same memory: exact for plain autograd."""
    buffers: dict[torch.Size, Tensor] = {}

    def unpack(packed: Tensor) -> Tensor:
        if packed.dim() != 3:
            return packed
        buffer = buffers.setdefault(packed.shape, torch.empty_like(packed))
        if way == "copy_":
            buffer.copy_(packed)
        elif way == "data":
            buffer.data.copy_(packed)
        else:
            buffer.numpy()[...] = packed.numpy()
        return buffer

    return saved_tensors_hooks(lambda t: t.detach().clone(), unpack)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ("copy_", "data", "numpy", "save_on_cpu"))
def test_hooks_may_unpack_into_the_same_memory(way: str, method: Any) -> None:
    model = _model()
    x = torch.randn(B, T, D)

    def losses(x: Tensor) -> Tensor:
        with save_on_cpu() if way == "save_on_cpu" else _into_one_buffer(way):
            return model(x).mean((1, 2))

    want, norms = oracle.loop_clipped_sum(model, _plain(model), x, 1e-4)
    assert min(norms) > 1e-4
    engine = rt.ClipEngine(model, max_norm=1e-4, method=method)
    got = engine.clipped_sum(losses, x)
    assert oracle.distance(got.total, want) < 1e-5 * 1e-4
    alone = engine.clipped_sum(losses, x[:1])
    assert float(oracle.norm_of(dict(alone.total))) <= 1e-4 * (1 + 1e-6)


def _writing(model: nn.Sequential) -> Any:
    """Losses whose backward writes to a gradient of the last layer when it comes to the first."""

    def losses(x: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def later(g: Tensor) -> None:
            seen[-1].mul_(100.0)

        y = model[0](x)
        y.register_hook(later)
        z = model[2](model[1](y))
        z.register_hook(lambda g: seen.append(g))
        return z.square().mean((1, 2))

    return losses


@pytest.mark.parametrize("tied", (False, True))
def test_what_is_written_to_before_it_is_added_is_refused(tied: bool) -> None:
    model, x = _model(), torch.randn(B, T, D)
    if tied:
        model[0].weight = model[2].weight  # waits for its other use
    engine = rt.ClipEngine(model, max_norm=1e-4)
    with pytest.raises(UnsupportedModel, match=r"'2?0?.*weight' is made of was written to") as raised:
        engine.clipped_sum(_writing(model), x)
    assert raised.value.code == "kept-written"


def test_what_is_added_before_it_is_written_to_is_fine() -> None:
    model, x = _model(), torch.randn(B, T, D)
    engine = rt.ClipEngine(model, clipping=PerLayerClipping(max_norm=1e-4))
    want = engine.clipped_sum(lambda x: model(x).square().mean((1, 2)), x)
    got = engine.clipped_sum(_writing(model), x)
    assert oracle.distance(got.total, want.total) < 1e-9
