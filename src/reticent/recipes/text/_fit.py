"""Pretrained models and tokenizers for classification, and whether they fit: all before anything is spent.

Room: recipes.text. Imports torch; transformers when a model is read.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn

from reticent.errors import ConfigError

from .._stamp import remembered
from ._pretrained import pretrained_folder

# Their positions begin behind the padding's: so many fewer tokens than positions.
_OFFSET: Final = 2
_OFFSET_TYPES: Final = ("camembert", "mpnet", "roberta", "xlm-roberta")
_WHERE: Final[Mapping[str, Any]] = MappingProxyType({"local_files_only": True, "trust_remote_code": False})
# What transformers raises on a folder that holds something else.
_UNREADABLE: Final = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError,
)  # fmt: skip
_ROUTED: Final = re.compile(r"(Experts|Moe|MoE|Router|SparseMLP|SwitchTransformers)")
_CLASSES: Final = MappingProxyType(
    {
        "head": ("AutoModelForSequenceClassification", (), ""),
        "regression": ("AutoModelForSequenceClassification", (), ""),
        "mask": ("AutoModelForMaskedLM", ("ForMaskedLM", "ForPreTraining"), "fills no masks"),
        "prompt": ("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"), "predicts no next words"),
    }
)


@remembered(lambda model: [model], maxsize=2)
def read_tokenizer(model: str) -> Any:
    """The model's tokenizer.

    Args:
        model: a known name or a folder.

    Raises:
        ConfigError[text-model]: there is none that can be read, or it has no pad token.
    """
    from transformers import AutoTokenizer

    folder = pretrained_folder(model)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **_WHERE)
    except _UNREADABLE as error:
        raise _unreadable(model, "tokenizer", error) from None
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"The tokenizer of '{model}' has no pad token. Set one in its tokenizer_config.json, e.g. "
            '"pad_token": "<|endoftext|>".',
            code="text-model",
        )
    return tokenizer


def read_model(model: str, *, objective: str, num_labels: int, max_length: int, random: bool = False) -> Any:
    """The model before training, in eval mode: dropout is off, noise is what regularises.

    Args:
        model: a known name or a folder.
        objective: head, regression, mask or prompt.
        num_labels: of a new head.
        max_length: tokens of a row.
        random: random weights from its configuration instead of the pretrained ones.

    Raises:
        ConfigError[text-model]: it cannot be read, is of a kind that does not fit the objective, reads
            fewer tokens than `max_length`, or has parts that cannot be trained privately.
    """
    import transformers

    folder = pretrained_folder(model)
    tokenizer = read_tokenizer(model)
    try:
        settings: Any = transformers.AutoConfig.from_pretrained(folder, num_labels=num_labels, **_WHERE)
    except _UNREADABLE as error:
        raise _unreadable(model, "configuration", error) from None
    _check_kind(settings, model, objective=objective, random=random)
    _check_length(settings, tokenizer, model, max_length)
    settings.use_cache = False
    settings.pad_token_id = tokenizer.pad_token_id
    made = getattr(transformers, _CLASSES[objective][0])
    try:
        if random:
            found = made.from_config(settings, dtype=torch.float32)
        else:
            found = made.from_pretrained(
                folder, config=settings, dtype=torch.float32, use_safetensors=True, **_WHERE
            )
    except _UNREADABLE as error:
        raise _unreadable(model, "weights", error) from None
    check_parts(found, model)
    num_known = found.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_known:
        raise ConfigError(
            f"The tokenizer of '{model}' has {len(tokenizer):,} tokens, and the model embeds {num_known:,}: "
            "they do not belong together.",
            code="text-model",
        )
    return found.eval()


def check_parts(model: nn.Module, name: str) -> None:
    """Refuse parts in which rows meet, or a row's words are sent different ways.

    Raises:
        ConfigError[text-model]: names the first such part and the way out.
    """
    for where, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"'{name}' has batch normalisation at '{where}', which mixes rows. Save it after "
                "reticent.clip.fix has put group normalisation there, or take another model.",
                code="text-model",
            )
        if _ROUTED.search(kind):
            raise ConfigError(
                f"'{name}' sends words to experts at '{where}' ({kind}): which rows share an expert would be "
                "part of every row's gradient. Take a model without experts.",
                code="text-model",
            )


def _check_kind(settings: Any, model: str, *, objective: str, random: bool) -> None:
    kinds = settings.architectures or []
    if getattr(settings, "is_encoder_decoder", False):
        raise ConfigError(
            f"'{model}' is an encoder-decoder ({settings.model_type}); text-classify needs an encoder or a "
            "decoder.",
            code="text-model",
        )
    _, endings, lacks = _CLASSES[objective]
    other = f"Set objective = {'prompt, if it is a decoder' if objective == 'mask' else 'mask'}, or head."
    if endings and not random and not any(kind.endswith(endings) for kind in kinds):
        raise ConfigError(
            f"'{model}' {lacks}: its weights are those of {', '.join(kinds) or 'an unknown kind'}. {other}",
            code="text-model",
        )


def _check_length(settings: Any, tokenizer: Any, model: str, max_length: int) -> None:
    positions = getattr(settings, "max_position_embeddings", None) or max_length
    offset = _OFFSET if settings.model_type in _OFFSET_TYPES else 0
    reads = min(positions - offset, tokenizer.model_max_length)
    if max_length > reads:
        raise ConfigError(
            f"max_length = {max_length}, and '{model}' reads {reads} tokens: lower max_length.",
            code="text-model",
        )


def _unreadable(model: str, part: str, error: BaseException) -> ConfigError:
    said = str(error).strip().split("\n")[0][:200]
    return ConfigError(
        f"The {part} of '{model}' cannot be read ({type(error).__name__}: {said}). Give a folder that "
        "save_pretrained made of model and tokenizer, with weights in safetensors.",
        code="text-model",
    )
