"""Rules for normalisation layers with a trainable scale and shift.

Room: rules. May import torch and `reticent.errors`; holds functions and frozen records, no state.

Shape letters (this file): N rows, C channels; `*` any axes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from reticent.errors import UnsupportedModel
from reticent.rules._forms import Dense, Form
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved, is_constant, trainable_roles
from reticent.rules._rounding import at_least_float32

_FUSED_FROM: Final = 1 << 16  # entries of one unit
# Standard deviations that a group's mean may be from zero before it is subtracted first.
_FAR: Final = 16.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerNormMeeting:
    """y = (x - mean) * rstd * w + b over the last `len(shape)` axes."""

    shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    roles: frozenset[str]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        (x,) = inputs
        y, mean, rstd = torch.native_layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return y, (x, mean, rstd)

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        x, mean, rstd = saved
        if not needs[0]:
            return (None,)
        gx, _, _ = torch.ops.aten.native_layer_norm_backward.default(
            g, x, self.shape, mean, rstd, self.weight, self.bias, [True, False, False]
        )
        return (gx,)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`: units may not lie along an axis that is normalised over."""
        return layout.axis < output_dim - len(self.shape)

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        x, mean, rstd = saved
        k = len(self.shape)
        g_U, x_U, mean_U, rstd_U = (layout.positions(t, k) for t in (at_least_float32(g), x, mean, rstd))
        forms: dict[str, Form] = {}
        if "weight" in self.roles:
            if _fused_per_unit(g_U, x_U, mean_U):
                ask = [False, True, "bias" in self.roles]
                parts = [
                    torch.ops.aten.native_layer_norm_backward.default(
                        gu, xu, self.shape, mu, ru, self.weight, self.bias, ask
                    )
                    for gu, xu, mu, ru in zip(g_U, x_U, mean_U, rstd_U, strict=True)
                ]
                forms["weight"] = Dense(torch.stack([p[1] for p in parts]))
                if "bias" in self.roles:
                    forms["bias"] = Dense(torch.stack([p[2] for p in parts]))
                return forms
            normal = torch.sub(at_least_float32(x_U), mean_U).mul_(rstd_U)
            forms["weight"] = Dense(normal.mul_(g_U).sum(1))
        if "bias" in self.roles:
            forms["bias"] = Dense(g_U.sum(1))
        return forms


def _fused_per_unit(g_U: Tensor, x_U: Tensor, mean_U: Tensor) -> bool:
    """Whether a call for each unit beats passes over all: measured on CPU, where a call costs some 7 us."""
    same = g_U.dtype == x_U.dtype == mean_U.dtype
    return same and g_U.device.type == "cpu" and len(g_U) > 0 and g_U[0].numel() >= _FUSED_FROM


@dataclass(frozen=True, slots=True, eq=False)
class GroupNormMeeting:
    """y = normalise(x, within groups of channels) * w[c] + b[c]; x is (N, C, *)."""

    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    roles: frozenset[str]

    def _sizes(self, x: Tensor) -> tuple[int, int, int]:
        return x.shape[0], x.shape[1], math.prod(x.shape[2:])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        x = inputs[0].contiguous()
        y, mean, rstd = torch.native_group_norm(
            x, self.weight, self.bias, *self._sizes(x), self.num_groups, self.eps
        )
        return y, (x, mean, rstd)

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`: the gradients of scale and shift, row by row, come with that of the input."""
        x, mean, rstd = saved
        if not needs[0]:
            return (None,)
        # Elsewhere the kernel's grid is limited to so many groups.
        here = x.device.type == "cpu" and g.dtype == x.dtype == mean.dtype == at_least_float32(mean).dtype
        if self.roles and here and _is_near(x, mean, rstd):
            weight = x.new_ones(x.shape[1]) if self.weight is None else self.weight.to(x.dtype)
            return _rows_as_channels(x, g, mean, rstd, weight, [True, True, True])
        gx, _, _ = torch.ops.aten.native_group_norm_backward.default(
            g.contiguous(), x, mean, rstd, self.weight, *self._sizes(x), self.num_groups, [True, False, False]
        )
        return (gx,)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`."""
        return layout.axis == 0

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        if len(saved) > 3:
            scale_NC, shift_NC = saved[3:]
        else:
            x, mean, rstd = (at_least_float32(t) for t in saved)
            scale_NC, shift_NC = _row_gradients(x, at_least_float32(g), mean, rstd)
        found = {"weight": scale_NC, "bias": shift_NC}
        return {role: Dense(layout.units_first(found[role]).sum(1)) for role in sorted(self.roles)}


def _row_gradients(x: Tensor, g: Tensor, mean_NG: Tensor, rstd_NG: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's gradients of scale and shift of a group normalisation, (N, C) each."""
    if _is_near(x, mean_NG, rstd_NG):
        weight = x.new_empty(x.shape[1])  # only its shape is looked at
        return _rows_as_channels(x, g, mean_NG, rstd_NG, weight, [False, True, True])[1:]
    rows = x.shape[0]
    per_group = x.reshape(rows, mean_NG.reshape(rows, -1).shape[1], -1)
    normal = (per_group - mean_NG.reshape(rows, -1, 1)) * rstd_NG.reshape(rows, -1, 1)
    g = g.reshape(rows, x.shape[1], -1)
    return (g * normal.reshape(g.shape)).sum(2), g.sum(2)


