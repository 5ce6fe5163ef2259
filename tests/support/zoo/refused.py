"""What must be refused: models and losses for which one example's influence is not bounded by clipping.

Each is planted with a reason that the error must name: the layer, or that examples are coupled.
A test verifies that the coupled ones really are.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from reticent.errors import CoupledExamples, ReticentError, UnsupportedModel

from ..case import B, Case, Problem, supervised, token_ids

T, D = 6, 4


class Between(nn.Module):
    """Linear, a function across the batch, Linear."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, 2)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.mix(torch.tanh(self.first(x)))))


class OnInputs(nn.Module):
    """The batch mean taken off raw inputs: no gradient flows between examples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - x.mean(0))


class AttendsAcrossBatch(nn.Module):
    """The classic slip: `batch_first` forgotten, so that attention runs over examples."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class RecurrentAcrossBatch(nn.Module):
    """The same slip with a recurrent net."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Routed(nn.Module):
    """Top-1 mixture of experts: each expert sees the gathered tokens of all examples, up to a capacity."""

    def __init__(self, capacity: int | None) -> None:
        super().__init__()
        self.router = nn.Linear(D, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 5), nn.GELU(), nn.Linear(5, D)) for _ in range(3)
        )
        self.capacity = capacity

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, D)
        gate, chosen = self.router(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            rows = (chosen == e).nonzero()[: self.capacity, 0]
            out = out.index_add(0, rows, expert(tokens[rows]) * gate[rows, None])
        return out.view_as(x)


class RunningMean(nn.Module):
    """A buffer that follows the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, D)
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return h - self.mean


class Counter(nn.Module):
    """A buffer that is replaced, not written to, at every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, D)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.largest = torch.maximum(self.largest, x.detach().abs().max())
        return self.net(x) / (1 + self.largest)


class RewritesItself(nn.Module):
    """Renormalises its weight in place before use."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.net.weight.div_(self.net.weight.norm(dim=1, keepdim=True))
        return self.net(x)


class Remembers(nn.Module):
    """Adds the mean of the batch it saw before, kept in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = nn.Linear(D, D), 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        out = torch.tanh(h + self.seen)
        self.seen = 0.5 * h.detach().mean(0)
        return out


def _with_losses(losses: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Callable[[], Problem]:
    """A plain token classifier whose losses are wrong: `losses(model, ids, labels)`."""

    def make() -> Problem:
        model = nn.Sequential(nn.Embedding(9, D), nn.Linear(D, 9))
        labels = torch.where(
            torch.arange(T) < torch.tensor([[6], [2], [4], [1], [5]]), token_ids(9, B, T), -100
        )
        return Problem(
            model=model, losses=lambda batch: losses(model, *batch), batch=(token_ids(9, B, T), labels)
        )

    return make


def _each_token(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).mT, labels, reduction="none")


def _sums(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return _each_token(model, ids, labels).sum(1)


def _token_mean(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return _sums(model, ids, labels) / (labels != -100).sum()


def _class_weighted(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    counts = (labels[:, :1] == labels[:, :1].T).sum(1)
    return _sums(model, ids, labels) / (counts + (labels[:, 0] % 2).sum())


def _contrastive(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    h = F.normalize(model(ids).mean(1), dim=-1)
    return F.cross_entropy(h @ h.mT.roll(1, 1), torch.arange(len(h)), reduction="none")


def _mixed_up(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    h = model[0](ids)
    return F.cross_entropy(model[1](0.7 * h + 0.3 * h.flip(0)).mT, labels, reduction="none").sum(1)


def _sorted(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return _sums(model, ids, labels).sort().values


def _with_balance(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """The load-balancing term of a mixture of experts: a function of the batch's mean, added to each."""
    return _sums(model, ids, labels) + model(ids).softmax(-1).mean((0, 1)).square().sum()


def mixing(name: str, make: Callable[[], nn.Module], *shape: int, match: str | None = None) -> Case:
    """A model that couples examples."""
    return Case(
        name=name,
        make=lambda: supervised(make(), torch.randn(B, *shape)),
        refuse=CoupledExamples,
        match=match,
    )


