"""Rules for recurrent layers: unrolled into matrix products, each recorded like any other.

Room: rules. May import torch; holds functions, no state.

Shape letters (this file): T time, B rows, I input, H hidden.

Sources:
    [1] The equations in the documentation of `torch.nn.LSTM`, `torch.nn.GRU`, `torch.nn.RNN`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules._meeting import OpRule, Recorder

# (recorder, gates from the input, state, hidden weight, hidden bias) -> new state; state[0] is the output
_Cell = Callable[[Recorder, Tensor, tuple[Tensor, ...], Tensor, Tensor | None], tuple[Tensor, ...]]


def _lstm_cell(
    r: Recorder, gx: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
) -> tuple[Tensor, ...]:
    i, f, g, o = (gx + r.call(F.linear, state[0], w, b)).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_cell(
    r: Recorder, gx: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
) -> tuple[Tensor, ...]:
    xr, xz, xn = gx.chunk(3, -1)
    hr, hz, hn = r.call(F.linear, state[0], w, b).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * state[0],)


def _tanh_cell(
    r: Recorder, gx: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
) -> tuple[Tensor, ...]:
    return (torch.tanh(gx + r.call(F.linear, state[0], w, b)),)


def _relu_cell(
    r: Recorder, gx: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
) -> tuple[Tensor, ...]:
    return (torch.relu(gx + r.call(F.linear, state[0], w, b)),)


def _direction(
    r: Recorder,
    cell: _Cell,
    x_TBI: Tensor,
    state: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: outputs (T, B, H) and the last state."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if len(weights) >= 4 else (None, None)
    project = weights[-1] if len(weights) in (3, 5) else None
    gates = r.call(F.linear, x_TBI, w_ih, b_ih)
    outputs: list[Tensor] = []
    for t in reversed(range(len(x_TBI))) if reverse else range(len(x_TBI)):
        state = cell(r, gates[t], state, w_hh, b_hh)
        if project is not None:
            state = (r.call(F.linear, state[0], project), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _unrolled(cell: _Cell, num_states: int) -> OpRule:
    def rule(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs or len(args) != 9:  # packed sequences come with eight
            return NotImplemented
        x, initial, flat, _has_biases, num_layers, dropout, train, bidirectional, batch_first = args
        initial = tuple(initial) if num_states > 1 else (initial,)
        if x.dim() != 3 or recorder.is_trainable(x) or any(recorder.is_trainable(s) for s in initial):
            return NotImplemented
        x = x.transpose(0, 1) if batch_first else x
        initial = tuple(s.clone() for s in initial)  # a clone made here is no constant
        directions = 2 if bidirectional else 1
        per_layer = len(flat) // (num_layers * directions)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(num_layers):
            outputs = []
            for d in range(directions):
                at = layer * directions + d
                weights = flat[at * per_layer : (at + 1) * per_layer]
                y, state = _direction(recorder, cell, x, tuple(s[at] for s in initial), weights, d == 1)
                outputs.append(y)
                last.append(state)
            x = torch.cat(outputs, -1)
            if dropout and train and layer < num_layers - 1:
                x = F.dropout(x, dropout)
        y = x.transpose(0, 1) if batch_first else x
        return (y, *(torch.stack([s[i] for s in last]) for i in range(num_states)))

    return rule


def _single(cell: _Cell, num_states: int) -> OpRule:
    def rule(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs or len(args) < 4:
            return NotImplemented
        x, state, w_ih, w_hh = args[:4]
        b_ih, b_hh = args[4:6] if len(args) == 6 else (None, None)
        state = tuple(state) if num_states > 1 else (state,)
        if recorder.is_trainable(x) or any(recorder.is_trainable(s) for s in state):
            return NotImplemented
        state = tuple(s.clone() for s in state)
        new = cell(recorder, recorder.call(F.linear, x, w_ih, b_ih), state, w_hh, b_hh)
        return new if num_states > 1 else new[0]

    return rule


lstm = _unrolled(_lstm_cell, 2)
gru = _unrolled(_gru_cell, 1)
rnn_tanh = _unrolled(_tanh_cell, 1)
rnn_relu = _unrolled(_relu_cell, 1)
lstm_cell = _single(_lstm_cell, 2)
gru_cell = _single(_gru_cell, 1)
rnn_tanh_cell = _single(_tanh_cell, 1)
rnn_relu_cell = _single(_relu_cell, 1)
