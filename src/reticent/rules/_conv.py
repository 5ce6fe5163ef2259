"""Rules for convolutions and transposed convolutions in one, two and three dimensions.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): N rows (U units of k rows each, unit-major), C channels, K patch size
(input channels of a group times kernel), P output positions, O output channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._forms import Dense, Doubts, Form, Outer, at_least_float32
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved, is_constant, trainable_roles

# Numbers a materialised gradient may hold over all units before it is dropped and formed again.
_HOLD: Final = 1 << 24
# Channels up to which one grouped convolution beats a loop over rows (measured on CPU).
_GROUPED: Final = 64
# Numbers in one row's patches up to which unfolding and one batched product beat both.
_UNFOLD: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class ConvSettings:
    """A convolution's settings, one number for each spatial axis; padding is symmetric zeros."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """Gradients of (input, weight), summed over rows, each where asked for."""
        gx, gw, _ = torch.ops.aten.convolution_backward.default(
            g,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            [*mask, False],
        )
        return gx, gw


def _rows_by_loop(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """(N, *weight): one weight gradient for each row."""
    rows = [conf.backward(g[n : n + 1], x[n : n + 1], weight, (False, True))[1] for n in range(x.shape[0])]
    return torch.stack(rows) if rows else x.new_zeros(0, *weight.shape)


def _rows_by_groups(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """(N, *weight): all rows in one convolution whose groups are the rows."""
    num_rows = x.shape[0]
    wide = ConvSettings(
        conf.stride, conf.padding, conf.dilation, False, conf.output_padding, num_rows * conf.groups
    )
    weights = weight.new_empty(1).expand(num_rows * weight.shape[0], *weight.shape[1:])
    x = x.reshape(1, -1, *x.shape[2:])
    g = g.reshape(1, -1, *g.shape[2:])
    return wide.backward(g, x, weights, (False, True))[1].reshape(num_rows, *weight.shape)


@dataclass(frozen=True, slots=True, eq=False)
class ConvForm:
    """Unit u's gradient is the weight gradient of its rows; formed when asked for, never held."""

    conf: ConvSettings
    x: Tensor
    g: Tensor
    weight: Tensor
    num_units: int

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """By a Gram matrix over output positions where that is cheaper, else materialised."""
        patches = self._patches() if self.by_gram() else None
        if patches is not None:
            return patches.squared_norm(doubts)
        return self._with_rounding(Dense(self.dense()).squared_norm(doubts))

    def _with_rounding(self, square_U: Tensor) -> Tensor:
        """Add to the norm what rounding may add to the sum over positions, when it is formed again."""
        if self.num_units == 0:
            return square_U
        sizes = [Dense(t.reshape(self.num_units, -1)).squared_norm() for t in (self.x, self.g)]
        overlap = math.prod(self.weight.shape[2:])  # an input lies in at most so many patches
        rounding_U = torch.finfo(self.g.dtype).eps * (overlap * sizes[0] * sizes[1]).sqrt()
        return (square_U.sqrt() + rounding_U).square()

    def _patches(self) -> Outer | None:
        """The convolution as a matrix product over patches, for one row a unit, where torch can unfold."""
        plain = not self.conf.transposed and self.conf.groups == 1 and self.x.dim() in (3, 4)
        if not plain or self.x.shape[0] != self.num_units or self.num_units == 0:
            return None
        lift = self.x.dim() == 3  # one dimension is two, of height one
        x = self.x.unsqueeze(2) if lift else self.x
        one, none = ((1,), (0,)) if lift else ((), ())
        x_NKP = F.unfold(
            x,
            (*one, *self.weight.shape[2:]),
            dilation=(*one, *self.conf.dilation),
            padding=(*none, *self.conf.padding),
            stride=(*one, *self.conf.stride),
        )
        return Outer(x_NKP.mT, self.g.flatten(2).mT)

    def _sizes(self) -> tuple[int, int, int]:
        """Positions, fan-in (of a group), output channels."""
        return math.prod(self.g.shape[2:]), self.weight[0].numel(), self.weight.shape[0]

    def by_gram(self) -> bool:
        """Whether a Gram matrix over positions is cheaper than the gradient itself."""
        positions, fan_in, num_out = self._sizes()
        return 2 * positions * (fan_in + num_out) <= fan_in * num_out

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`: one summed weight gradient."""
        k = self.x.shape[0] // max(self.num_units, 1)
        per_row = weights.repeat_interleave(k).to(self.g.dtype).view(-1, *([1] * (self.g.dim() - 1)))
        x, g = self.x, self.g
        if keep is not None:
            kept = keep.repeat_interleave(k).view(per_row.shape)
            x, g = torch.where(kept, x, 0), torch.where(kept, g, 0)
        out += self.conf.backward(g * per_row, x, self.weight, (False, True))[1].to(out.dtype)

    def dense(self) -> Tensor:
        """See `Form`."""
        positions, fan_in, _ = self._sizes()
        patches = self._patches() if positions * fan_in <= _UNFOLD else None
        if patches is not None:
            return patches.dense().reshape(self.num_units, *self.weight.shape)
        channels = max(self.x.shape[1], self.g.shape[1])
        by_groups = not self.conf.transposed and channels <= _GROUPED and self.x.shape[0] > 0
        method: Callable[..., Tensor] = _rows_by_groups if by_groups else _rows_by_loop
        rows = method(self.conf, self.x, self.g, self.weight)
        return rows.reshape(self.num_units, -1, *self.weight.shape).sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class ConvMeeting:
    """A convolution of (N, C, *) with a trainable weight, a trainable bias, or both."""

    conf: ConvSettings
    weight: Tensor
    bias: Tensor | None
    roles: frozenset[str]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Saved]:
        """See `Meeting`."""
        (x,) = inputs
        return self.conf.forward(x, self.weight, self.bias), (x,)

    def backward(self, saved: Saved, g: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """See `Meeting`."""
        if not needs[0]:
            return (None,)
        return (self.conf.backward(g, saved[0].to(g.dtype), self.weight.to(g.dtype), (True, False))[0],)

    def accepts(self, layout: Layout, output_dim: int) -> bool:
        """See `Meeting`."""
        return layout.axis == 0

    def forms(self, saved: Saved, g: Tensor, layout: Layout) -> Mapping[str, Form]:
        """See `Meeting`."""
        g = layout.units_first(at_least_float32(g)).flatten(0, 1)
        forms: dict[str, Form] = {}
        if "weight" in self.roles:
            x = layout.units_first(at_least_float32(saved[0])).flatten(0, 1)
            weight = at_least_float32(self.weight)
            form = ConvForm(self.conf, x.contiguous(), g.contiguous(), weight, layout.num_units)
            hold = not form.by_gram() and layout.num_units * weight.numel() <= _HOLD
            forms["weight"] = Dense(form.dense()) if hold else form
        if "bias" in self.roles:
            forms["bias"] = Dense(g.flatten(2).sum(2).reshape(layout.num_units, -1, g.shape[1]).sum(1))
        return forms


def _tuple(value: int | tuple[int, ...] | list[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _record(recorder: Recorder, conf: ConvSettings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    if (
        recorder.is_trainable(x)
        or x.dim() != weight.dim()
        or not (is_constant(recorder, weight) and is_constant(recorder, bias))
    ):
        return NotImplemented
    roles = trainable_roles(recorder, {"weight": weight, "bias": bias})
    fixed_bias = None if bias is None else bias.detach()
    return recorder.record(ConvMeeting(conf, weight.detach(), fixed_bias, frozenset(roles)), roles, (x,))


def conv(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.conv1d`, `conv2d`, `conv3d`; padding a number, 'same' or 'valid'."""

    def bound(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        dims = weight.dim() - 2
        spread, zeros = _tuple(dilation, dims), (0,) * dims
        if padding == "valid":
            pad = zeros
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
            pad = tuple(t // 2 for t in total)
            odd = [t % 2 for t in total]
            if any(odd):  # the extra zero goes to the right
                input = recorder.call(F.pad, input, [p for o in reversed(odd) for p in (0, o)])
        else:
            pad = _tuple(padding, dims)
        conf = ConvSettings(_tuple(stride, dims), pad, spread, False, zeros, groups)
        return _record(recorder, conf, input, weight, bias)

    return bound(*args, **kwargs)


def conv_transpose(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.conv_transpose1d`, `conv_transpose2d`, `conv_transpose3d`."""

    def bound(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        dims = weight.dim() - 2
        conf = ConvSettings(
            _tuple(stride, dims),
            _tuple(padding, dims),
            _tuple(dilation, dims),
            True,
            _tuple(output_padding, dims),
            groups,
        )
        return _record(recorder, conf, input, weight, bias)

    return bound(*args, **kwargs)
