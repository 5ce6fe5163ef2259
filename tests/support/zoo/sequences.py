"""Recurrent layers and attention: example axis first or second, one layer or several."""

from typing import Final

import torch
from torch import Tensor, nn

from ..case import B, Case, Problem, Sandwich, supervised

T, D, H = 6, 4, 3


class TimeMajor(nn.Module):
    """A module that wants the example axis second, around whatever wants it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x.transpose(0, 1))
        return (out[0] if isinstance(out, tuple) else out).transpose(0, 1)


class CellLoop(nn.Module):
    """A cell stepped over time, from a learned first state."""

    def __init__(self, cell: nn.Module, has_memory: bool) -> None:
        super().__init__()
        self.cell, self.has_memory = cell, has_memory
        self.start = nn.Parameter(torch.zeros(H))

    def forward(self, x: Tensor) -> Tensor:
        state = self.start.expand(x.shape[0], -1)
        memory = torch.zeros_like(state)
        seen = []
        for step in x.unbind(1):
            if self.has_memory:
                state, memory = self.cell(step, (state, memory))
            else:
                state = self.cell(step, state)
            seen.append(state)
        return torch.stack(seen, 1)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` on one sequence, weights dropped."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class PaddedAttention(nn.Module):
    """Queries from one stream, keys and values from another with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True, add_bias_kv=True)
        self.key, self.value = nn.Linear(2, 3), nn.Linear(2, 5)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        return self.attention(x, self.key(memory), self.value(memory), key_padding_mask=padding)[0]


class WithMemory(nn.Module):
    """A decoder layer whose memory is the sequence itself, reversed."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x.flip(-1))


class Packed(nn.Module):
    """An LSTM over packed sequences: rows of different examples lie beside each other in storage."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(D, H, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=T)[0]


class LearnedStart(nn.Module):
    """A GRU whose first hidden state is a parameter, expanded over the batch on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(D, H, batch_first=True)
        self.start = nn.Parameter(torch.zeros(1, 1, H))

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0]


def _padded_attention() -> Problem:
    padding = torch.arange(T).expand(B, T) >= torch.tensor([[6], [5], [3], [6], [1]])
    return supervised(PaddedAttention(), torch.randn(B, 3, 4), torch.randn(B, T, 2), padding)


def _sequence(name: str, layer, *, length: int = T, time_major: bool = False, wrap=None) -> Case:
    def make() -> Problem:
        inner = wrap(layer()) if wrap else layer()
        model = Sandwich(TimeMajor(inner) if time_major else inner)
        return supervised(model, torch.randn(B, length, D))

    return Case(name=name, make=make)


def _attention(**settings: bool) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(D, 2, **settings)


def _encoder(**settings: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, **settings)


def _decoder(**settings: bool) -> nn.Module:
    return WithMemory(nn.TransformerDecoderLayer(D, 2, 8, dropout=0.0, **settings))


RECURRENT: Final = (
    _sequence("rnn", lambda: nn.RNN(D, H, batch_first=True)),
    _sequence("rnn-relu-two-layers", lambda: nn.RNN(D, H, 2, nonlinearity="relu", batch_first=True)),
    _sequence("rnn-time-major", lambda: nn.RNN(D, H), time_major=True),
    _sequence("lstm", lambda: nn.LSTM(D, H, batch_first=True)),
    _sequence(
        "lstm-bidirectional-two-layers", lambda: nn.LSTM(D, H, 2, bidirectional=True, batch_first=True)
    ),
    _sequence("lstm-projected", lambda: nn.LSTM(D, 4, proj_size=2, batch_first=True)),
    _sequence("lstm-no-bias", lambda: nn.LSTM(D, H, bias=False, batch_first=True)),
    _sequence("lstm-time-major", lambda: nn.LSTM(D, H), time_major=True),
    _sequence("lstm-time-major-square", lambda: nn.LSTM(D, H), time_major=True, length=B),
    _sequence("gru", lambda: nn.GRU(D, H, batch_first=True)),
    _sequence("gru-bidirectional-two-layers", lambda: nn.GRU(D, H, 2, bidirectional=True, batch_first=True)),
    _sequence("gru-time-major-square", lambda: nn.GRU(D, H), time_major=True, length=B),
    _sequence("gru-learned-start", LearnedStart),
    _sequence("rnn-cell", lambda: CellLoop(nn.RNNCell(D, H), has_memory=False)),
    _sequence("lstm-cell", lambda: CellLoop(nn.LSTMCell(D, H), has_memory=True)),
    _sequence("gru-cell", lambda: CellLoop(nn.GRUCell(D, H), has_memory=False)),
    Case(
        name="lstm-packed",
        make=lambda: supervised(Packed(), torch.randn(B, T, D), torch.tensor([3, 6, 1, 4, 2])),
        may_refuse=True,
    ),
)

ATTENTION: Final = (
    _sequence("attention", lambda: _attention(batch_first=True), wrap=SelfAttention),
    _sequence("attention-no-bias", lambda: _attention(batch_first=True, bias=False), wrap=SelfAttention),
    _sequence("attention-time-major", lambda: SelfAttention(_attention()), time_major=True),
    _sequence("attention-time-major-square", lambda: SelfAttention(_attention()), time_major=True, length=B),
    Case(name="attention-padded-cross", make=_padded_attention),
    _sequence("encoder-layer", lambda: _encoder(batch_first=True)),
    _sequence("encoder-layer-norm-first", lambda: _encoder(batch_first=True, norm_first=True)),
    _sequence("encoder-layer-time-major", lambda: _encoder(), time_major=True),
    _sequence("encoder-layer-time-major-square", lambda: _encoder(), time_major=True, length=B),
    _sequence("decoder-layer", lambda: _decoder(batch_first=True)),
    _sequence("decoder-layer-time-major", lambda: _decoder(), time_major=True),
)

CASES: Final = (*RECURRENT, *ATTENTION)
