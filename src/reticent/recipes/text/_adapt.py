"""Which weights of a pretrained model are trained: all, adapters, biases, attention, or the last layer.

Room: recipes.text. Imports torch, and peft where adapters are made.

    full         everything; embeddings may stay frozen, alone or with the first blocks
    lora, ia3    adapters of peft inside the base model, and a new head
    bias         biases, and a new head [1]
    attention    what is inside attention, and a new head
    last-layer   what comes after the blocks and is not tied to the embeddings

An embedding that is frozen stays frozen where it is also the output layer. A new head is all that lies
outside the base model, and what of the base has random weights: the pooler of a model saved to fill masks.

Sources:
    [1] Ben Zaken, Goldberg and Ravfogel 2022, arXiv:2106.10199.
"""

import re
from collections.abc import Collection
from typing import Any, Final

from torch import nn

from reticent.errors import ConfigError

from ._packages import missing

_ATTENTION: Final = re.compile(r"(^|\.)[a-z_]*(attn|attention)[a-z_]*(\.|$)", re.IGNORECASE)

_HEADS: Final = ("classifier", "score")  # what peft trains whole by itself in a classifier


def adapt(
    model: Any,
    *,
    adaptation: str,
    new_head: bool,
    random: Collection[str] = (),
    lora_rank: int = 8,
    lora_alpha: int | None = None,
    lora_layers: int | None = None,
    freeze_embeddings: bool = False,
    freeze_layers: int = 0,
    task: str | None = None,
) -> Any:
    """The model with only those weights trainable; with adapters, a model of peft.

    Args:
        model: of transformers; changed in place.
        adaptation: one of the ways above.
        new_head: whether what lies outside `model.base_model` is new, so that it is always trained.
        random: names of parameters that the pretrained weights lack: with a new head, trained too.
        lora_rank: of lora.
        lora_alpha: of lora, by default twice the rank.
        lora_layers: of lora: adapters in the last so many blocks only.
        freeze_embeddings: with full: embeddings are not trained.
        freeze_layers: with full, bias or attention: embeddings and so many first blocks are not trained.
        task: what peft calls the model's task, kept with adapters; None: by `new_head`.

    Guarantee:
        With adapters, what is saved of them holds every weight of a new head: on the pretrained weights they
        give the trained model back, whatever random numbers stand there.

    Raises:
        ConfigError[text-model]: the model has none of the weights that were asked for, or no such adapters
            can be put on it.
        ConfigError[missing-library]: peft is needed and not installed.
    """
    if adaptation in ("lora", "ia3"):
        task = task or ("SEQ_CLS" if new_head else None)
        where = _places(model, random=random, new_head=new_head)
        if adaptation == "ia3":
            settings = _peft("ia3").IA3Config(task_type=task, fan_in_fan_out=_has_conv1d(model), **where)
        else:
            alpha = 2 * lora_rank if lora_alpha is None else lora_alpha
            settings = _lora(model, task, rank=lora_rank, alpha=alpha, layers=lora_layers, where=where)
        return _with_adapters(model, adaptation, settings).eval()
    new = {id(p) for name, p in model.named_parameters() if name in random}
    inside = {id(p) for p in model.base_model.parameters()} - new
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


def _places(model: Any, *, random: Collection[str], new_head: bool) -> dict[str, Any]:
    """What peft is told: which modules are trained whole and saved, and which get no adapters."""
    base, parts = model.base_model, dict(model.named_modules())
    whole: list[str] = []
    if new_head:
        beside = () if base is model else (n for n, part in model.named_children() if part is not base)
        whole = [name for name in beside if any(True for _ in parts[name].parameters())]
        lacking = sorted({name.rpartition(".")[0] for name in random if not _is_in(name, whole)})
        whole += [name for name in lacking if not _is_in(name, [other for other in lacking if other != name])]
        if "" in whole or (base is not model and any(True for _ in model.parameters(recurse=False))):
            raise ConfigError(
                f"{type(model).__name__} has weights of its new head in no module of their own, which "
                "adapters cannot be saved with. Take full.",
                code="text-model",
            )
    inside = {id(part) for part in base.modules()}
    ends = [*whole, *(_HEADS if new_head else ())]  # peft takes whatever ends with such a name
    taken = [name for name in parts if any(name.endswith(end) for end in ends)]
    bare = [name for name, part in parts.items() if id(part) not in inside or _is_in(name, taken)]
    return {
        "modules_to_save": whole or None,
        "exclude_modules": "|".join(re.escape(name) for name in bare if name) or None,
    }


def _is_in(name: str, modules: Collection[str]) -> bool:
    """Whether a name is one of those modules', or of something in them."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _lora(
    model: Any, task: str | None, *, rank: int, alpha: int, layers: int | None, where: dict[str, Any]
) -> Any:
    last = None
    if layers is not None:
        depth = model.config.num_hidden_layers
        last = list(range(max(0, depth - layers), depth))
    return _peft("lora").LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        task_type=task,
        target_modules="all-linear" if task is not None and layers is None else _linear_names(model),
        layers_to_transform=last,
        fan_in_fan_out=_has_conv1d(model),
        **where,
    )


def _has_conv1d(model: nn.Module) -> bool:
    """Whether its matrices lie the other way round, as in GPT-2."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _peft(kind: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing("peft", f"adaptation = {kind}", extra="text") from error
    return peft


def _with_adapters(model: Any, kind: str, settings: Any) -> Any:
    try:
        return _peft(kind).get_peft_model(model, settings)
    except (TypeError, ValueError) as error:
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
