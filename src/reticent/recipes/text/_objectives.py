"""What a classifier is trained on: a new head, the label's word in a mask or next, or a number.

Room: recipes.text. Imports torch only.

Shape letters: B row, T position, V vocabulary, H hidden, K label.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# ids (B, T), attention mask (B, T), token types (B, T), where the word is predicted (B,), labels (B,)
Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Answers = Callable[[nn.Module, Rows], Tensor]

# Kinds whose logits are this part of what `base_model` returns, so that the vocabulary is scored at one
# position of each row only. Of any other kind all positions are scored.
_WORD_HEADS: Final = MappingProxyType(
    {
        "AlbertForMaskedLM": "predictions",
        "BertForMaskedLM": "cls",
        "GPT2LMHeadModel": "lm_head",
        "LlamaForCausalLM": "lm_head",
        "MPNetForMaskedLM": "lm_head",
        "MistralForCausalLM": "lm_head",
        "OpenAIGPTLMHeadModel": "lm_head",
        "Qwen2ForCausalLM": "lm_head",
        "RobertaForMaskedLM": "lm_head",
        "XLMRobertaForMaskedLM": "lm_head",
    }
)

# Decoders whose logits are `lm_head` of what `base_model` returns.
_LINEAR_HEADS: Final = frozenset(
    {"GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM", "OpenAIGPTLMHeadModel", "Qwen2ForCausalLM"}
)


def head_answers(*, with_types: bool) -> Answers:
    """Logits of a new head, (B, K)."""

    def answers(model: nn.Module, rows: Rows) -> Float[Tensor, "B K"]:
        ids_BT, mask_BT, types_BT = rows[:3]
        more = {"token_type_ids": types_BT} if with_types else {}
        return model(input_ids=ids_BT, attention_mask=mask_BT, **more).logits

    return answers


def word_answers(word_ids: tuple[int, ...]) -> Answers:
    """Logits of the labels' words where each row's word is predicted, (B, K)."""

    def answers(model: nn.Module, rows: Rows) -> Float[Tensor, "B K"]:
        ids_BT, mask_BT, _, at_B, _ = rows
        words_K = torch.tensor(word_ids, device=ids_BT.device)
        return _word_logits(model, ids_BT, mask_BT, at_B).index_select(1, words_K)

    return answers


def _word_logits(
    model: Any, ids_BT: Int[Tensor, "B T"], mask_BT: Int[Tensor, "B T"], at_B: Int[Tensor, " B"]
) -> Float[Tensor, "B V"]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = _WORD_HEADS.get(type(inner).__name__)
    if head is None:
        return _picked(model(input_ids=ids_BT, attention_mask=mask_BT).logits, at_B)[:, 0]
    hidden_BTH = inner.base_model(input_ids=ids_BT, attention_mask=mask_BT)[0]
    return getattr(inner, head)(_picked(hidden_BTH, at_B))[:, 0]


def body_and_head(model: Any) -> tuple[nn.Module, nn.Linear] | None:
    """What a decoder's logits are made of, where they are a linear layer of what its body returns.

    None: of another kind, or with a head that an adapter or a hook has changed.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = getattr(inner, "lm_head", None)
    if type(inner).__name__ not in _LINEAR_HEADS or type(head) is not nn.Linear:
        return None
    return None if head._forward_hooks or head._forward_pre_hooks else (inner.base_model, head)


def _picked(x_BTH: Float[Tensor, "B T H"], at_B: Int[Tensor, " B"]) -> Float[Tensor, "B 1 H"]:
    return x_BTH.take_along_dim(at_B[:, None, None], 1)


def class_losses(answers: Answers) -> Callable[[nn.Module, Rows], Tensor]:
    """Each row's cross-entropy, shape (B,)."""
    return lambda model, rows: F.cross_entropy(answers(model, rows), rows[4], reduction="none")


def class_scores(answers: Answers) -> Callable[[nn.Module, Rows], dict[str, Tensor]]:
    """Each row's accuracy (0 or 1) and cross-entropy, shape (B,); beside them answers (B, K) and label."""

    def scores(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
        logits_BK = answers(model, rows)
        return {
            "accuracy": (logits_BK.argmax(1) == rows[4]).double(),
            "loss": F.cross_entropy(logits_BK, rows[4], reduction="none"),
            "answers": logits_BK,
            "labels": rows[4],
        }

    return scores


def number_losses(answers: Answers) -> Callable[[nn.Module, Rows], Tensor]:
    """Each row's squared error, shape (B,)."""
    return lambda model, rows: (answers(model, rows)[:, 0] - rows[4]).square()


def number_scores(answers: Answers) -> Callable[[nn.Module, Rows], dict[str, Tensor]]:
    """Each row's squared error, shape (B,); its answer (B, 1) and label beside it."""

    def scores(model: nn.Module, rows: Rows) -> dict[str, Tensor]:
        found_B1 = answers(model, rows)
        return {"loss": (found_B1[:, 0] - rows[4]).square(), "answers": found_B1, "labels": rows[4]}

    return scores
