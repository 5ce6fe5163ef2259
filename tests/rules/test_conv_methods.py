"""Every way to a convolution's norms and sums: right, and the norm never below the truth."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from reticent.rules import Layout
from reticent.rules._conv import ConvForm, ConvMeeting, ConvSettings
from reticent.rules._conv_methods import by_loop, units_a_call

CONVS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)
TRANSPOSED = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A convolution and its input's spatial sizes."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels: tuple[int, int] = (4, 6)
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None

    def __str__(self) -> str:
        kind = "t" if self.transposed else "c"
        parts = (self.size, self.kernel, self.stride, self.padding, self.dilation)
        return kind + "-".join("x".join(map(str, p)) for p in parts) + f"-{self.groups}-{self.channels[0]}"


def shape(size: tuple[int, ...], kernel: tuple[int, ...], **settings: object) -> Shape:
    dims = len(size)
    defaults = {"stride": (1,) * dims, "padding": (0,) * dims, "dilation": (1,) * dims}
    return Shape(size=size, kernel=kernel, **{**defaults, **settings})  # type: ignore[arg-type]


SHAPES = (
    shape((7, 6), (3, 3), padding=(1, 1)),
    shape((7, 6), (3, 3)),
    shape((7, 8), (3, 3), padding=(1, 1), stride=(2, 2)),
    shape((9, 8), (3, 3), padding=(2, 2), dilation=(2, 2)),
    shape((9, 11), (3, 2), padding=(1, 0), stride=(3, 2), dilation=(2, 3)),
    shape((8, 8), (2, 2), stride=(2, 2)),
    shape((9, 10), (2, 3), padding=(1, 0), stride=(3, 3)),
    shape((8, 8), (4, 4), padding=(1, 1), stride=(2, 2)),
    shape((7, 7), (5, 1), padding=(2, 0)),
    shape((7, 7), (1, 5), padding=(3, 4), stride=(1, 3)),
    shape((6, 5), (1, 1)),
    shape((6, 5), (1, 1), stride=(2, 2)),
    shape((6, 5), (1, 1), padding=(1, 1)),
    shape((6, 6), (3, 3), padding=(1, 1), groups=2),
    shape((6, 6), (3, 3), padding=(1, 1), groups=4, channels=(4, 8)),
    shape((6, 6), (3, 3), padding=(1, 1), stride=(2, 2), groups=4, channels=(4, 4)),
    shape((4, 4), (4, 4)),
    shape((6, 6), (3, 3), padding=(1, 1), channels=(8, 70)),
    shape((3, 3), (3, 3), padding=(1, 1), channels=(40, 40)),
    shape((11,), (3,), padding=(1,)),
    shape((12,), (2,), padding=(1,), stride=(4,), dilation=(2,)),
    shape((12,), (4,), padding=(2,), stride=(3,), dilation=(2,), groups=2),
    shape((4, 5, 4), (3, 2, 3), padding=(1, 0, 1), stride=(2, 1, 1)),
    shape((5, 4, 4), (2, 2, 2), dilation=(2, 1, 1), groups=2),
    shape((5, 4), (3, 3), transposed=True),
    shape((5, 4), (3, 3), padding=(1, 1), stride=(2, 2), output_padding=(1, 1), transposed=True),
    shape((4, 4), (4, 2), padding=(1, 0), stride=(2, 3), output_padding=(0, 2), groups=2, transposed=True),
    shape((4, 4), (2, 2), dilation=(3, 3), stride=(1, 2), output_padding=(2, 1), transposed=True),
    shape((6,), (3,), padding=(1,), stride=(2,), output_padding=(1,), transposed=True),
    shape((3, 3, 2), (2, 2, 2), stride=(2, 1, 2), transposed=True),
)


def operands(s: Shape, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 input, weight and output gradient; the numbers are exact in every dtype down to bfloat16."""
    made = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=made).bfloat16().double()

    into, out = s.channels
    x = draw(rows, into, *s.size)
    w = draw(into, out // s.groups, *s.kernel) if s.transposed else draw(out, into // s.groups, *s.kernel)
    return x, w, draw(*run(s, x, w).shape)


def run(s: Shape, x: Tensor, w: Tensor) -> Tensor:
    dims = len(s.size)
    if s.transposed:
        extra = s.output_padding or (0,) * dims
        return TRANSPOSED[dims - 1](x, w, None, s.stride, s.padding, extra, s.groups, s.dilation)
    return CONVS[dims - 1](x, w, None, s.stride, s.padding, s.dilation, s.groups)


def oracle(s: Shape, x: Tensor, w: Tensor, g: Tensor, num_units: int) -> Tensor:
    """One unit at a time, by autograd, in float64."""
    grads = []
    k = len(x) // num_units
    for unit in range(num_units):
        leaf, rows = w.clone().requires_grad_(), slice(unit * k, (unit + 1) * k)
        run(s, x[rows], leaf).backward(g[rows])
        assert leaf.grad is not None
        grads.append(leaf.grad)
    return torch.stack(grads)


def form_of(s: Shape, x: Tensor, w: Tensor, g: Tensor, num_units: int) -> ConvForm:
    extra = s.output_padding or (0,) * len(s.size)
    conf = ConvSettings(s.stride, s.padding, s.dilation, s.transposed, extra, s.groups)
    meeting = ConvMeeting(conf, w, None, frozenset({"weight"}))
    form = meeting.forms((x,), g, Layout(0, num_units))["weight"]
    assert isinstance(form, ConvForm)
    return form


def each_method(form: ConvForm) -> Iterator[str]:
    names = [m.name for m in form.methods()]
    assert len(names) == len(set(names)) >= 2
    yield from names


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("rows", (1, 3), ids=("one row", "three rows"))
@pytest.mark.parametrize("s", SHAPES, ids=str)
def test_every_method_is_exact(s: Shape, rows: int, dtype: torch.dtype) -> None:
    units = 5
    x, w, g = operands(s, units * rows)
    grads = oracle(s, x, w, g, units)
    truth = grads.flatten(1).norm(dim=1)
    form = form_of(s, x.to(dtype), w.to(dtype), g.to(dtype), units)
    weights = torch.linspace(0.3, 1.0, units, dtype=torch.float64)
    keep = torch.tensor([True, True, False, True, True])
    want = torch.einsum("u,u...->...", weights * keep, grads)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    names = list(each_method(form))
    for name in names:
        square, held = form.settle(name)
        assert square.dtype == torch.float64 and square.shape == (units,)
        norm = square.sqrt()
        # The engine raises norms by 4e-6 against the rounding of the gradient itself.
        assert bool((norm * (1 + (1e-13 if dtype == torch.float64 else 4e-6)) >= truth).all()), name
        torch.testing.assert_close(norm, truth, rtol=tolerance, atol=0)
        total = torch.zeros_like(w) if dtype == torch.float64 else torch.zeros_like(w).float()
        held.add_weighted(weights, keep, total)
        assert (total - want).norm() <= tolerance * truth.sum(), name
    torch.testing.assert_close(form.dense().double(), grads, rtol=0, atol=tolerance * float(truth.max()))
    torch.testing.assert_close(form.squared_norm().sqrt(), truth, rtol=tolerance, atol=0)
    if rows == 1 and not form.conf.transposed:
        assert any(n.startswith("drop") for n in names) and any(n.startswith("keep") for n in names)


def test_the_pixel_gram_is_tried() -> None:
    tried = [
        s for s in SHAPES if "gram" in [m.name for m in form_of(s, *_single(operands(s, 2)), 2).methods()]
    ]
    assert {len(s.size) for s in tried} == {1, 2, 3}
    assert {s.transposed for s in tried} == {True, False}
    assert {s.groups > 1 for s in tried} == {True, False}
    assert {max(s.stride) for s in tried} >= {1, 2, 3}


def _single(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.float() for t in tensors)


@pytest.mark.parametrize("s", SHAPES[:6], ids=str)
@pytest.mark.parametrize("gap", (0.0, 1e-3, 1e-5), ids=str)
def test_cancelling_gradients_are_not_rounded_down(s: Shape, gap: float) -> None:
    """Equal patches with opposite gradients: the gradient is their small difference."""
    x, w, g = _single(operands(s, 8))
    x = torch.ones_like(x) * x.mean((2, 3), keepdim=True) + gap * x
    g = g - g.mean((2, 3), keepdim=True)
    grads = oracle(s, x.double(), w.double(), g.double(), len(x))
    truth = grads.flatten(1).norm(dim=1)
    form = form_of(s, x, w, g, len(x))
    for name in each_method(form):
        square, held = form.settle(name)
        norm = square.sqrt() * (1 + 4e-6)
        if held is form:  # what was kept is what will be added, rounding included
            assert bool((norm >= truth).all()), name
        each = torch.zeros(len(x), *w.shape)
        for unit in range(len(x)):  # and what is added is not longer than the norm says
            one = torch.zeros(len(x), dtype=torch.float64)
            one[unit] = 1.0
            held.add_weighted(one, None, each[unit])
        assert bool((norm >= each.double().flatten(1).norm(dim=1)).all()), name


def test_tiny_numbers_do_not_vanish() -> None:
    """Products of pixels below float32's smallest number are still in the norm."""
    s = SHAPES[0]
    x, w, g = _single(operands(s, 3))
    x, g = x * 1e-25, g * 1e15
    truth = oracle(s, x.double(), w.double(), g.double(), 3).flatten(1).norm(dim=1)
    form = form_of(s, x, w, g, 3)
    for name in each_method(form):
        norm = form.settle(name)[0].sqrt()
        assert bool((norm * (1 + 4e-6) >= truth).all()), name
        assert bool((norm <= truth * 1.01).all()), name


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_one_bad_row_is_seen_and_left_out(bad: float) -> None:
    s = SHAPES[0]
    x, w, g = _single(operands(s, 3))
    grads = oracle(s, x.double(), w.double(), g.double(), 3)
    x[1, 0, 2, 2] = bad
    form = form_of(s, x, w, g, 3)
    keep = torch.tensor([True, False, True])
    for name in each_method(form):
        square, held = form.settle(name)
        assert square.isfinite().tolist() == [True, False, True], name
        total = torch.zeros_like(w)
        held.add_weighted(torch.tensor([1.0, 0.0, 1.0]), keep, total)
        torch.testing.assert_close(total.double(), grads[0] + grads[2], rtol=1e-5, atol=1e-4)


def test_channels_last_gives_the_same() -> None:
    s = SHAPES[2]
    x, w, g = _single(operands(s, 4))
    truth = oracle(s, x.double(), w.double(), g.double(), 4).flatten(1).norm(dim=1)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    form = form_of(s, x, w, g, 4)
    for name in each_method(form):
        torch.testing.assert_close(form.settle(name)[0].sqrt(), truth, rtol=1e-5, atol=0)


def test_no_units_have_no_norms() -> None:
    for s in (SHAPES[0], SHAPES[9]):
        x, w, g = _single(operands(s, 1))
        form = ConvForm(form_of(s, x, w, g, 1).conf, x[:0], g[:0], w, 0)
        assert form.squared_norm().shape == (0,)
        assert form.dense().shape == (0, *w.shape)


@pytest.mark.parametrize("num_units", (1, 3, 4, 7, 8, 9, 16, 21))
@pytest.mark.parametrize(
    "s",
    (
        shape((6, 6), (3, 3), padding=(1, 1), channels=(8, 6)),
        shape((5, 4), (1, 1), stride=(2, 2), channels=(5, 3)),
        shape((2, 2), (2, 2), channels=(64, 576)),  # large enough for calls of four
        shape((9,), (3,), padding=(1,), channels=(6, 4)),
        shape((3, 3, 2), (2, 2, 2), channels=(5, 2)),
    ),
    ids=str,
)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
def test_a_few_units_a_call_are_each_one_by_itself(s: Shape, num_units: int, dtype: torch.dtype) -> None:
    x, w, g = (t.to(dtype) for t in operands(s, num_units))
    conf = form_of(s, x, w, g, num_units).conf
    few = units_a_call(conf, x, g, w, num_units)
    assert few == (4 if w.numel() >= 1 << 17 else 8)
    parts = list(by_loop(conf, x, g, w, num_units))
    assert {len(part) for part in parts} <= {few, num_units % few}
    want = oracle(s, x.double(), w.double(), g.double(), num_units)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    size = float(want.abs().max())
    torch.testing.assert_close(torch.cat(parts).double(), want, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")), ids=str)
def test_a_bad_unit_stays_alone_among_a_few(bad: float) -> None:
    s = shape((6, 6), (3, 3), padding=(1, 1), channels=(17, 16))
    x, w, g = (t.float() for t in operands(s, 11))
    want = torch.cat(list(by_loop(form_of(s, x, w, g, 11).conf, x, g, w, 11)))
    for into in (x, g):
        kept = into[4].clone()
        into[4, 0, 2, 2] = bad
        got = torch.cat(list(by_loop(form_of(s, x, w, g, 11).conf, x, g, w, 11)))
        assert not bool(got[4].isfinite().all())
        others = [u for u in range(11) if u != 4]
        assert torch.equal(got[others], want[others])
        into[4] = kept


def test_units_of_several_rows_or_in_another_layout_are_taken_one_a_call() -> None:
    s = shape((6, 6), (3, 3), padding=(1, 1), channels=(8, 6))
    x, w, g = operands(s, 8)
    conf = form_of(s, x, w, g, 8).conf
    assert units_a_call(conf, x, g, w, 8) == 8
    assert units_a_call(conf, x, g, w, 4) == 1
    assert units_a_call(conf, x.to(memory_format=torch.channels_last), g, w, 8) == 1
    assert units_a_call(conf, x, g, torch.empty(1, 4, 1, 1), 8) == 1
    assert units_a_call(conf, x, g, torch.empty(512, 512, 1, 1), 8) == 1
