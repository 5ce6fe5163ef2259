"""The trainable parameters, and gradients of theirs that no recorded operation would see.

Room: clip. May import torch, `reticent.errors`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reticent.clip._capture import Capture
from reticent.clip._held import Held
from reticent.errors import ConfigError, UnsupportedModel


def trainable(held: Held) -> dict[str, nn.Parameter]:
    """Name -> parameter that requires a gradient; one name for a shared one.

    Raises:
        ConfigError[nothing-to-train]: there is none.
        UnsupportedModel[complex-parameter]: one is not real.
        UnsupportedModel[parameter-hook]: one has a gradient hook.
    """
    params = {name: p for name, p in held.parameters().items() if p.requires_grad}
    if not params:
        raise ConfigError(
            "The model has no parameter with requires_grad=True. Unfreeze what should be trained.",
            code="nothing-to-train",
        )
    for name, p in params.items():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise UnsupportedModel(
                f"Parameter '{name}' has a gradient hook, which would run on gradients without clipping and "
                "noise, or not at all. Remove it, or apply what it does to the optimizer's gradient.",
                code="parameter-hook",
            )
        if not p.is_floating_point():
            raise UnsupportedModel(
                f"Parameter '{name}' is {p.dtype}: only real parameters are supported. Store real and "
                "imaginary parts as a real parameter, and use torch.view_as_complex in the forward.",
                code="complex-parameter",
            )
    return params


def sizes(params: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: p.numel() for name, p in params.items()}


def refuse_bypass(
    leaves: list[Tensor], capture: Capture, params: Mapping[str, nn.Parameter], *, apart: bool = False
) -> None:
    """Refuse parameters that entered autograd; with parameters held apart, also ones that are not known."""
    names = {id(p): n for n, p in params.items()} | {id(t): n for n, t in capture.leaves.items()}
    known = {names[id(leaf)] for leaf in leaves if id(leaf) in names}
    strange = apart and any(isinstance(leaf, nn.Parameter) and id(leaf) not in names for leaf in leaves)
    found = sorted(known | ({"(of no known name)"} if strange else set()))
    if found:
        raise UnsupportedModel(
            f"Parameters {found} are used where their per-example gradient cannot be seen (a custom autograd "
            "function, a scripted or compiled module). Freeze them with requires_grad_(False), write the "
            "operation with ordinary torch functions, or use method='loop'.",
            code="hidden-use",
        )


def refuse_unseen(capture: Capture) -> None:
    """A gradient that reached a parameter's copy past every recorded operation is in no norm."""
    with torch._C.DisableTorchFunction():  # else the recording mode is asked about each of them
        found = sorted(name for name, leaf in capture.leaves.items() if leaf.grad is not None)
    if found:
        raise UnsupportedModel(
            f"Parameters {found} receive a gradient that no recorded operation passed on (a reentrant "
            "checkpoint that returns something computed from parameters alone). Use use_reentrant=False, or "
            "method='loop'.",
            code="hidden-use",
        )
