"""The table of operations that have a rule, and the set of elementwise operations.

Room: rules. May import torch; holds constants.

A table is an argument of the engine: `rules={**BUILTIN, my_op: my_rule}` brings a new operation.
Look-up is by the very function object that the model calls.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from reticent.rules import _attention, _conv, _embedding, _head, _linear, _norm, _recurrent, _scale
from reticent.rules._meeting import Meeting, OpRule

__all__ = ["BUILTIN", "ELEMENTWISE", "Meeting", "OpRule"]

_NEWER: Final = {  # operations that older versions of torch lack
    func: rule
    for name, rule in (("linear_cross_entropy", _head.linear_cross_entropy),)
    if (func := getattr(F, name, None)) is not None
}

BUILTIN: Final[Mapping[Callable[..., Any], OpRule]] = MappingProxyType(
    {
        F.linear: _linear.linear,
        F.multi_head_attention_forward: _attention.multi_head_attention,
        torch.addmm: _linear.addmm,
        torch.matmul: _linear.matmul,
        torch.mm: _linear.matmul,
        Tensor.matmul: _linear.matmul,
        Tensor.mm: _linear.matmul,
        Tensor.__matmul__: _linear.matmul,
        torch.mul: _scale.scale,
        Tensor.mul: _scale.scale,
        Tensor.__mul__: _scale.scale,
        Tensor.__rmul__: _scale.scale,
        torch.add: _scale.shift,
        Tensor.add: _scale.shift,
        Tensor.__add__: _scale.shift,
        Tensor.__radd__: _scale.shift,
        F.embedding: _embedding.embedding,
        Tensor.__getitem__: _embedding.getitem,
        torch.index_select: _embedding.index_select,
        Tensor.index_select: _embedding.index_select,
        F.layer_norm: _norm.layer_norm,
        F.group_norm: _norm.group_norm,
        F.rms_norm: _norm.rms_norm,
        F.instance_norm: _norm.instance_norm,
        F.batch_norm: _norm.batch_norm,
        F.conv1d: _conv.conv,
        F.conv2d: _conv.conv,
        F.conv3d: _conv.conv,
        F.conv_transpose1d: _conv.conv_transpose,
        F.conv_transpose2d: _conv.conv_transpose,
        F.conv_transpose3d: _conv.conv_transpose,
        torch.lstm: _recurrent.lstm,
        torch.gru: _recurrent.gru,
        torch.rnn_tanh: _recurrent.rnn_tanh,
        torch.rnn_relu: _recurrent.rnn_relu,
        torch.lstm_cell: _recurrent.lstm_cell,
        torch.gru_cell: _recurrent.gru_cell,
        torch.rnn_tanh_cell: _recurrent.rnn_tanh_cell,
        torch.rnn_relu_cell: _recurrent.rnn_relu_cell,
        **_NEWER,
    }
)


def _functions(names: str) -> frozenset[Callable[..., Any]]:
    found = (getattr(space, name, None) for name in names.split() for space in (torch, Tensor))
    return frozenset(f for f in found if f is not None)


ELEMENTWISE: Final = _functions(
    "add sub subtract rsub mul multiply div divide true_divide where maximum minimum pow addcmul addcdiv "
    "lerp __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ __pow__ "
    "__rpow__ add_ sub_ subtract_ mul_ multiply_ div_ divide_ true_divide_ "
    "__iadd__ __isub__ __imul__ __itruediv__ __idiv__"
)
IN_PLACE: Final = _functions(
    "add_ sub_ subtract_ mul_ multiply_ div_ divide_ true_divide_ "
    "__iadd__ __isub__ __imul__ __itruediv__ __idiv__"
)
EXPANSIONS: Final = _functions("expand expand_as broadcast_to repeat tile repeat_interleave")
