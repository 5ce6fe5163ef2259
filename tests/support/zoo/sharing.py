"""Parameters used more than once, tied, reparametrised, adapted, frozen or not used at all."""

import warnings
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, weight_norm

from ..case import B, Case, Problem, next_token_losses, supervised, token_ids

T, D, V = 7, 4, 11


class LanguageModel(nn.Module):
    """Embedding, one mixing layer, a head that is separate, tied by a shared Parameter, or by function."""

    def __init__(self, tie: str) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(V, D), nn.Conv1d(D, D, 3)
        self.head = nn.Linear(D, V, bias=False) if tie != "function" else None
        if self.head is not None and tie == "parameter":
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.mix(F.pad(self.embed(ids).mT, (2, 0))).mT)
        return self.head(h) if self.head is not None else F.linear(h, self.embed.weight)


def _language_model(tie: str, *, high: int = V) -> Problem:
    model = LanguageModel(tie)
    return Problem(
        model=model, losses=lambda ids: next_token_losses(model(ids), ids), batch=token_ids(high, B, T)
    )


class Autoencoder(nn.Module):
    """Encoder W, decoder W transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 3)
        self.back = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.back)


class Thrice(nn.Module):
    """One layer used three times, with the results added."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        once = torch.tanh(self.layer(x))
        return once + self.layer(torch.tanh(self.layer(once)))


class TwoModulesOneWeight(nn.Module):
    """Two Linear modules that hold the same weight and their own biases, on different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x[:, :3]))) + self.a(x[:, 3:6])


class TwoForms(nn.Module):
    """One matrix as an embedding, a Linear weight, and a plain factor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(D, D)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.table(ids))
        return (h @ self.table.weight).tanh() * self.table.weight.mean(0) + F.linear(h, self.table.weight)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised and scaled by a gain at every call."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * self.gain / (spread * self.weight[0].numel() + 1e-4).sqrt()
        return self._conv_forward(x, weight, self.bias)


class Symmetric(nn.Module):
    """Upper triangle mirrored, as a parametrization."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.triu() + raw.triu(1).mT


class Adapted(nn.Module):
    """A frozen Linear with a low-rank adapter beside it, or merged into its weight."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base = nn.Linear(6, 5).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))
        self.merged = merged

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)
        return self.base(x) + x @ self.a.T @ self.b.T


class DoubledLinear(nn.Linear):
    """A subclass of Linear that uses its weight twice and its bias squared."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.abs(), self.bias.square()) + F.linear(x.sin(), self.weight)


class CosineLinear(nn.Linear):
    """A subclass of Linear that normalises both factors."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)) + self.bias


class ScaledEmbedding(nn.Embedding):
    """A subclass of Embedding with a scale of its own."""

    def __init__(self) -> None:
        super().__init__(V, D)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.scale


class Unused(nn.Module):
    """A layer no forward reaches, and one used only when the input has eight columns."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.never, self.rarely = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(8, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.rarely(x) if x.shape[-1] == 8 else self.used(x)


class Gated(nn.Module):
    """Two paths of which a value in the example's own row picks one, by multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(D, D), nn.Sequential(nn.Linear(D, D), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        open_ = (x[..., :1] > 0).to(x.dtype)
        return open_ * self.left(x) + (1 - open_) * self.right(x)


class OutOfOrder(nn.Module):
    """Layers registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.first, self.second = nn.Linear(D, 2), nn.Linear(6, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


class InPlainList(nn.Module):
    """Registered parameters that the forward reads from a plain Python list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, D)), nn.Parameter(torch.zeros(3))
        self.hidden = [self.w, {"bias": self.b}]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.hidden[0], self.hidden[1]["bias"])


def _in_closures() -> Problem:
    layers = [nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, 2)]
    model = nn.ModuleList(layers)
    steps = [lambda h, m=m: torch.tanh(m(h)) for m in layers]

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return supervised(model, torch.randn(B, D), call=run)


def _two_towers() -> Problem:
    model = nn.ModuleDict({"left": nn.Linear(D, 3), "right": nn.Linear(6, 3), "shared": nn.Linear(3, 3)})

    def run(x: Tensor, y: Tensor) -> Tensor:
        return model["shared"](model["left"](x).tanh()) * model["shared"](model["right"](y).tanh())

    return supervised(model, torch.randn(B, D), torch.randn(B, 6), call=run)


