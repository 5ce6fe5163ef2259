"""Rule for multi-head attention: its own body, with each operation in it recorded like any other.

Room: rules. May import torch; holds functions, no state.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F

from reticent.rules._meeting import Recorder


def _body(func: Callable[..., Any]) -> Callable[..., Any]:
    """A torch function as it runs when nobody overrides it: its first lines ask, and would ask us again."""
    assert isinstance(func, FunctionType)
    names = {**func.__globals__, "has_torch_function": lambda _: False}
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


_multi_head_attention = _body(F.multi_head_attention_forward)


def multi_head_attention(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.multi_head_attention_forward`."""
    return recorder.inline(_multi_head_attention, *args, **kwargs)
