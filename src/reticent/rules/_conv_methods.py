"""Ways to get a convolution's per-unit weight gradients, or only their norms.

Every function takes an ordinary convolution: a transposed one is the ordinary one whose input is its
gradient and whose gradient is its input.

Room: rules. May import torch; holds functions and frozen records, no state.

Shape letters (this file): N rows (U units of k rows each, unit-major), C input channels, O output
channels, I input channels of one channel group, P output positions.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._forms import Dense, Form, Method, num_bytes
from reticent.rules._rounding import Doubts, guarded, sum_of_squares

# Numbers in the Gram matrices that are looked at together: on a CPU they should stay in its cache.
_CHUNK_CPU: Final = 1 << 19
_CHUNK: Final = 1 << 24
# Bytes of gradients that are formed at once.
PART_BYTES: Final = 1 << 22
# A loop takes so many units in one call, as channel groups, where a unit's gradient has fewer entries than
# this (measured on a CPU: a fifth less time and more; larger ones take up to three times as long).
_TOGETHER: Final = ((8, 1 << 17), (4, 1 << 18))
# Input channels from which that pays.
_TOGETHER_FROM: Final = 5


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

    def with_groups(self, groups: int) -> "ConvSettings":
        """The same settings with another number of channel groups."""
        return ConvSettings(
            self.stride, self.padding, self.dilation, self.transposed, self.output_padding, groups
        )


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Units' gradients in pieces, (some, *parameter) each, in the order of the units.

    Small pieces live in memory that the backward has just given back; one large tensor would have to
    be mapped anew in every step, which costs as much as what it holds.
    """

    grads: tuple[Tensor, ...]

    def methods(self) -> tuple[Method, ...]:
        """See `Form`."""
        size = num_bytes(*self.grads)
        return (Method(name="keep", flops=0.0, moved=2.0 * size, held=size, peak=0),)

    def settle(self, method: str) -> tuple[Tensor, Form]:
        """See `Form`."""
        return self.squared_norm(), self

    def squared_norm(self, doubts: Doubts | None = None) -> Tensor:
        """See `Form`."""
        return torch.cat([sum_of_squares(grad, doubts) for grad in self.grads])

    def add_weighted(self, weights: Tensor, keep: Tensor | None, out: Tensor) -> None:
        """See `Form`."""
        start = 0
        for grad in self.grads:
            some = slice(start, start + len(grad))
            Dense(grad).add_weighted(weights[some], None if keep is None else keep[some], out)
            start += len(grad)

    def dense(self) -> Tensor:
        """See `Form`."""
        return torch.cat(self.grads)


def by_loop(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor, num_units: int) -> Iterator[Tensor]:
    """(some, *weight) at a time: one weight gradient for each unit, of all its rows."""
    few = units_a_call(conf, x, g, weight, num_units)
    if few > 1:
        yield from _a_few_a_call(conf, x, g, weight, few)
        return
    k, size = x.shape[0] // num_units, max(1, PART_BYTES // max(1, g.element_size() * weight.numel()))
    for start in range(0, num_units, size):
        made = g.new_empty(min(size, num_units - start), *weight.shape)
        for i in range(len(made)):
            rows = slice((start + i) * k, (start + i + 1) * k)
            made[i] = conf.backward(g[rows], x[rows], weight, (False, True))[1]
        yield made


def units_a_call(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor, num_units: int) -> int:
    """How many units a loop takes at once."""
    one_row = x.shape[0] == num_units and x.is_contiguous() and g.is_contiguous()  # nothing is copied
    plain = x.device.type == "cpu" and conf.groups == 1 and not conf.transposed
    if one_row and plain and weight.shape[1] >= _TOGETHER_FROM:
        return next((few for few, size in _TOGETHER if weight.numel() < size), 1)
    return 1


def _a_few_a_call(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor, few: int) -> Iterator[Tensor]:
    """Rows of `few` units side by side as channels, which is how they lie; and what is left by itself."""
    whole = len(x) // few
    weights = weight.new_empty(1).expand(few * weight.shape[0], *weight.shape[1:])
    wide = conf.with_groups(few)
    if whole:
        sides = [t[: whole * few].reshape(whole, few * t.shape[1], *t.shape[2:]).split(1) for t in (g, x)]
        for g_1, x_1 in zip(*sides, strict=True):
            yield wide.backward(g_1, x_1, weights, (False, True))[1].unflatten(0, (few, -1))
    if left := len(x) - whole * few:
        yield by_groups(conf, x[-left:], g[-left:], weight, left)


