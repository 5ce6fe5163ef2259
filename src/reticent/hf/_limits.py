"""What a model can read of a row: its tokens, labels and length, so that no row stops a run in its middle.

Room: hf. May import torch and `reticent.train`; a model of transformers (or peft) is handed in.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from reticent.train import eval_mode

from ._losses import IGNORED, base_of, kind_of, problem_of

Check = Callable[[Mapping[str, Tensor]], str | None]

# Settings of a model that name tokens which it replaces before it looks them up.
_PLACEHOLDERS: Final = tuple(
    f"{what}_token_{ending}" for what in ("image", "video", "audio") for ending in ("id", "index")
)


_ONE_CLASS: Final = "single_label_classification"


def row_check(model: nn.Module, collator: Any, *, max_length: int | None, own_loss: bool) -> Check:
    """What says of a collated row what is wrong with it, in words that tell nothing of it; None: nothing.

    Args:
        model: to be trained.
        collator: what pads rows.
        max_length: that rows are padded to.
        own_loss: whether the loss is not that of `per_example_loss`: what its labels are is not known.
    """
    tokens = _token_limits(model)
    named = getattr(getattr(collator, "tokenizer", None), "model_input_names", None) or ("input_ids",)
    padded = (*named, *(("labels",) if hasattr(collator, "label_pad_token_id") else ()))
    labels = None if own_loss else _label_check(model)

    def problem(row: Mapping[str, Tensor]) -> str | None:
        if max_length is not None and any(_length(row.get(name)) > max_length for name in padded):
            return (
                f"are longer than max_length = {max_length}: cut them in the tokenizer (truncation=True, "
                f"max_length={max_length})"
            )
        for name, (number, more) in tokens.items():
            if name in row and _outside(row[name], number, more):
                return (
                    f"have {name} outside 0 to {number - 1}, of which the model has embeddings: take the "
                    "model's own tokenizer, or model.resize_token_embeddings(...)"
                )
        return None if labels is None else labels(row)

    return problem


def _token_limits(model: nn.Module) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name of a tensor -> (how many embeddings it has, numbers beyond them that are read as well)."""
    base = base_of(model)
    config = getattr(base, "config", None)
    more = tuple(n for name in _PLACEHOLDERS if isinstance(n := getattr(config, name, None), int))
    found = {"input_ids": _num_embeddings(base)}
    if getattr(config, "is_encoder_decoder", False) and hasattr(base, "get_decoder"):
        found["decoder_input_ids"] = _num_embeddings(base.get_decoder())
    kinds = getattr(config, "type_vocab_size", None)
    found["token_type_ids"] = kinds if isinstance(kinds, int) and kinds > 0 else None
    return {
        name: (number, () if name == "token_type_ids" else more)
        for name, number in found.items()
        if number is not None
    }


def _num_embeddings(model: Any) -> int | None:
    try:
        layer = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model of one's own, or of images
        return None
    while hasattr(layer, "get_base_layer"):  # under an adapter
        layer = layer.get_base_layer()
    return getattr(layer, "num_embeddings", None)


def _label_check(model: nn.Module) -> Check | None:
    kind, base = kind_of(model), base_of(model)
    if kind == "choice":
        return lambda row: _bad_label(row, _num_choices(row), "choices of a row")
    if kind == "class" or type(base).__name__.endswith("ForTokenClassification"):
        known: list[int] = []

        def classes(row: Mapping[str, Tensor]) -> str | None:
            if "labels" not in row:
                return None  # the loss will say so
            if not known:
                known.append(_num_classes(model, row))
            if kind == "class" and problem_of(base.config, row["labels"], known[0]) != _ONE_CLASS:
                return None
            return _bad_label(row, known[0], "classes that the model tells apart")

        return classes
    if kind in ("next word", "tokens", "target words"):
        size = _vocabulary(base)
        return lambda row: _bad_label(row, size, "words of the model")
    return None  # of spans, positions outside a row count as zero


def _bad_label(row: Mapping[str, Tensor], number: int | None, what: str) -> str | None:
    if number is None or "labels" not in row or not _outside(row["labels"], number, (IGNORED,)):
        return None
    return f"have labels outside 0 to {number - 1}, the {what} ({IGNORED}: ignored)"


def _num_choices(row: Mapping[str, Tensor]) -> int | None:
    return row["input_ids"].shape[1] if "input_ids" in row else None


def _num_classes(model: nn.Module, row: Mapping[str, Tensor]) -> int:
    """Of the model's own logits: settings and heads may have been changed apart."""
    device = next(model.parameters()).device
    given = {name: t.to(device) for name, t in row.items() if name != "labels"}
    with torch.no_grad(), eval_mode(model):
        return int(model(**given).logits.shape[-1])


def _vocabulary(base: Any) -> int | None:
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    return getattr(base.config, "vocab_size", None) if weight is None else int(weight.shape[0])


def _length(t: Tensor | None) -> int:
    return 0 if t is None or t.dim() < 2 or t.is_floating_point() else t.shape[-1]


def _outside(t: Tensor, number: int, more: tuple[int, ...]) -> bool:
    if t.is_floating_point() or t.dtype == torch.bool:
        return False
    bad = (t < 0) | (t >= number)
    for also in more:
        bad &= t != also
    return bool(bad.any())