def layer(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Tensor], *, match: str) -> Case:
    """A layer that may not be trained privately, after a harmless one where its inputs are floats."""
    return Case(name=name, make=lambda: supervised(make(), inputs()), refuse=UnsupportedModel, match=match)


def coupled_loss(name: str, losses: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Case:
    """Losses that depend on the batch."""
    return Case(name=name, make=_with_losses(losses), refuse=CoupledExamples)


def malformed_loss(name: str, losses: Callable[[nn.Module, Tensor, Tensor], Tensor], match: str) -> Case:
    """Losses that are not one number for each example."""
    return Case(name=name, make=_with_losses(losses), refuse=ReticentError, match=match)


def _normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape)


def _ids(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: token_ids(high, B, *shape)


def _trained_spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(D, 3)))


COUPLED_MODELS: Final = (
    mixing("batch-mean-off-inputs", OnInputs, D),
    mixing("batch-mean-off-hidden", lambda: Between(lambda h: h - h.mean(0)), D),
    mixing("batch-mean-off-hidden-detached", lambda: Between(lambda h: h - h.detach().mean(0)), D),
    mixing("batch-mean-off-tokens", lambda: Between(lambda h: h - h.mean((0, 1))), T, D),
    mixing("batch-std-detached", lambda: Between(lambda h: h / (h.detach().std(0, unbiased=False) + 1)), D),
    mixing("batch-maximum", lambda: Between(lambda h: h / h.abs().amax()), D),
    mixing("batch-softmax", lambda: Between(lambda h: h * h.softmax(0)), D),
    mixing("batch-cumulated", lambda: Between(lambda h: h.cumsum(0)), D),
    mixing("batch-rolled", lambda: Between(lambda h: h + h.roll(1, 0)), D),
    mixing("batch-sorted", lambda: Between(lambda h: h.sort(0).values), D),
    mixing("batch-size-as-factor", lambda: Between(lambda h: h * len(h)), D),
    mixing("attention-across-batch", AttendsAcrossBatch, T, D),
    mixing("lstm-across-batch", RecurrentAcrossBatch, T, D),
    mixing("experts-with-capacity", lambda: Routed(3), T, D),
)

COUPLED_LOSSES: Final = (
    coupled_loss("token-mean-over-batch", _token_mean),
    coupled_loss("class-weights-from-batch", _class_weighted),
    coupled_loss("contrastive", _contrastive),
    coupled_loss("mixed-up", _mixed_up),
    coupled_loss("losses-sorted", _sorted),
    coupled_loss("losses-rolled", lambda m, x, y: _sums(m, x, y).roll(1)),
    coupled_loss("losses-reversed", lambda m, x, y: _sums(m, x, y).flip(0)),
    coupled_loss("losses-averaged-and-repeated", lambda m, x, y: _sums(m, x, y).mean().expand(len(x))),
    coupled_loss("losses-divided-by-batch-size", lambda m, x, y: _sums(m, x, y) / len(x)),
    coupled_loss("load-balancing", _with_balance),
)

LAYERS: Final = (
    layer(
        "batch-norm-1d",
        lambda: nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3)),
        _normal(D),
        match="BatchNorm1d",
    ),
    layer(
        "batch-norm-2d",
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)),
        _normal(2, 5, 5),
        match="BatchNorm2d",
    ),
    layer("batch-norm-3d", lambda: nn.BatchNorm3d(2), _normal(2, 2, 2, 2), match="BatchNorm3d"),
    layer(
        "batch-norm-no-affine",
        lambda: nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3, affine=False)),
        _normal(D),
        match="BatchNorm1d",
    ),
    layer(
        "batch-norm-eval-without-statistics",
        lambda: nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval(),
        _normal(D),
        match="BatchNorm1d",
    ),
    layer(
        "instance-norm-tracking",
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        _normal(3, 5),
        match="InstanceNorm1d|running",
    ),
    layer("embedding-max-norm", lambda: nn.Embedding(9, D, max_norm=0.5), _ids(9, T), match="max_norm"),
    layer(
        "embedding-scale-grad-by-freq",
        lambda: nn.Embedding(9, D, scale_grad_by_freq=True),
        _ids(9, T),
        match="scale_grad_by_freq",
    ),
    layer(
        "spectral-norm-old",
        lambda: spectral_norm(nn.Linear(D, 3)),
        _normal(D),
        match="(?i)spectral|weight_u|buffer",
    ),
    layer(
        "spectral-norm-parametrization", _trained_spectral_norm, _normal(D), match="(?i)spectral|_u|buffer"
    ),
)

