"""JAX-Privacy: `clipped_grad` of the same forward written in JAX, with the torch model's weights.

Only for work with a twin: perceptrons, the tanh CNN and Wide ResNets.

Shape letters: B examples, C channels, H, W image, O output channels.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.work import Skip, Work


def _linear(params: dict[str, Any], name: str, x: Any) -> Any:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _conv(params: dict[str, Any], name: str, x: Any, stride: int, padding: int) -> Any:
    from jax import lax

    y = lax.conv_general_dilated(
        x,
        params[f"{name}.weight"],
        window_strides=(stride, stride),
        padding=[(padding, padding), (padding, padding)],
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias[None, :, None, None]


def _group_norm(params: dict[str, Any], name: str, x: Any, groups: int) -> Any:
    from jax import lax

    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(2, keepdims=True)
    var = ((grouped - mean) ** 2).mean(2, keepdims=True)
    normal = ((grouped - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape)
    scale, shift = params[f"{name}.weight"], params[f"{name}.bias"]
    return normal * scale[None, :, None, None] + shift[None, :, None, None]


def _mlp(params: dict[str, Any], x: Any) -> Any:
    import jax

    indices = sorted(int(n.split(".")[0]) for n in params if n.endswith("weight"))
    for index in indices:
        x = _linear(params, str(index), x if index == indices[0] else jax.nn.gelu(x, approximate=False))
    return x


def _tanh_cnn(params: dict[str, Any], x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")

    x = pool(jnp.tanh(_conv(params, "0", x, 2, 2)))
    x = pool(jnp.tanh(_conv(params, "3", x, 2, 0)))
    x = jnp.tanh(_linear(params, "7", x.reshape(x.shape[0], -1)))
    return _linear(params, "9", x)


def _wide_resnet(params: dict[str, Any], x: Any) -> Any:
    from jax.nn import silu

    num_blocks = 1 + max(int(n.split(".")[1]) for n in params if n.startswith("blocks."))
    x = _conv(params, "stem", x, 1, 1)
    for index in range(num_blocks):
        at = f"blocks.{index}"
        stride = 2 if index and index % (num_blocks // 3) == 0 else 1
        h = silu(_group_norm(params, f"{at}.norm1", x, 16))
        beside = _conv(params, f"{at}.skip", h, stride, 0) if f"{at}.skip.weight" in params else x
        h = _conv(params, f"{at}.conv1", h, stride, 1)
        h = silu(_group_norm(params, f"{at}.norm2", h, 16))
        x = beside + _conv(params, f"{at}.conv2", h, 1, 1)
    x = silu(_group_norm(params, "norm", x, 16))
    return _linear(params, "head", x.mean((2, 3)))


TWINS: Final = MappingProxyType({"mlp": _mlp, "tanh-cnn": _tanh_cnn, "wide-resnet": _wide_resnet})


def clipped(work: Work, max_norm: float) -> Callable[[], dict[str, Tensor]]:
    """Compiled; all examples in one microbatch."""
    import jax
    import jax.numpy as jnp
    from jax_privacy import clipping

    forward = TWINS.get(work.twin)
    if forward is None:
        raise Skip("no JAX twin of this model")
    params = {n: jnp.asarray(p.detach().numpy()) for n, p in work.trainable().items()}
    x, y = (jnp.asarray(t.numpy()) for t in work.batch)

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        logits = jax.nn.log_softmax(forward(params, x))
        return -jnp.take_along_axis(logits, y[:, None], axis=1).sum()

    gradient = jax.jit(clipping.clipped_grad(loss, l2_clip_norm=max_norm, batch_argnums=(1, 2)))

    def step() -> dict[str, Tensor]:
        grads = jax.block_until_ready(gradient(params, x, y))
        return {n: torch.from_dlpack(g) for n, g in grads.items()}

    return step