def _is_near(x: Tensor, mean_NG: Tensor, rstd_NG: Tensor) -> bool:
    """Whether torch's kernel, which subtracts means after summing, loses nothing; False in a traced graph.

    There no step may depend on values.
    """
    if isinstance(x, FakeTensor) or not x.numel():
        return False
    return not bool(((mean_NG * rstd_NG).abs() > _FAR).any())


def _rows_as_channels(
    x: Tensor, g: Tensor, mean_NG: Tensor, rstd_NG: Tensor, weight: Tensor, asked: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a group normalisation's input, scale (N, C) and shift (N, C), each where asked for.

    Torch's own kernel sums those of scale and shift over rows; rows laid side by side as channels, it has one
    to sum over. It reads the tensors once.
    """
    rows, channels = x.shape[:2]
    positions = math.prod(x.shape[2:])
    # The kernel takes every tensor as contiguous, and does not check.
    side_by_side = [t.reshape(1, -1, positions).contiguous() for t in (g, x)]
    gx, scale, shift = torch.ops.aten.native_group_norm_backward.default(
        *side_by_side,
        mean_NG.reshape(1, -1),
        rstd_NG.reshape(1, -1),
        weight.repeat(rows),
        1,
        rows * channels,
        positions,
        mean_NG.numel(),
        asked,
    )
    return gx.reshape(x.shape) if asked[0] else gx, scale.reshape(rows, -1), shift.reshape(rows, -1)


def _full_precision(recorder: Recorder, x: Tensor) -> Tensor:
    """Autocast runs normalisation in float32; the operations called inside a meeting must too."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return recorder.call(Tensor.float, x) if half and torch.is_autocast_enabled(x.device.type) else x


def layer_norm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.layer_norm`."""

    def bound(
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        if recorder.is_trainable(input) or not (
            is_constant(recorder, weight) and is_constant(recorder, bias)
        ):
            return NotImplemented
        roles = trainable_roles(recorder, {"weight": weight, "bias": bias})
        meeting = LayerNormMeeting(
            tuple(normalized_shape),
            None if weight is None else weight.detach(),
            None if bias is None else bias.detach(),
            eps,
            frozenset(roles),
        )
        return recorder.record(meeting, roles, (_full_precision(recorder, input),))

    return bound(*args, **kwargs)


def group_norm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.group_norm`."""

    def bound(
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        if recorder.is_trainable(input) or not (
            is_constant(recorder, weight) and is_constant(recorder, bias)
        ):
            return NotImplemented
        roles = trainable_roles(recorder, {"weight": weight, "bias": bias})
        meeting = GroupNormMeeting(
            num_groups,
            None if weight is None else weight.detach(),
            None if bias is None else bias.detach(),
            eps,
            frozenset(roles),
        )
        return recorder.record(meeting, roles, (_full_precision(recorder, input),))

    return bound(*args, **kwargs)


def _scale_and_shift(recorder: Recorder, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y * weight[c] + bias[c], channels along axis 1, as recorded operations."""
    channels = [1, -1, *([1] * (y.dim() - 2))]
    if weight is not None:
        y = recorder.call(torch.mul, y, recorder.call(Tensor.view, weight, channels))
    if bias is not None:
        y = recorder.call(torch.add, y, recorder.call(Tensor.view, bias, channels))
    return y


def rms_norm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.rms_norm`: normalise, then multiply."""

    def bound(
        input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Any:
        if recorder.is_trainable(input) or weight is None:
            return NotImplemented
        normal = recorder.call(F.rms_norm, input, normalized_shape, None, eps)
        return recorder.call(torch.mul, normal, weight)

    return bound(*args, **kwargs)


def instance_norm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.instance_norm`: normalise, then scale and shift."""

    def bound(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        if recorder.is_trainable(input):
            return NotImplemented
        normal = recorder.call(
            F.instance_norm, input, running_mean, running_var, None, None, use_input_stats, momentum, eps
        )
        return _scale_and_shift(recorder, normal, weight, bias)

    return bound(*args, **kwargs)


def batch_norm(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.batch_norm` with fixed statistics: normalise, then scale and shift.

    Raises:
        UnsupportedModel[batch-norm]: with statistics of the batch, examples mix.
    """

    def bound(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        if training:
            raise UnsupportedModel(
                "Batch normalisation in training mode mixes the examples of a batch. Convert it with "
                "reticent.fix(model), or put it in eval mode (fixed statistics).",
                code="batch-norm",
            )
        if recorder.is_trainable(input):
            return NotImplemented
        normal = recorder.call(
            F.batch_norm, input, running_mean, running_var, None, None, False, momentum, eps
        )
        return _scale_and_shift(recorder, normal, weight, bias)

    return bound(*args, **kwargs)
