"""Parameters that meet the batch without a layer of their own: by broadcasting, indexing, concatenation."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..case import B, Case, Problem, supervised

T, D = 6, 4


class Around(nn.Module):
    """Linear, then a function of the hidden state and this module's parameters, then Linear."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], out: int = D) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(out, 2)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.meet(torch.tanh(self.first(x))))

    def meet(self, h: Tensor) -> Tensor:
        raise NotImplementedError


def meeting(
    name: str,
    shapes: dict[str, tuple[int, ...]],
    meet: Callable[[nn.Module, Tensor], Tensor],
    *,
    out: int = D,
) -> Case:
    """The case of parameters of these shapes, which meet the hidden state (B, T, D) in `meet`."""

    class Met(Around):
        def meet(self, h: Tensor) -> Tensor:
            return meet(self, h)

    return Case(name=name, make=lambda: supervised(Met(shapes, out), torch.randn(B, T, D)))


def _in_place_add(m: nn.Module, h: Tensor) -> Tensor:
    h = h * 1.0
    h += m.bias
    return h


def _masked_assignment(m: nn.Module, h: Tensor) -> Tensor:
    h = h.clone()
    h[h.detach()[..., 0] > 0] = m.token
    return h


def _bias_table(m: nn.Module, h: Tensor) -> Tensor:
    index = torch.arange(T)[:, None] - torch.arange(T)[None, :] + T - 1
    scores = (h @ h.mT)[:, None] + m.table[index].permute(2, 0, 1)
    return (scores.softmax(-1) @ h[:, None]).sum(1)


def _learned_queries(m: nn.Module, h: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.queries.expand(len(h), -1, -1), h, h)


def _prefix(m: nn.Module, h: Tensor) -> Tensor:
    keys = torch.cat([m.prefix.unsqueeze(0).repeat(len(h), 1, 1), h], 1)
    return F.scaled_dot_product_attention(h, keys, keys)


def _interpolated(m: nn.Module, h: Tensor) -> Tensor:
    return h + F.interpolate(m.grid, size=T, mode="linear", align_corners=False).mT


def _complex_filter(m: nn.Module, h: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(h, dim=1) * torch.view_as_complex(m.filter), n=T, dim=1)


def _film(m: nn.Module, h: Tensor) -> Tensor:
    scale, shift = (h.mean(1) @ m.condition).chunk(2, -1)
    return h * (1 + scale[:, None]) + shift[:, None]


def _fused_projection(m: nn.Module, h: Tensor) -> Tensor:
    q, k, v = (h @ m.fused).split(D, -1)
    return F.scaled_dot_product_attention(q, k, v)


def _sliced(m: nn.Module, h: Tensor) -> Tensor:
    return F.linear(h, m.weight[:D]) + F.linear(h, m.weight[D:]).flip(1)


def _experts(m: nn.Module, h: Tensor) -> Tensor:
    gate = (h @ m.router).softmax(-1)  # (B, T, E): every token uses every expert
    tokens = h.reshape(1, -1, D).expand(3, -1, -1)
    out = torch.bmm(tokens, m.experts).view(3, len(h), T, D)
    return torch.einsum("ebtd,bte->btd", out, gate)


class Embedded(nn.Module):
    """Tokens plus positions looked up on ids without a batch axis."""

    def __init__(self, batchless: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(11, D), nn.Embedding(T, D), nn.Linear(D, 2)
        self.batchless = batchless

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(T).view(*self.batchless, T)
        return self.head(torch.tanh(self.tokens(ids) + self.positions(where)))


class ClassToken(nn.Module):
    """A small ViT: patches, class token by expand and cat, positions by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, D, 3, stride=3)
        self.token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.zeros(1, 5, D))
        self.block = nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.positions
        return self.head(self.block(h)[:, 0])


class DataIndependent(nn.Module):
    """A bias made from parameters alone, by layers that never see the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.make_bias = (
            nn.Linear(D, D),
            nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, D)),
        )
        self.code = nn.Parameter(torch.randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) * self.make_bias(self.code)


def _penalised() -> Problem:
    made = supervised(nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(B, D))

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        return made.losses(batch) + 0.1 * sum(p.square().sum() for p in made.model.parameters())

    return Problem(model=made.model, losses=losses, batch=made.batch)


def _loss_parameter() -> Problem:
    model = nn.ModuleDict({"net": nn.Linear(D, 3)})
    model.register_parameter("log_scale", nn.Parameter(torch.zeros(())))

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        scale = model.log_scale.exp()
        return ((model["net"](x) - y) / scale).square().mean(1) + 2 * model.log_scale

    return Problem(model=model, losses=losses, batch=(torch.randn(B, D), torch.randn(B, 3)))


