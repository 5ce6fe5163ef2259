"""Runs a model with its random draws silenced, so that two runs can be compared.

Room: clip. May import torch.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_DROPOUTS = frozenset(
    getattr(F, name)
    for name in ("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split())
)
_DEVICES = ("cpu", "cuda")
_RECURRENT = frozenset((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu))


class Quiet(TorchFunctionMode):
    """Dropout passes its input on; a uniform draw is 0.6, a normal one 0.5, a Bernoulli one 1.

    The values are far from 0 and 1 so that what a draw is multiplied with stays visible: mixing two
    examples with a random share of 0.999 would look like not mixing them.

    Autocast is off, wherever it was entered: an example alone runs other kernels than in a batch, and in
    half precision their rounding alone can look like another example's influence, or hide it. `half`
    becomes True once an operation gives half precision all the same: the parameters' own.
    """

    half = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        cast = any(map(torch.is_autocast_enabled, _DEVICES))
        with _without_autocast():
            try:
                return self._run(func, args, dict(kwargs or {}))
            except RuntimeError:
                if not cast:
                    raise
                # A loss that makes half precision itself leaves it to autocast to bring it together with
                # float32 weights: here both become float32.
                args, more = tree_map_only(Tensor, _in_single, (args, dict(kwargs or {})))
                return self._run(func, args, more)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if func in _DROPOUTS or func is torch.dropout:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.pop("dropout_p", None)
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward and len(args) > 10:
            args = (*args[:10], 0.0, *args[11:])  # after add_zero_attn
            return func(*args, **kwargs)
        if func in _RECURRENT:
            args = tuple(0.0 if isinstance(a, float) else a for a in args)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in (torch.float16, torch.bfloat16):
            self.half = True
        if isinstance(out, Tensor) and name in ("rand", "rand_like", "uniform_"):
            return out.fill_(0.6)
        if isinstance(out, Tensor) and name in ("randn", "randn_like", "normal_", "normal"):
            return out.fill_(0.5)
        if isinstance(out, Tensor) and name in ("bernoulli", "bernoulli_"):
            return out.fill_(1.0)
        return out


@contextmanager
def _without_autocast() -> Iterator[None]:
    devices = [d for d in _DEVICES if torch.is_autocast_enabled(d)]
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _in_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
