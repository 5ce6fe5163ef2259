"""Each row's loss by what a model predicts: the loss that transformers would take of that row alone.

Room: hf. May import torch; a model of transformers (or peft) is handed in.

Shape letters: B row, T position, V token or label, K class.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from reticent.errors import ConfigError

Rows = Mapping[str, Tensor]
IGNORED: Final = -100
_KINDS: Final = {
    "ForCausalLM": "next word",
    "GPT2LMHeadModel": "next word",
    "OpenAIGPTLMHeadModel": "next word",
    "ForMaskedLM": "tokens",
    "ForTokenClassification": "tokens",
    "ForConditionalGeneration": "target words",
    "ForSequenceClassification": "class",
    "ForImageClassification": "class",
    "ForMultipleChoice": "choice",
    "ForQuestionAnswering": "span",
}


def per_example_loss(model: nn.Module, *, label_smoothing: float = 0.0) -> Callable[[nn.Module, Any], Tensor]:
    """A loss for each row, from what the model's class name says that it predicts.

    A row with several labelled tokens has their mean; one with none has zero. It is the loss that the
    model itself gives for the row alone, so the mean over rows differs from that of a whole batch,
    which weighs rows by their number of tokens and so couples them.

    Args:
        model: of transformers, or of peft around one.
        label_smoothing: share of each label that is spread over all; as `Trainer` does it.

    Returns:
        `loss(model, rows)` for rows by name, of shape (B,).

    Raises:
        ConfigError[trainer-loss]: the class name is of no known kind, or smoothing has no meaning for it.
    """
    kind = kind_of(model)
    if label_smoothing and kind not in ("next word", "tokens", "target words", "class"):
        raise ConfigError(
            f"label_smoothing_factor is not defined for {type(base_of(model)).__name__}: leave it out.",
            code="trainer-loss",
        )

    def loss(model: nn.Module, rows: Rows) -> Float[Tensor, " B"]:
        given = {name: rows[name] for name in rows if name not in _LABELS[kind]}
        if kind == "target words" and "decoder_input_ids" not in given:
            shift = base_of(model).prepare_decoder_input_ids_from_labels
            given["decoder_input_ids"] = shift(labels=_labels(rows, "labels"))
        out = model(**given)
        if kind == "span":
            return (
                _span(out.start_logits, rows, "start_positions")
                + _span(out.end_logits, rows, "end_positions")
            ) / 2
        labels = _labels(rows, "labels")
        if kind == "choice":
            return F.cross_entropy(out.logits, labels, reduction="none")
        if kind == "class":
            return _class_loss(out.logits, labels, base_of(model).config, label_smoothing)
        logits = out.logits
        if kind == "next word":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return _token_mean(logits, labels, label_smoothing)

    return loss


_LABELS: Final = {kind: ("labels",) for kind in _KINDS.values()} | {
    "span": ("start_positions", "end_positions")
}


def kind_of(model: nn.Module) -> str:
    """What the model predicts, by its class's name.

    Raises:
        ConfigError[trainer-loss]: its name says nothing known.
    """
    name = type(base_of(model)).__name__
    decoder_only = not getattr(base_of(model).config, "is_encoder_decoder", False)
    for ending, kind in _KINDS.items():
        if name.endswith(ending) and not (kind == "target words" and decoder_only):
            return kind
    raise ConfigError(
        f"No loss for each row is known for {name}. Give PrivateTrainer(loss_per_example=...): called as "
        "loss_per_example(model, rows) with the collated rows, it returns one loss for each, shape (B,).",
        code="trainer-loss",
    )


def base_of(model: nn.Module) -> Any:
    """The model itself, under a wrapper of peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def _labels(rows: Rows, name: str) -> Tensor:
    if name not in rows:
        raise ConfigError(
            f"The collated training rows have no '{name}': the loss needs them. Let the data set or the "
            f"collator "
            "make them, or give PrivateTrainer(loss_per_example=...).",
            code="trainer-loss",
        )
    return rows[name]


def _token_mean(
    logits_BTV: Float[Tensor, "B T V"], labels_BT: Tensor, smoothing: float
) -> Float[Tensor, " B"]:
    each_BT = F.cross_entropy(
        _at_least_float32(logits_BTV).mT,
        labels_BT,
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
    return each_BT.sum(1) / (labels_BT != IGNORED).sum(1).clamp_min(1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _span(logits_BT: Tensor, rows: Rows, name: str) -> Float[Tensor, " B"]:
    """Cross-entropy over positions; a position outside the row counts as zero, as in transformers."""
    positions_B = _labels(rows, name).view(-1).clamp(0, logits_BT.shape[1])
    kept_B = torch.where(positions_B < logits_BT.shape[1], positions_B, IGNORED)
    return F.cross_entropy(logits_BT, kept_B, reduction="none", ignore_index=IGNORED)


def problem_of(config: Any, labels: Tensor, num_classes: int) -> str:
    """What a classifier's labels are: as its settings say, or else as transformers guesses."""
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        return problem
    if num_classes == 1:
        return "regression"
    whole = labels.dtype in (torch.int32, torch.int64)
    return "single_label_classification" if whole else "multi_label_classification"


def _class_loss(logits_BK: Tensor, labels: Tensor, config: Any, smoothing: float) -> Float[Tensor, " B"]:
    problem = problem_of(config, labels, logits_BK.shape[1])
    if smoothing and problem != "single_label_classification":
        raise ConfigError(
            f"label_smoothing_factor is not defined for {problem}: leave it out.", code="trainer-loss"
        )
    match problem:
        case "regression":
            targets = labels.to(logits_BK.dtype).view(len(logits_BK), -1)
            return F.mse_loss(logits_BK, targets, reduction="none").mean(1)
        case "single_label_classification":
            return F.cross_entropy(logits_BK, labels.view(-1), reduction="none", label_smoothing=smoothing)
        case "multi_label_classification":
            each_BK = F.binary_cross_entropy_with_logits(
                logits_BK, labels.to(logits_BK.dtype), reduction="none"
            )
            return each_BK.mean(1)
    raise ConfigError(f"problem_type '{problem}' of the model's config is not known.", code="trainer-loss")