def by_groups(conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor, num_units: int) -> Tensor:
    """(U, *weight): one convolution whose channel groups are the units, and whose rows are theirs."""

    def side_by_side(t: Tensor) -> Tensor:  # (U * k, C, *) -> (k, U * C, *)
        return t.unflatten(0, (num_units, -1)).transpose(0, 1).flatten(1, 2)

    weights = weight.new_empty(1).expand(num_units * weight.shape[0], *weight.shape[1:])
    wide = conf.with_groups(num_units * conf.groups)
    made = wide.backward(side_by_side(g), side_by_side(x), weights, (False, True))[1]
    return made.reshape(num_units, *weight.shape)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a convolution's patches lie in its padded input, for `pixel_gram`.

    The input is cut into phases, one for each remainder of a position modulo the stride that the kernel
    touches, and each phase is laid out flat. An entry of the kernel then sees the output positions as
    a run of one phase, `num_flat` long. Runs pass over the ends of lines: there the gradient is
    padded with zeros.

    Args:
        line: sizes of one phase.
        entries: of the kernel -> its phase (index into `phases`) and where its run starts.
        phases: remainders, for each axis.
        shifts: for each axis, what an entry of the kernel adds to the start of the run.
        num_flat: length of a run.
    """

    line: tuple[int, ...]
    entries: tuple[tuple[int, int], ...]
    phases: tuple[tuple[int, ...], ...]
    shifts: tuple[tuple[int, ...], ...]
    num_flat: int

    @property
    def num_pixels(self) -> int:
        """Of one phase."""
        return math.prod(self.line)


def grid_of(conf: ConvSettings, kernel: tuple[int, ...], positions: tuple[int, ...]) -> Grid:
    """The grid of a convolution, from its kernel's and its output's sizes."""
    reach = [[t * d for t in range(k)] for k, d in zip(kernel, conf.dilation, strict=True)]
    line = tuple(n + r[-1] // s for n, r, s in zip(positions, reach, conf.stride, strict=True))
    steps = [math.prod(line[axis + 1 :]) for axis in range(len(line))]
    shifts = tuple(
        tuple((t // s) * step for t in r) for r, s, step in zip(reach, conf.stride, steps, strict=True)
    )
    remainders = [[t % s for t in r] for r, s in zip(reach, conf.stride, strict=True)]
    phases = tuple(dict.fromkeys(itertools.product(*remainders)))
    entries = tuple(
        (phases.index(phase), sum(start))
        for phase, start in zip(itertools.product(*remainders), itertools.product(*shifts), strict=True)
    )
    num_flat = sum((n - 1) * step for n, step in zip(positions, steps, strict=True)) + 1
    return Grid(line, entries, phases, shifts, num_flat)


def _flat_phases(conf: ConvSettings, grid: Grid, x: Tensor) -> Tensor:
    """(N, C, *) -> (N, phases, C, pixels)."""
    pads: list[int] = []
    for axis in reversed(range(len(grid.line))):
        left = conf.padding[axis]
        pads += [left, grid.line[axis] * conf.stride[axis] - x.shape[2 + axis] - left]
    x = F.pad(x, pads)  # a negative pad cuts off what no patch holds
    cuts = [
        x[(..., *(slice(start, None, s) for start, s in zip(phase, conf.stride, strict=True)))].flatten(2)
        for phase in grid.phases
    ]
    return torch.stack(cuts, 1) if len(cuts) > 1 else cuts[0].unsqueeze(1)


def _flat_gradient(grid: Grid, g: Tensor) -> Tensor:
    """(N, O, *) -> (N, O, num_flat), zero past the ends of lines."""
    pads = [p for axis in reversed(range(len(grid.line))) for p in (0, grid.line[axis] - g.shape[2 + axis])]
    return F.pad(g, pads).flatten(2)[..., : grid.num_flat]


def _gram_of_patches(grid: Grid, pixels: Tensor) -> Tensor:
    """(.., phases, pixels, pixels) inner products of pixels -> (.., num_flat, num_flat) of patches.

    A patch is its pixels, so an inner product of patches is a sum of inner products of pixels along a
    diagonal; over one phase the sum goes axis by axis.
    """

    def run(t: Tensor, start: int, length: int) -> Tensor:
        return t[..., start : start + length, start : start + length]

    if len(grid.phases) > 1:
        (phase, start), *rest = grid.entries
        total = run(pixels.select(-3, phase), start, grid.num_flat).clone()
        for phase, start in rest:
            total += run(pixels.select(-3, phase), start, grid.num_flat)
        return total
    total = pixels.squeeze(-3)
    for axis in reversed(range(len(grid.line))):
        first, *rest = grid.shifts[axis]
        if not rest:
            continue
        length = grid.num_flat + sum(shifts[-1] for shifts in grid.shifts[:axis])
        part = run(total, first, length).clone()
        for start in rest:
            part += run(total, start, length)
        total = part
    return run(total, 0, grid.num_flat)


def _gram_terms(conf: ConvSettings, grid: Grid, x: Tensor, g: Tensor) -> Tensor:
    """(N, groups * num_flat, num_flat): the terms that add up to each row's squared norm."""
    flat_x, flat_g = _flat_phases(conf, grid, x), _flat_gradient(grid, g)
    num_rows, num_phases, _, num_pixels = flat_x.shape
    x_BIP = flat_x.reshape(num_rows * num_phases * conf.groups, -1, num_pixels)
    pixels = torch.bmm(x_BIP.mT, x_BIP).view(num_rows, num_phases, conf.groups, num_pixels, num_pixels)
    g_BOP = flat_g.reshape(num_rows * conf.groups, -1, grid.num_flat)
    gram_g = torch.bmm(g_BOP.mT, g_BOP).view(num_rows, conf.groups, grid.num_flat, grid.num_flat)
    return gram_g.mul_(_gram_of_patches(grid, pixels.transpose(1, 2))).flatten(1, 2)


