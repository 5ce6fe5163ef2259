"""Texts from prompts, by transformers' own `generate`: greedy, beam search, or top-p sampling.

Room: recipes.text. Imports torch; a model and a tokenizer of transformers are handed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reticent.errors import ConfigError

from ._score import evaluating, open_ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a continuation is chosen.

    Args:
        max_new_tokens: at most so many tokens after the prompt.
        beams: width of beam search; 1: none.
        top_p: sample from the likeliest tokens that together have this probability; None: no sampling,
            the likeliest continuation.
        temperature: divides the logits before sampling; 1: as the model says.
        seed: of the sampling. Generation reads the trained model only, so the seed costs no privacy.

    Raises:
        ConfigError[text-decoding]: a number out of range, or one that would be ignored beside another.
    """

    max_new_tokens: int = 64
    beams: int = 1
    top_p: float | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            problem
            for wrong, problem in (
                (self.max_new_tokens < 1, f"max_new_tokens must be >= 1, got {self.max_new_tokens}"),
                (self.beams < 1, f"beams must be >= 1, got {self.beams}"),
                (
                    self.top_p is not None and not 0.0 < self.top_p <= 1.0,
                    f"top_p must be in (0, 1], got {self.top_p}",
                ),
                (
                    not 0.0 < self.temperature < float("inf"),
                    f"temperature must be > 0, got {self.temperature}",
                ),
                (
                    self.top_p is not None and self.beams > 1,
                    "beams and top_p exclude each other: one searches, the other samples",
                ),
                (
                    self.top_p is None and self.temperature != 1.0,
                    "temperature does nothing without top_p; give top_p=1 to sample from all tokens",
                ),
            )
            if wrong
        ]
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.", code="text-decoding")

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`."""
        sampling = {"top_p": self.top_p, "temperature": self.temperature, "top_k": 0}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.beams,
            "do_sample": self.top_p is not None,
            **(sampling if self.top_p is not None else {"top_p": None, "temperature": None, "top_k": None}),
        }


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    decoding: Decoding,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Continue each prompt; the prompt itself is not part of what is returned.

    Prompts are padded on the left, where a decoder's continuation does not see the padding. Each batch
    samples from its own generator state, seeded by `decoding.seed` and the number of its first prompt, so
    that a run that is repeated with the same batch size gives the same texts.

    Args:
        model: a decoder of transformers; an encoder-decoder is refused.
        tokenizer: its tokenizer. One without a pad token pads with its end token.
        prompts: texts to continue. They are cut from the left if they leave no room in the model's context.
        decoding: how to choose.
        batch_size: prompts at once.
        on_batch: called with the number of prompts done.

    Returns:
        One continuation a prompt, without special tokens, in the order of the prompts.

    Raises:
        ConfigError[text-decoding]: `max_new_tokens` leaves no room for a prompt.
        ConfigError[text-prompt]: a prompt has no tokens, or there is no token to pad with.
    """
    room = _room(model, decoding)
    encoded = [open_ended(tokenizer, prompt)[-room:] for prompt in prompts]
    if not all(encoded):
        raise ConfigError(
            "A prompt without tokens cannot be continued; give each at least one character.",
            code="text-prompt",
        )
    pad, end = padding_token(tokenizer), tokenizer.eos_token_id
    device = next(model.parameters()).device
    texts: list[str] = []
    with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for start in range(0, len(encoded), batch_size):
            torch.manual_seed(decoding.seed + start)
            ids_BT, mask_BT = _left_padded(encoded[start : start + batch_size], pad, device)
            made_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                pad_token_id=pad,
                eos_token_id=end,
                **decoding.arguments(),
            )
            new_BT = made_BT[:, ids_BT.shape[1] :]
            texts += tokenizer.batch_decode(new_BT, skip_special_tokens=True)
            if on_batch is not None:
                on_batch(len(texts))
    return texts


def padding_token(tokenizer: Any) -> int:
    """The id to pad with: the pad token, else the end token; padding is masked either way.

    Raises:
        ConfigError[text-prompt]: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError(
        "The tokenizer has neither a pad token nor an end token; set tokenizer.pad_token.", code="text-prompt"
    )


def _room(model: Any, decoding: Decoding) -> int:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(
            "Generation continues a prompt with a decoder; this model is an encoder-decoder.",
            code="text-decoding",
        )
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = context - decoding.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"max_new_tokens={decoding.max_new_tokens} leaves no room for a prompt: the model reads "
            f"{context} tokens.",
            code="text-decoding",
        )
    return room


def _left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask_BT[b, longest - len(row) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
