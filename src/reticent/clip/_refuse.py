"""Layers refused by name, before anything runs, and the conversion of batch normalisation.

Room: clip. May import torch, `reticent.errors`, `reticent.rules`.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm

from reticent.errors import ConfigError, UnsupportedModel
from reticent.rules._embedding import refuse_embedding_settings

_OF_TORCH: Final = (_BatchNorm.forward, nn.SyncBatchNorm.forward)  # normalise, and nothing else


def _where(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} at '{name or '(the model itself)'}'"


def _has_spectral_norm(module: nn.Module) -> bool:
    if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
        return True
    if not is_parametrized(module):
        return False
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    return any(
        type(step).__name__ == "_SpectralNorm"
        for steps in parametrizations.values()
        if isinstance(steps, nn.ModuleList)
        for step in steps
    )


def refuse_unsupported(model: nn.Module) -> None:
    """Refuse a model that holds a layer for which one example's influence cannot be bounded.

    This looks at types and settings only; what cannot be seen there is found when the model runs.

    Args:
        model: any module, in the mode (train or eval) in which it will run.

    Raises:
        UnsupportedModel[batch-norm]: batch normalisation that uses statistics of the batch.
        UnsupportedModel[embedding-max-norm, scale-grad-by-freq, embedding-bag, spectral-norm]: as the names
            say.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise UnsupportedModel(
                f"{_where(name, module)} mixes the examples of a batch. Convert it with "
                "reticent.fix(model) (group normalisation), or keep its statistics fixed with "
                "reticent.fix(model, batch_norm='freeze').",
                code="batch-norm",
            )
        trains = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, nn.Embedding):
            refuse_embedding_settings(
                module.max_norm, module.scale_grad_by_freq and trains, _where(name, module)
            )
        if isinstance(module, nn.EmbeddingBag) and trains:
            raise UnsupportedModel(
                f"{_where(name, module)} is not supported. Use nn.Embedding followed by a sum or mean, or "
                "freeze it with requires_grad_(False).",
                code="embedding-bag",
            )
        if _has_spectral_norm(module):
            raise UnsupportedModel(
                f"{_where(name, module)} has spectral normalisation, whose forward changes buffers and "
                "weights without noise. Remove it, or use torch.nn.utils.parametrizations.weight_norm.",
                code="spectral-norm",
            )


def _group_norm(old: _BatchNorm, max_groups: int) -> nn.GroupNorm:
    channels = old.num_features
    groups = math.gcd(channels, max_groups)
    new = nn.GroupNorm(groups, channels, eps=old.eps, affine=old.affine)
    if old.affine:
        with torch.no_grad():
            new.weight.copy_(old.weight)
            new.bias.copy_(old.bias)
        new.weight.requires_grad_(old.weight.requires_grad)
        new.bias.requires_grad_(old.bias.requires_grad)
        new.to(old.weight.device, old.weight.dtype)
    return new.train(old.training)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with statistics and scale fixed for good, whatever the mode.

    Args:
        old: the layer whose statistics are taken over; it must have some.
    """

    def __init__(self, old: _BatchNorm) -> None:
        super().__init__()
        assert old.running_mean is not None and old.running_var is not None
        mean, var = old.running_mean.detach().clone(), old.running_var.detach().clone()
        scale = torch.rsqrt(var + old.eps)
        if old.affine:
            scale = scale * old.weight.detach()
        shift = -mean * scale
        if old.affine:
            shift = shift + old.bias.detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x * scale + shift for each channel (axis 1)."""
        shape = [1, -1, *([1] * (x.dim() - 2))]
        return x * self.get_buffer("scale").view(shape) + self.get_buffer("shift").view(shape)


def _behind(name: str, old: _BatchNorm) -> dict[str, nn.Module]:
    """What the layer runs behind its normalisation: nothing, or `drop` and then `act`, as timm's layers do.

    Raises:
        UnsupportedModel[batch-norm]: its forward is neither torch's nor of that kind.
    """
    if "forward" not in vars(old) and type(old).forward in _OF_TORCH:
        return {}
    behind = {n: m for n in ("drop", "act") if isinstance(m := getattr(old, n, None), nn.Module)}
    if len(behind) < 2 or not _runs_only(old, behind):
        raise UnsupportedModel(
            f"{_where(name, old)} has a forward of its own, and what it does beside normalising would be "
            "lost. Replace it in the model by nn.GroupNorm or reticent.clip.FrozenBatchNorm and what it "
            "adds, or take another network.",
            code="batch-norm",
        )
    return behind


