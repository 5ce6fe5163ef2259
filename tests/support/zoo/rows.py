"""Models that move the example axis about: second, last, merged with others, doubled, windowed."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..case import B, Case, Problem, supervised, token_ids

T, D = 6, 4


class Rearranged(nn.Module):
    """Linear, norm and a broadcast parameter, run on a rearrangement of (B, T, D), then put back."""

    def __init__(self, there: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.Tanh(), nn.Linear(D, D))
        self.scale, self.head = nn.Parameter(torch.ones(D)), nn.Linear(D, 2)
        self.there, self.back = there, back

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.back(self.inner(self.there(x)) * self.scale, x))


def rearranged(
    name: str,
    there: Callable[[Tensor], Tensor],
    back: Callable[[Tensor, Tensor], Tensor],
    *,
    length: int = T,
    may_refuse: bool = False,
) -> Case:
    """The case of a rearrangement and its inverse, which is given the original for its shape."""
    return Case(
        name=name,
        make=lambda: supervised(Rearranged(there, back), torch.randn(B, length, D)),
        may_refuse=may_refuse,
    )


class Windowed(nn.Module):
    """Swin-like: shifted windows of a map become rows of their own, with a relative bias table."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.table = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Embedding(9, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 4, D)
        h = x.roll((-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, D).transpose(2, 3).reshape(-1, 4, D)
        q, k, v = self.qkv(h).chunk(3, -1)
        place = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        index = ((place[:, None] - place[None]) + 1) @ torch.tensor([3, 1])
        scores = q @ k.mT + self.table(index)[..., 0]
        h = self.out(scores.softmax(-1) @ v).view(-1, 2, 2, 2, 2, D).transpose(2, 3)
        return h.reshape(x.shape).roll((1, 1), (1, 2))


class Checkpointed(nn.Module):
    """Blocks recomputed in the backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(D, D)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 8), nn.GELU(), nn.Linear(8, D)) for _ in range(2)
        )
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=self.use_reentrant)
        return h


class InPlaceActivations(nn.Module):
    """In-place ReLU right after layers whose output it overwrites, and an in-place residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.norm = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        g = self.norm(h.clone()) * 1.0
        g += h
        return self.head(g.mean((2, 3)))


class Siamese(nn.Module):
    """Two views of each example concatenated along the example axis, then compared."""

    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 3))
        self.interleaved = interleaved

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.interleaved:
            left, right = self.net(torch.stack([x, y], 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        else:
            left, right = self.net(torch.cat([x, y])).chunk(2)
        return left * right


class Beams(nn.Module):
    """Each example repeated three times with different noise-free tags, then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.net = nn.Embedding(3, D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.repeat_interleave(3, 0) + self.tags(torch.arange(3)).repeat(len(x), 1)
        return torch.tanh(self.net(rows)).view(len(x), 3, 2).mean(1)


class SortedByLength(nn.Module):
    """Rows permuted by a key of their own and permuted back: each example still sees itself only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].detach().argsort()
        return self.net(x[order])[order.argsort()]


class Compacted(nn.Module):
    """Only unpadded tokens are computed: rows of all examples in one long table, then put back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, D))

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[kept] = self.net(x[kept])
        return out


class BatchLast(nn.Module):
    """Examples in the last axis, as in column-vector code."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, D)), nn.Parameter(torch.zeros(5, 1))
        self.v = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.v @ torch.tanh(self.w @ x.T + self.b)).T


class PerExampleKernels(nn.Module):
    """Kernels computed from each example and applied by a convolution with one group per example."""

    def __init__(self) -> None:
        super().__init__()
        self.make_kernel, self.head = nn.Linear(3, 2 * 3 * 3), nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, T)
        kernels = self.make_kernel(x.mean(-1)).view(-1, 3, 3)
        out = nn.functional.conv1d(x.reshape(1, -1, x.shape[-1]), kernels, groups=len(x))
        return self.head(torch.tanh(out.view(len(x), 2, -1)))


class Buffered(nn.Module):
    """Buffers multiplied with parameters: a mask on a weight, fixed positions scaled by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = nn.Linear(D, D), nn.Parameter(torch.ones(D))
        self.register_buffer("mask", torch.ones(D, D).tril())
        self.register_buffer("waves", torch.randn(1, T, D))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.linear(x, self.net.weight * self.mask, self.net.bias)
        return h + self.waves * self.scale


def _embedding_heavy() -> Problem:
    model = nn.Sequential(nn.Embedding(500, D), nn.Flatten(), nn.Linear(9 * D, 3))
    labels = token_ids(3, B)

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return Problem(model=model, losses=losses, batch=(token_ids(500, B, 9), labels))


def _own_token_mean() -> Problem:
    """Token losses divided by each example's own number of tokens: the right way, in a dict batch."""
    model = nn.Sequential(nn.Embedding(9, D), nn.Linear(D, 9))
    kept = torch.arange(T) < torch.tensor([[6], [2], [4], [1], [5]])

    def losses(batch: dict[str, Tensor]) -> Tensor:
        each = nn.functional.cross_entropy(model(batch["ids"]).mT, batch["labels"], reduction="none")
        return (each * batch["kept"]).sum(1) / batch["kept"].sum(1)

    return Problem(
        model=model,
        losses=losses,
        batch={"ids": token_ids(9, B, T), "labels": token_ids(9, B, T), "kept": kept},
    )


