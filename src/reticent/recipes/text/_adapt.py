"""Which weights of a pretrained model are trained: all, adapters, biases, attention, or the last layer.

Room: recipes.text. Imports torch, and peft where adapters are made.

    full         everything; embeddings may stay frozen, alone or with the first blocks
    lora, ia3    adapters of peft, and a new head
    bias         biases, and a new head [1]
    attention    what is inside attention, and a new head
    last-layer   what comes after the blocks and is not tied to the embeddings

An embedding that is frozen stays frozen where it is also the output layer.

Sources:
    [1] Ben Zaken, Goldberg and Ravfogel 2022, arXiv:2106.10199.
"""

import re
from typing import Any, Final

from torch import nn

from reticent.errors import ConfigError

from ._packages import missing

_ATTENTION: Final = re.compile(r"(^|\.)[a-z_]*(attn|attention)[a-z_]*(\.|$)", re.IGNORECASE)


def adapt(
    model: Any,
    *,
    adaptation: str,
    new_head: bool,
    lora_rank: int = 8,
    freeze_embeddings: bool = False,
    freeze_layers: int = 0,
) -> Any:
    """The model with only those weights trainable; with adapters, a model of peft.

    Args:
        model: of transformers; changed in place.
        adaptation: one of the ways above.
        new_head: whether what lies outside `model.base_model` is new, so that it is always trained.
        lora_rank: of lora.
        freeze_embeddings: with full: embeddings are not trained.
        freeze_layers: with full, bias or attention: embeddings and so many first blocks are not trained.

    Raises:
        ConfigError[text-model]: the model has none of the weights that were asked for.
        ConfigError[missing-library]: peft is needed and not installed.
    """
    if adaptation in ("lora", "ia3"):
        return _with_adapters(model, adaptation, rank=lora_rank, new_head=new_head).eval()
    inside = {id(p) for p in model.base_model.parameters()}
    for name, p in model.named_parameters():
        outside = id(p) not in inside
        wanted = {
            "full": True,
            "bias": name.endswith("bias"),
            "attention": _ATTENTION.search(name.rpartition(".")[0]) is not None,
            "last-layer": outside,
        }[adaptation]
        p.requires_grad_(wanted or (outside and new_head))
    if freeze_embeddings or freeze_layers:
        _freeze(model, num_layers=freeze_layers)
    found = {id(p) for p in model.parameters() if p.requires_grad}
    if not found or (adaptation in ("bias", "attention") and not found & inside):
        raise ConfigError(
            f"{type(model).__name__} has nothing to train with adaptation = {adaptation}"
            + (": its last layer is tied to its embeddings" if adaptation == "last-layer" else "")
            + ". Take lora or full.",
            code="text-model",
        )
    return model


def _freeze(model: Any, *, num_layers: int) -> None:
    for module in model.base_model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    if not num_layers:
        return
    blocks = max(
        (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)),
        key=len,
        default=nn.ModuleList(),
    )
    if num_layers >= len(blocks):
        raise ConfigError(
            f"freeze_layers = {num_layers}, and the model has {len(blocks)} blocks of its own: lower it, or "
            "take adaptation = last-layer.",
            code="text-model",
        )
    embeddings = getattr(model.base_model, "embeddings", None)
    for part in [*list(blocks)[:num_layers], *([embeddings] if isinstance(embeddings, nn.Module) else [])]:
        part.requires_grad_(False)


def _with_adapters(model: Any, kind: str, *, rank: int, new_head: bool) -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing("peft", f"adaptation = {kind}", extra="text") from error
    task = "SEQ_CLS" if new_head else None
    if kind == "lora":
        settings: Any = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            task_type=task,
            target_modules="all-linear" if new_head else _linear_names(model),
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's
        )
    else:
        settings = peft.IA3Config(task_type=task)
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"peft puts no {kind} adapters on {type(model).__name__}: {error}. Take lora or full.",
            code="text-model",
        ) from None


def _linear_names(model: Any) -> list[str]:
    """Last parts of the names of linear layers inside the blocks; what predicts words is left alone."""
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.base_model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    }
    return sorted(names)