STATE: Final = (
    Case(
        name="buffer-follows-data",
        make=lambda: supervised(RunningMean(), torch.randn(B, D)),
        refuse=UnsupportedModel,
        match="mean",
    ),
    Case(
        name="buffer-replaced",
        make=lambda: supervised(Counter(), torch.randn(B, D)),
        refuse=UnsupportedModel,
        match="largest",
    ),
    Case(
        name="parameter-rewritten",
        make=lambda: supervised(RewritesItself(), torch.randn(B, D)),
        refuse=UnsupportedModel,
        match=r"net\.weight|net",
    ),
    Case(
        name="remembers-last-batch",
        make=lambda: supervised(Remembers(), torch.randn(B, D)),
        refuse=ReticentError,
    ),
)

MALFORMED: Final = (
    malformed_loss(
        "loss-scalar", lambda m, x, y: _sums(m, x, y).mean(), r"shape|one loss|per-unit|per example"
    ),
    malformed_loss(
        "loss-column", lambda m, x, y: _sums(m, x, y)[:, None], r"shape|one loss|per-unit|per example"
    ),
    malformed_loss(
        "loss-for-each-token",
        lambda m, x, y: _each_token(m, x, y).flatten(),
        r"shape|one loss|per-unit|per example|rows|unit",
    ),
    malformed_loss(
        "loss-one-short", lambda m, x, y: _sums(m, x, y)[1:], r"shape|one loss|per-unit|per example|rows|unit"
    ),
    malformed_loss("loss-not-a-tensor", lambda m, x, y: _sums(m, x, y).tolist(), r"(?i)tensor|list"),
    malformed_loss("loss-integer", lambda m, x, y: _sums(m, x, y).long(), r"(?i)int|float|dtype|gradient"),
)

EITHER: Final = (
    Case(
        name="experts-top-1",
        make=lambda: supervised(Routed(None), torch.randn(B, T, D)),
        refuse=ReticentError,
        match="experts|router",
        may_refuse=True,
    ),
    Case(
        name="embedding-bag",
        make=lambda: supervised(nn.Sequential(nn.EmbeddingBag(9, D), nn.Linear(D, 2)), token_ids(9, B, T)),
        refuse=UnsupportedModel,
        match="EmbeddingBag|'0'|0.weight",
        may_refuse=True,
    ),
    Case(
        name="embedding-sparse",
        make=lambda: supervised(
            nn.Sequential(nn.Embedding(9, D, sparse=True), nn.Linear(D, 2)), token_ids(9, B, T)
        ),
        refuse=UnsupportedModel,
        match="sparse",
        may_refuse=True,
    ),
    Case(name="adaptive-softmax", make=lambda: _adaptive_softmax(), refuse=ReticentError, may_refuse=True),
)


def _adaptive_softmax() -> Problem:
    model = nn.ModuleDict(
        {"first": nn.Linear(D, D), "out": nn.AdaptiveLogSoftmaxWithLoss(D, 9, [3, 6], div_value=1.0)}
    )

    def losses(batch: tuple[Tensor, Tensor]) -> Tensor:
        return -model["out"](model["first"](batch[0]), batch[1]).output

    return Problem(model=model, losses=losses, batch=(torch.randn(B, D), torch.tensor([0, 8, 4, 2, 7])))


CASES: Final = (*COUPLED_MODELS, *COUPLED_LOSSES, *LAYERS, *STATE, *MALFORMED)