def _parametrized(layer: nn.Module, how: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", how)
    return layer


def _frozen() -> Problem:
    model = nn.Sequential(
        nn.Linear(D, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    )
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return supervised(model, torch.randn(B, D))


def _head_only() -> Problem:
    body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten()).requires_grad_(
        False
    )
    return supervised(nn.Sequential(body, nn.Linear(48, 3)), torch.randn(B, 2, 6, 6))


def _bias_only() -> Problem:
    model = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2))
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    return supervised(model, torch.randn(B, 1, D))


def _plain(name: str, make_model, *shape: int, idle: tuple[str, ...] = (), may_refuse=False) -> Case:
    return Case(
        name=name,
        make=lambda: supervised(make_model(), torch.randn(B, *shape)),
        idle=idle,
        may_refuse=may_refuse,
    )


CASES: Final = (
    Case(name="lm-untied", make=lambda: _language_model("no")),
    Case(name="lm-tied-parameter", make=lambda: _language_model("parameter")),
    Case(name="lm-tied-function", make=lambda: _language_model("function")),
    Case(name="lm-tied-function-few-ids", make=lambda: _language_model("function", high=2)),
    Case(name="one-table-three-forms", make=lambda: supervised(TwoForms(), token_ids(D, B, 5))),
    _plain("autoencoder-tied-transposed", Autoencoder, 6),
    _plain("used-three-times", lambda: Thrice(nn.Linear(D, D)), D),
    _plain("used-three-times-3d", lambda: Thrice(nn.Linear(D, D)), 6, D),
    _plain("conv-used-three-times", lambda: Thrice(nn.Conv2d(3, 3, 3, padding=1)), 3, 5, 5),
    _plain("norm-used-three-times", lambda: Thrice(nn.LayerNorm(D)), 6, D),
    _plain(
        "lstm-used-twice",
        lambda: nn.Sequential(*[shared := _FirstOutput(nn.LSTM(D, D, batch_first=True)), shared]),
        6,
        D,
    ),
    _plain("two-modules-one-weight", TwoModulesOneWeight, 6, D),
    _plain("same-module-listed-twice", lambda: nn.Sequential(*[m := nn.Linear(D, D), nn.Tanh(), m]), D),
    _plain("weight-standardised-conv", StandardisedConv, 3, 6, 6),
    _plain("weight-norm-parametrization", lambda: parametrizations.weight_norm(nn.Linear(D, 3)), 5, D),
    _plain("weight-norm-conv", lambda: parametrizations.weight_norm(nn.Conv1d(D, 3, 2)), D, 6),
    _plain("weight-norm-old-hook", lambda: _old_weight_norm(), 5, D),
    _plain("orthogonal-parametrization", lambda: parametrizations.orthogonal(nn.Linear(D, D)), D),
    _plain("symmetric-parametrization", lambda: _parametrized(nn.Linear(D, D), Symmetric()), D),
    _plain("low-rank-adapter", lambda: Adapted(merged=False), 3, 6),
    _plain("low-rank-adapter-merged", lambda: Adapted(merged=True), 3, 6),
    _plain("linear-subclass-doubled", lambda: nn.Sequential(nn.Linear(D, D), DoubledLinear(D, 3)), 3, D),
    _plain("linear-subclass-cosine", lambda: nn.Sequential(nn.Linear(D, D), CosineLinear(D, 3)), 3, D),
    Case(
        name="embedding-subclass-scaled",
        make=lambda: supervised(nn.Sequential(ScaledEmbedding(), nn.Linear(D, 2)), token_ids(V, B, 4)),
    ),
    _plain("unused-layers", Unused, D, idle=("never.weight", "never.bias", "rarely.weight", "rarely.bias")),
    _plain("gated-by-row", Gated, 5, D),
    _plain("registered-out-of-order", OutOfOrder, 6),
    _plain("parameters-in-plain-containers", InPlainList, 5, D),
    Case(name="modules-in-closures", make=_in_closures),
    Case(name="two-towers-shared-head", make=_two_towers),
    Case(name="frozen-parts", make=_frozen),
    Case(name="head-only", make=_head_only),
    Case(name="bias-only", make=_bias_only),
)


class _FirstOutput(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated by torch, and still in many checkpoints
        return weight_norm(nn.Linear(D, 3))