def gram_chunk(conf: ConvSettings, grid: Grid, x: Tensor) -> int:
    """Units that are looked at together."""
    limit = _CHUNK_CPU if x.device.type == "cpu" else _CHUNK
    return max(1, limit // max(1, conf.groups * len(grid.phases) * grid.num_pixels**2))


def pixel_gram(
    conf: ConvSettings, x: Tensor, g: Tensor, weight: Tensor, doubts: Doubts | None = None
) -> Tensor:
    """Squared norms of each row's weight gradient, (N,), float64, without forming one.

    sum_{p,q} <patch_p, patch_q> <g_p, g_q>, with inner products of patches from those of pixels: these
    cost as many operations as a pixel has channels, not as a patch has entries.
    """
    grid = grid_of(conf, tuple(weight.shape[2:]), tuple(g.shape[2:]))
    overlap = math.prod(weight.shape[2:])
    parts, doubt_parts = [], []
    size = gram_chunk(conf, grid, x)
    for x_part, g_part in zip(x.split(size), g.split(size), strict=True):

        def terms(cast: Callable[[Tensor], Tensor], x: Tensor = x_part, g: Tensor = g_part) -> Tensor:
            return _gram_terms(conf, grid, cast(x), cast(g))

        lost = None
        if x.dtype != torch.float64:  # products below float32's smallest number
            x_N, g_N = sum_of_squares(x_part, doubts), sum_of_squares(g_part, doubts)
            tiny = math.prod(g.shape[2:]) * torch.finfo(torch.float32).tiny
            lost = tiny * (weight[0].numel() * g_N + weight.shape[0] * overlap * x_N)
            lost = torch.where((x_N == 0) | (g_N == 0), 0.0, lost)  # then every product is zero
        of_part: Doubts | None = None if doubts is None else []
        parts.append(guarded(terms, lost, doubts=of_part))
        doubt_parts += of_part or []
    if doubts is not None and doubt_parts:
        doubts.append(torch.cat(doubt_parts))
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)