CASES: Final = (
    meeting("bias-broadcast", {"bias": (D,)}, lambda m, h: h + m.bias),
    meeting("bias-in-place", {"bias": (D,)}, _in_place_add),
    meeting("bias-full-rank-broadcast", {"bias": (1, 1, D)}, lambda m, h: m.bias + h),
    meeting("bias-over-time", {"bias": (T, 1)}, lambda m, h: h - m.bias),
    meeting("layer-scale", {"scale": (D,)}, lambda m, h: h + m.scale * h.sin()),
    meeting("position-parameter", {"positions": (1, T, D)}, lambda m, h: h + m.positions),
    meeting("position-parameter-sliced", {"positions": (1, 9, D)}, lambda m, h: h + m.positions[:, :T]),
    meeting("position-interpolated", {"grid": (1, D, 3)}, _interpolated),
    meeting("scalar-temperature", {"t": ()}, lambda m, h: (h / m.t.exp()).softmax(-1)),
    meeting("scalar-shape-1", {"t": (1,)}, lambda m, h: h * m.t + m.t.square()),
    meeting("scalar-masked-fill", {"t": ()}, lambda m, h: torch.where(h > 0.3, m.t, h)),
    meeting("mask-token-where", {"token": (D,)}, lambda m, h: torch.where(h[..., :1] > 0, m.token, h)),
    meeting("mask-token-assigned", {"token": (D,)}, _masked_assignment),
    meeting("relative-bias-table", {"table": (2 * T - 1, 2)}, _bias_table),
    meeting("learned-queries", {"queries": (1, 3, D)}, _learned_queries),
    meeting("prefix-repeated", {"prefix": (2, D)}, _prefix),
    meeting("matmul-left", {"mix": (3, T)}, lambda m, h: m.mix @ h),
    meeting("matmul-right", {"w": (D, D)}, lambda m, h: torch.matmul(h, m.w)),
    meeting("matmul-vector", {"v": (D,)}, lambda m, h: h + (h @ m.v)[..., None]),
    meeting("matmul-flattened-addmm", {"w": (D, D), "b": (D,)}, lambda m, h: _addmm(m, h)),
    meeting(
        "matmul-transposed-batch-last",
        {"w": (3, D)},
        lambda m, h: (m.w @ h.reshape(-1, D).T).T.view(len(h), T, 3),
        out=3,
    ),
    meeting("einsum", {"w": (D, 2, 3)}, lambda m, h: torch.einsum("btd,dhk->bthk", h, m.w).flatten(2), out=6),
    meeting("einsum-over-time", {"w": (T, D, D)}, lambda m, h: torch.einsum("btd,tde->bte", h, m.w)),
    meeting("einsum-batch-contracted-last", {"w": (T, T)}, lambda m, h: torch.einsum("ts,bsd->btd", m.w, h)),
    meeting(
        "tensordot", {"w": (T, D, 3)}, lambda m, h: torch.tensordot(h, m.w, dims=([1, 2], [0, 1])), out=3
    ),
    meeting("experts-bmm-all-used", {"router": (D, 3), "experts": (3, D, D)}, _experts),
    meeting("film", {"condition": (D, 2 * D)}, _film),
    meeting("fused-projection", {"fused": (D, 3 * D)}, _fused_projection),
    meeting("weight-sliced", {"weight": (2 * D, D)}, _sliced),
    meeting("weight-symmetric", {"w": (D, D)}, lambda m, h: h @ (m.w + m.w.T)),
    meeting(
        "weight-softmax-mix",
        {"mix": (3,)},
        lambda m, h: sum(a * h.roll(i, 1) for i, a in enumerate(m.mix.softmax(0))),
    ),
    meeting("weight-cumulated", {"w": (T,)}, lambda m, h: h * m.w.cumsum(0)[:, None]),
    meeting(
        "weight-stacked-parts", {"a": (2, D), "b": (2, D)}, lambda m, h: F.linear(h, torch.cat([m.a, m.b]))
    ),
    meeting("functional-layer-norm", {"w": (D,), "b": (D,)}, lambda m, h: F.layer_norm(h, (D,), m.w, m.b)),
    meeting("functional-conv", {"w": (D, D, 3)}, lambda m, h: F.conv1d(h.mT, m.w, padding=1).mT),
    meeting(
        "functional-unfold",
        {"w": (D, 3)},
        lambda m, h: (F.pad(h, (0, 0, 2, 0)).unfold(1, 3, 1) * m.w).sum(-1),
    ),
    meeting("complex-filter", {"filter": (T // 2 + 1, D, 2)}, _complex_filter),
    meeting("outer-with-itself", {"w": (D, 2)}, lambda m, h: h @ m.w @ m.w.T),
    meeting("detached-once", {"w": (D,)}, lambda m, h: h * m.w + h.detach() * m.w.detach() * m.w),
    Case(name="position-embedding-1xT", make=lambda: supervised(Embedded((1,)), torch.randint(11, (B, T)))),
    Case(name="position-embedding-T", make=lambda: supervised(Embedded(()), torch.randint(11, (B, T)))),
    Case(name="class-token", make=lambda: supervised(ClassToken(), torch.randn(B, 2, 6, 6))),
    Case(name="data-independent-branch", make=lambda: supervised(DataIndependent(), torch.randn(B, D))),
    Case(name="penalty-on-parameters", make=_penalised),
    Case(name="parameter-in-the-loss", make=_loss_parameter),
)


def _addmm(m: nn.Module, h: Tensor) -> Tensor:
    return torch.addmm(m.b, h.reshape(-1, D), m.w).view_as(h)
