"""Pretrained models and tokenizers, and whether they fit what is asked: all before anything is spent.

Room: recipes.text. Imports torch and `reticent.train`; transformers when a model is read.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import nn

from reticent.errors import ConfigError
from reticent.train import eval_mode

from .._stamp import remembered
from ._packages import need_transformers
from ._pretrained import pretrained_folder

# Their positions begin behind the padding's: so many fewer tokens than positions. Other kinds that do the
# same are found out by `check_row`.
_OFFSET: Final = 2
_OFFSET_TYPES: Final = ("camembert", "mpnet", "roberta", "xlm-roberta")
_WHERE: Final[Mapping[str, Any]] = MappingProxyType({"local_files_only": True, "trust_remote_code": False})
# What transformers raises on a folder that holds something else.
_UNREADABLE: Final = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError,
)  # fmt: skip
_ROUTED: Final = re.compile(r"(Experts|Moe|MoE|Router|SparseMLP|SwitchTransformers)")
_DECODER: Final = ("ForCausalLM", "LMHeadModel")
# Objective -> class of transformers, endings of the kinds whose weights fit, what others lack, the way out.
_CLASSES: Final = MappingProxyType(
    {
        "head": ("AutoModelForSequenceClassification", (), "", ""),
        "regression": ("AutoModelForSequenceClassification", (), "", ""),
        "mask": (
            "AutoModelForMaskedLM",
            ("ForMaskedLM", "ForPreTraining"),
            "fills no masks",
            "Set objective = prompt, if it is a decoder, or head.",
        ),
        "prompt": (
            "AutoModelForCausalLM",
            _DECODER,
            "predicts no next words",
            "Set objective = mask, or head.",
        ),
        "generate": (
            "AutoModelForCausalLM",
            _DECODER,
            "is no decoder",
            "text-generate needs a model that predicts next words.",
        ),
    }
)


@remembered(lambda model, **_: [model], maxsize=2)
def read_tokenizer(model: str, *, pads: bool = True) -> Any:
    """The model's tokenizer.

    Args:
        model: a known name or a folder.
        pads: whether it must have a pad token.

    Raises:
        ConfigError[text-model]: there is none that can be read, or it has no pad token and needs one.
    """
    need_transformers()
    from transformers import AutoTokenizer

    folder = pretrained_folder(model)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **_WHERE)
    except _UNREADABLE as error:
        raise _unreadable(model, "tokenizer", error) from None
    if pads and tokenizer.pad_token_id is None:
        raise ConfigError(
            f"The tokenizer of '{model}' has no pad token. Set one in its tokenizer_config.json, e.g. "
            '"pad_token": "<|endoftext|>".',
            code="text-model",
        )
    return tokenizer


def read_model(
    model: str, *, objective: str, max_length: int, num_labels: int | None = None, random: bool = False
) -> Any:
    """The model before training; see `read_lacking`, whose model it is."""
    return read_lacking(
        model, objective=objective, max_length=max_length, num_labels=num_labels, random=random
    )[0]


def read_lacking(
    model: str, *, objective: str, max_length: int, num_labels: int | None = None, random: bool = False
) -> tuple[Any, frozenset[str]]:
    """The model before training, in eval mode: dropout is off, noise is what regularises.

    Args:
        model: a known name or a folder.
        objective: head, regression, mask, prompt or generate.
        max_length: tokens of a row.
        num_labels: of a new head.
        random: random weights from its configuration instead of the pretrained ones.

    Returns:
        The model, and the names of parameters that its weights lack, which are random: of a new head, and
        of a pooler under it.

    Raises:
        ConfigError[text-model]: it cannot be read, is of a kind that does not fit the objective, reads
            fewer tokens than `max_length`, has parts that cannot be trained privately, or lacks weights.
    """
    need_transformers()
    import transformers

    folder = pretrained_folder(model)
    tokenizer = read_tokenizer(model, pads=objective != "generate")
    head = {} if num_labels is None else {"num_labels": num_labels}
    try:
        settings: Any = transformers.AutoConfig.from_pretrained(folder, **head, **_WHERE)
    except _UNREADABLE as error:
        raise _unreadable(model, "configuration", error) from None
    _check_kind(settings, model, objective=objective, random=random)
    _check_length(settings, tokenizer, model, max_length)
    settings.use_cache = False
    if num_labels is not None:  # a new head reads a row's last token, which it finds by the padding
        settings.pad_token_id = tokenizer.pad_token_id
    made = getattr(transformers, _CLASSES[objective][0])
    try:
        if random:
            found, missing = made.from_config(settings, dtype=torch.float32), set()
        else:
            found, loaded = made.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **_WHERE,
            )
            missing = loaded["missing_keys"]
    except _UNREADABLE as error:
        raise _unreadable(model, "weights", error) from None
    _refuse_random(found, missing, model, objective)
    check_parts(found, model)
    num_known = found.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_known:
        raise ConfigError(
            f"The tokenizer of '{model}' has {len(tokenizer):,} tokens, and the model embeds {num_known:,}: "
            "they do not belong together.",
            code="text-model",
        )
    return found.eval(), frozenset(missing)


def check_row(model: nn.Module, name: str, *, max_length: int, answers: Callable[[nn.Module], Any]) -> None:
    """Refuse a model that cannot read a made-up row of full length: found out before anything is spent.

    A model without numbers, of which only shapes are asked, is not tried.

    Args:
        model: as it will be trained.
        name: a known name or a folder.
        max_length: tokens of that row.
        answers: what a run asks of the model, for that one row.

    Raises:
        ConfigError[text-model]: it fails, e.g. for want of positions or of token types.
    """
    if any(p.is_meta for p in model.parameters()):
        return
    try:
        with torch.no_grad(), eval_mode(model):
            answers(model)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"'{name}' cannot read a row of max_length = {max_length} tokens, as one made-up row shows "
            f"({type(error).__name__}: {_first_line(error)}). Lower max_length: some kinds read fewer tokens "
            "than they have positions. If a shorter row fails too, model and tokenizer do not belong "
            "together, as where one has token types and the other none: take another folder.",
            code="text-model",
        ) from error


def _refuse_random(found: Any, missing: set[str], model: str, objective: str) -> None:
    """Refuse weights that lack some: transformers makes those at random, which only a new head may be."""
    if objective in ("head", "regression"):
        inside = f"{found.base_model_prefix}."
        missing = {name for name in missing if name.startswith(inside) and ".pooler." not in name}
    if missing:
        named = sorted(missing)
        raise ConfigError(
            f"The weights of '{model}' lack {len(named)} parameters, which would be random: "
            f"{', '.join(named[:3])}{', ...' * (len(named) > 3)}. Give the folder with the configuration "
            "that its weights were saved with.",
            code="text-model",
        )


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
    _, endings, lacks, way_out = _CLASSES[objective]
    if getattr(settings, "is_encoder_decoder", False):
        needed = "a decoder" if objective == "generate" else "an encoder or a decoder"
        raise ConfigError(
            f"'{model}' is an encoder-decoder ({settings.model_type}), which is not offered: take {needed}.",
            code="text-model",
        )
    if endings == _DECODER and _is_encoder(settings):
        raise ConfigError(
            f"'{model}' {lacks}: it is an encoder ({settings.model_type}), whose every word sees those after "
            f"it. {way_out}",
            code="text-model",
        )
    if endings and not random and not any(kind.endswith(endings) for kind in kinds):
        raise ConfigError(
            f"'{model}' {lacks}: its weights are those of {', '.join(kinds) or 'an unknown kind'}. {way_out}",
            code="text-model",
        )


def _is_encoder(settings: Any) -> bool:
    """Whether it is of a kind that fills masks, and not set to look back only."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    return type(settings) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(settings, "is_decoder", False)


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
    why = f"{type(error).__name__}: {_first_line(error)}"
    return ConfigError(
        f"The {part} of '{model}' cannot be read ({why}). Give a folder that save_pretrained made of model "
        "and tokenizer, with weights in safetensors.",
        code="text-model",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