def _dropout_off() -> Problem:
    model = nn.Sequential(
        nn.Linear(D, 6), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 2)
    ).eval()
    return supervised(model, torch.randn(B, D))


def _dropout_zero() -> Problem:
    model = nn.Sequential(nn.Linear(D, 6), nn.Dropout(0.0), nn.Tanh(), nn.Linear(6, 2)).train()
    return supervised(model, torch.randn(B, D))


def _weighted() -> Problem:
    made = supervised(nn.Linear(D, 2), torch.randn(B, D))
    weights = torch.rand(B)

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        return made.losses(batch[:-1]) * batch[-1]

    return Problem(model=made.model, losses=losses, batch=(*made.batch, weights))


def _zero_loss_rows() -> Problem:
    """Two rows with weight zero: their gradient is exactly zero, and their norm is too."""
    made = _weighted()
    *rest, weights = made.batch
    return Problem(
        model=made.model, losses=made.losses, batch=(*rest, weights * torch.tensor([1.0, 0, 1, 0, 1]))
    )


def _plain(name: str, make_model, *shape: int, may_refuse: bool = False) -> Case:
    return Case(
        name=name, make=lambda: supervised(make_model(), torch.randn(B, *shape)), may_refuse=may_refuse
    )


CASES: Final = (
    rearranged("time-major", lambda x: x.transpose(0, 1), lambda h, x: h.transpose(0, 1)),
    rearranged("time-major-square", lambda x: x.transpose(0, 1), lambda h, x: h.transpose(0, 1), length=B),
    rearranged("flattened-batch-time", lambda x: x.flatten(0, 1), lambda h, x: h.view_as(x)),
    rearranged(
        "flattened-time-batch",
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda h, x: h.view(-1, len(x), D).transpose(0, 1),
    ),
    rearranged(
        "flattened-time-batch-square",
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda h, x: h.view(-1, len(x), D).transpose(0, 1),
        length=B,
    ),
    rearranged("halves-as-rows", lambda x: x.reshape(-1, 3, D), lambda h, x: h.view_as(x)),
    rearranged(
        "halves-first", lambda x: torch.cat(x.split(3, 1)), lambda h, x: torch.cat(h.split(len(x)), 1)
    ),
    rearranged("two-leading-axes", lambda x: x.view(1, -1, T, D), lambda h, x: h[0]),
    rearranged("time-by-time", lambda x: torch.stack(x.unbind(1)), lambda h, x: torch.stack(h.unbind(0), 1)),
    rearranged("example-by-example", lambda x: torch.stack([row * 1.0 for row in x]), lambda h, x: h),
    rearranged("reversed-rows-and-back", lambda x: x.flip(0), lambda h, x: h.flip(0), may_refuse=True),
    _plain("windowed-attention", Windowed, 4, 4, D),
    _plain("checkpoint-reentrant", lambda: Checkpointed(True), 3, D),
    _plain("checkpoint-not-reentrant", lambda: Checkpointed(False), 3, D),
    _plain("in-place-activations", InPlaceActivations, 3, 5, 5),
    _plain("sorted-and-back", SortedByLength, D, may_refuse=True),
    _plain("repeated-rows", Beams, D),
    _plain("examples-in-last-axis", BatchLast, D),
    _plain("kernels-from-examples", PerExampleKernels, 3, T),
    _plain("buffers-times-parameters", Buffered, T, D),
    Case(
        name="siamese-concatenated",
        make=lambda: supervised(Siamese(False), torch.randn(B, D), torch.randn(B, D)),
    ),
    Case(
        name="siamese-interleaved",
        make=lambda: supervised(Siamese(True), torch.randn(B, D), torch.randn(B, D)),
    ),
    Case(
        name="padding-skipped",
        make=lambda: supervised(
            Compacted(), torch.randn(B, T, D), torch.arange(T) < torch.tensor([[6], [2], [4], [1], [5]])
        ),
        may_refuse=True,
    ),
    Case(name="embedding-heavy", make=_embedding_heavy),
    Case(name="own-token-mean", make=_own_token_mean),
    Case(name="dropout-off", make=_dropout_off),
    Case(name="dropout-zero", make=_dropout_zero),
    Case(name="weighted-rows", make=_weighted),
    Case(name="zero-weight-rows", make=_zero_loss_rows),
)
