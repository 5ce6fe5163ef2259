"""Rules for convolutions and transposed convolutions in one, two and three dimensions.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): N rows (U units of k rows each, unit-major), C channels, K patch size
(input channels of a group times kernel), P output positions, O output channels.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._conv_methods import (
    PART_BYTES,
    ConvSettings,
    Parts,
    by_groups,
    by_loop,
    gram_chunk,
    grid_of,
    pixel_gram,
    units_a_call,
)
from reticent.rules._forms import Dense, Form, Method, Outer, num_bytes
from reticent.rules._layout import Layout
from reticent.rules._meeting import Recorder, Saved, is_constant, trainable_roles
from reticent.rules._rounding import Doubts, at_least_float32, of_factor, sum_of_squares

# Rough costs on a CPU, in operations of a matrix product: one more call of a convolution, one more
# channel group, and how much faster than a matrix product a convolution runs.
_CALL: Final = 2.5e6
_GROUP: Final = 3e6
_FASTER: Final = 2.2
# Channels up to which a convolution whose channel groups are the units is tried.
_GROUPED: Final = 64
# A Gram matrix that takes so many times the operations of the gradients themselves is not tried.
_HOPELESS: Final = 16
# A traced graph holds at most so many chunks of one convolution.
_TRACED: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class ConvForm:
    """Unit u's gradient is the weight gradient of its rows; formed when asked for.

    Methods: "gram" never forms a gradient; the others form each unit's, by a loop over units, by one
    convolution whose channel groups are the units, or by unfolding the patches, and keep it
    ("keep-loop", ..) or form the sum anew ("drop-loop", ..).
    """

    conf: ConvSettings
    x: Tensor
    g: Tensor
    weight: Tensor
    num_units: int

    def methods(self) -> tuple[Method, ...]:
        """See `Form`."""
        units, size = self.num_units, self.g.element_size()
        own, full = num_bytes(self.x, self.g), size * units * self.weight.numel()
        plain = 2.0 * self.x.shape[0] * math.prod(self.g.shape[2:]) * self.weight.numel() / _FASTER
        methods = []
        for name, extra, copies in self._makers(plain):
            chunk = full if name == "groups" else min(full, max(PART_BYTES, full // max(units, 1)))
            keep = Method(name=f"keep-{name}", flops=extra, moved=5.0 * full, held=full, peak=copies)
            drop = Method(
                name=f"drop-{name}",
                flops=extra + plain,
                moved=3.0 * full + own,
                held=own,
                peak=chunk + copies,
            )
            methods += [keep, drop]
        if self._disjoint():
            methods.append(self._gram_of_disjoint())
        elif self._one_row() and self.x.numel() and self.g.numel():
            grid = grid_of(self.conf, tuple(self.weight.shape[2:]), tuple(self.g.shape[2:]))
            phases, pixels, flat = len(grid.phases), grid.num_pixels**2, grid.num_flat**2
            flops = 2.0 * units * (phases * pixels * self.x.shape[1] + flat * self.g.shape[1])
            together = min(units, gram_chunk(self.conf, grid, self.x)) * self.conf.groups
            if flops <= _HOPELESS * _FASTER * plain:
                gram = Method(
                    name="gram",
                    flops=flops,
                    moved=4.0 * size * units * self.conf.groups * flat + 2.0 * own,
                    held=own,
                    peak=size * together * (phases * pixels + 3 * flat),
                )
                methods.append(gram)
        return tuple(methods)

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        if method == "gram":
            squares = self._patches().settle("gram")[0] if self._disjoint() else self._pixel_gram()
            return self._with_rounding(squares), self
        fate, _, maker = method.partition("-")
        if fate == "keep":
            parts = tuple(self._parts(maker))
            return torch.cat([sum_of_squares(part) for part in parts]), Parts(parts)
        dropped = [sum_of_squares(part) for part in self._parts(maker)]
        return self._with_rounding(torch.cat(dropped)), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """By the method that is cheapest on paper; with `doubts`, of those that are few operations."""
        if doubts is None:
            return self.settle(_cheapest([m for m in self.methods() if not m.name.startswith("keep")]))[0]
        method = _cheapest([m for m in self.methods() if self._is_short(m.name)])
        if method == "gram":
            square_U = self._patches().squared_norm(doubts) if self._disjoint() else self._pixel_gram(doubts)
        else:
            parts = self._parts(method.removeprefix("drop-"))
            square_U = torch.cat([sum_of_squares(part, doubts) for part in parts])
        return self._with_rounding(square_U, doubts)

    def _is_short(self, method: str) -> bool:
        """Whether a method that keeps nothing can be written down as a graph that is not too long."""
        if method == "gram":
            if self._disjoint():
                return True
            grid = grid_of(self.conf, tuple(self.weight.shape[2:]), tuple(self.g.shape[2:]))
            return self.num_units <= _TRACED * gram_chunk(self.conf, grid, self.x)
        makers = [name for name, _, _ in self._makers(0.0) if name != "loop"]
        return method in [f"drop-{name}" for name in makers or ["loop"]]

    def dense(self) -> Tensor:
        """See `Form`."""
        kept = [m for m in self.methods() if m.name.startswith("keep")]
        parts = list(self._parts(_cheapest(kept).removeprefix("keep-")))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`: one summed weight gradient."""
        k = self.x.shape[0] // max(self.num_units, 1)
        per_row = weights.repeat_interleave(k).to(self.g.dtype).view(-1, *([1] * (self.g.dim() - 1)))
        x, g = self.x, self.g
        if keep is not None:
            kept = keep.repeat_interleave(k).view(per_row.shape)
            x, g = torch.where(kept, x, 0), torch.where(kept, g, 0)
        out += self.conf.backward(g * per_row, x, self.weight, (False, True))[1].to(out.dtype)

    def _one_row(self) -> bool:
        return not self.conf.transposed and self.x.shape[0] == self.num_units > 0

    def _disjoint(self) -> bool:
        """Whether no input lies in two patches, so that patches are a copy of the input (ViT's embedding)."""
        return (
            self._one_row()
            and self.conf.groups == 1
            and self.x.dim() in (3, 4)
            and self.x.numel() * self.g.numel() > 0
            and not self._is_pointwise()
            and all(
                s > d * (k - 1)
                for s, d, k in zip(self.conf.stride, self.conf.dilation, self.weight.shape[2:], strict=True)
            )
        )

    def _gram_of_disjoint(self) -> Method:
        """As a matrix product over patches: a Gram matrix of them costs less than one of pixels."""
        units, positions = self.num_units, math.prod(self.g.shape[2:])
        unfolded = self.x.element_size() * units * positions * self.weight[0].numel()
        own, gram = num_bytes(self.x, self.g), self.g.element_size() * units * positions**2
        return Method(
            name="gram",
            flops=2.0 * units * positions**2 * (self.weight[0].numel() + self.g.shape[1]),
            moved=4.0 * gram + 2.0 * (own + unfolded),
            held=own,
            peak=2 * gram + unfolded,
        )

    def _pixel_gram(self, doubts: Doubts | None = None) -> Tensor:
        return pixel_gram(self.conf, self.x, self.g, self.weight, doubts)

    def _makers(self, plain: float) -> list[tuple[str, float, int]]:
        """Ways to form gradients: name, operations beyond `plain`, bytes of copies they need."""
        narrow, few = self.weight.shape[1], self._units_a_call()
        slow = 4 < narrow < 32 and few == 1 and not self.conf.transposed  # half as fast as of many rows
        makers = [("loop", _CALL * -(-self.num_units // few) + (plain if slow else 0.0), 0)]
        if not self.conf.transposed and max(self.x.shape[1], self.g.shape[1]) <= _GROUPED:
            copies = num_bytes(self.x, self.g) if self.x.shape[0] > self.num_units else 0
            makers.append(("groups", _GROUP * self.num_units + (plain if narrow <= 4 else 0.0), copies))
        if self._one_row() and self.conf.groups == 1 and self.x.dim() in (3, 4):
            unfolded = math.prod(self.g.shape[2:]) * self.weight[0].numel() * self.x.shape[0]
            copies = 0 if self._is_pointwise() else self.x.element_size() * unfolded
            # As much as a matrix product is slower, and the patches are written and read.
            makers.append(("unfold", (_FASTER - 1) * plain + 20.0 * copies, copies))
        return makers

    def _units_a_call(self) -> int:
        return units_a_call(self.conf, self.x, self.g, self.weight, self.num_units)

    def _parts(self, maker: str) -> Iterator[Tensor]:
        """The units' gradients, (some, *weight) at a time; at least one."""
        if self.num_units == 0:
            yield self.g.new_zeros(0, *self.weight.shape)
        elif maker == "unfold":
            yield self._patches().dense().reshape(self.num_units, *self.weight.shape)
        elif maker == "groups":
            yield by_groups(self.conf, self.x, self.g, self.weight, self.num_units)
        else:
            yield from by_loop(self.conf, self.x, self.g, self.weight, self.num_units)

    def _with_rounding(self, square_U: Tensor, doubts: Doubts | None = None) -> Tensor:
        """Add to the norm what rounding may add to the sum over positions, when it is formed again."""
        if self.num_units == 0:
            return square_U
        sizes = [
            of_factor(sum_of_squares(t.reshape(self.num_units, -1), doubts), t) for t in (self.x, self.g)
        ]
        overlap = math.prod(self.weight.shape[2:])  # an input lies in at most so many patches
        rounding_U = torch.finfo(self.g.dtype).eps * (overlap * sizes[0] * sizes[1]).sqrt()
        return (square_U.sqrt() + rounding_U).square()

    def _is_pointwise(self) -> bool:
        return all(n == 1 for n in self.weight.shape[2:]) and not any(self.conf.padding)

    def _patches(self) -> Outer:
        """The convolution as a matrix product over patches, for one row a unit, where torch can unfold."""
        if self._is_pointwise():
            x = self.x[(..., *(slice(None, None, s) for s in self.conf.stride))]
            return Outer(x.flatten(2).mT, self.g.flatten(2).mT)
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


def _cheapest(methods: list[Method]) -> str:
    return min(methods, key=lambda m: m.flops + 10 * m.moved).name


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
            conf, weight = self.conf, at_least_float32(self.weight)
            swaps = all(o < s for o, s in zip(conf.output_padding, conf.stride, strict=True))
            if conf.transposed and swaps:  # an ordinary convolution of g, whose gradient is x
                conf = replace(conf, transposed=False, output_padding=(0,) * len(conf.stride))
                forms["weight"] = ConvForm(conf, g, x, weight, layout.num_units)
            else:
                forms["weight"] = ConvForm(conf, x, g, weight, layout.num_units)
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