@torch.no_grad()
def _runs_only(old: _BatchNorm, behind: Mapping[str, nn.Module]) -> bool:
    """Whether in eval mode the layer is a frozen normalisation and then these modules.

    A copy in float64 is asked, on random inputs, with random statistics, scale and shift: its own may be
    0 or 1 and hide what is done with them. torch's global generator is left alone.
    """
    if any(t.is_meta for t in (*old.parameters(), *old.buffers())):
        return True  # only shapes are asked for
    probe = copy.deepcopy(old).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    for t in probe.parameters(recurse=False):
        t.copy_(torch.randn(t.shape, generator=generator))
    for t in probe.buffers(recurse=False):
        t.copy_(0.5 + torch.rand(t.shape, generator=generator))  # a variance is positive
    axes = 1 if isinstance(old, nn.BatchNorm1d) else 3 if isinstance(old, nn.BatchNorm3d) else 2
    x = 4.0 * torch.randn((4, old.num_features, *[3] * axes), generator=generator, dtype=torch.float64)
    try:
        found = probe(x.clone())
        if probe.running_mean is None:
            y = F.batch_norm(x, None, None, probe.weight, probe.bias, training=True, eps=probe.eps)
        else:
            y = FrozenBatchNorm(probe)(x)
        for name in behind:
            y = getattr(probe, name)(y)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == y.shape and torch.allclose(found, y)


def fix(
    model: nn.Module, *, batch_norm: Literal["group-norm", "freeze"] = "group-norm", num_groups: int = 16
) -> nn.Module:
    """A copy of the model with batch normalisation replaced by something that keeps examples apart.

    Args:
        model: left as it is.
        batch_norm: "group-norm" replaces each layer by group normalisation with the same scale and
            shift (train it again: its statistics are others); "freeze" keeps the layer's running
            statistics, scale and shift as constants (for pretrained models).
        num_groups: groups wanted; where it does not divide the channels, the greatest common
            divisor is taken.

    Returns:
        The copy. A one-group layer on a single value for each channel would erase its input, so
        1-D batch normalisation, and `nn.SyncBatchNorm`, whose input may be 1-D, becomes group
        normalisation only over at least two channels. Of timm's layers that run a `drop` and an activation
        `act` behind the normalisation, both are kept: the layer becomes `norm`, `drop` and `act` in sequence.

    Guarantee:
        With "freeze" the copy computes, in either mode, what the layer computed in eval mode (beside `drop`,
        which keeps its modes). A layer that does anything else is refused, not replaced.

    Raises:
        ConfigError[fix-mode]: `batch_norm` is neither of the two.
        UnsupportedModel[batch-norm]: "freeze" on a layer without running statistics, group
            normalisation of a single channel, a lazy layer that has seen no input, or a subclass whose
            forward does something else.
    """
    if batch_norm not in ("group-norm", "freeze"):
        raise ConfigError(
            f"batch_norm must be 'group-norm' or 'freeze', got {batch_norm!r}.", code="fix-mode"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and isinstance(module, LazyModuleMixin):
            raise UnsupportedModel(
                f"{_where(name, module)} does not know its number of channels yet. Run the model once on "
                "inputs that are not private, and convert it then.",
                code="batch-norm",
            )
    model = copy.deepcopy(model)

    def replacement(name: str, old: _BatchNorm) -> nn.Module:
        behind = _behind(name, old)
        norm = normalisation(name, old)
        return nn.Sequential(OrderedDict(norm=norm, **behind)).train(old.training) if behind else norm

    def normalisation(name: str, old: _BatchNorm) -> nn.Module:
        if batch_norm == "freeze":
            if old.running_mean is None:
                raise UnsupportedModel(
                    f"{_where(name, old)} has no running statistics to freeze. Use batch_norm='group-norm'.",
                    code="batch-norm",
                )
            return FrozenBatchNorm(old)
        if not isinstance(old, nn.BatchNorm2d | nn.BatchNorm3d):
            if old.num_features < 2:
                raise UnsupportedModel(
                    f"{_where(name, old)} has one channel: group normalisation would erase it. Remove it.",
                    code="batch-norm",
                )
            # On (B, C) a group of one channel is one value: normalising it gives 0.
            return _group_norm(
                old, math.gcd(old.num_features, num_groups) if old.num_features > num_groups else 1
            )
        return _group_norm(old, num_groups)

    if isinstance(model, _BatchNorm):
        return replacement("", model)
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                full = f"{name}.{child_name}" if name else child_name
                setattr(module, child_name, replacement(full, child))
    return model
