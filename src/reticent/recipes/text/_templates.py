"""Templates that turn classification into the prediction of a word, and rows of tokens made by them.

Room: recipes.text. May import torch and `reticent.errors`; takes a tokenizer of transformers.

    {text} It was {mask}.        a masked-word template: the label's word stands where the mask is
    {text} It was {mask}         a next-word template: the label's word comes next, so nothing follows

A text is cut, never the template, so every row keeps its mask. Special tokens that a text spells out are
dropped: no row can bring a second mask.

Shape letters: B row, T position, K label.

Sources:
    [1] Li, Tramèr, Liang and Hashimoto 2022, arXiv:2110.05679, with the templates of Gao, Fisch and Chen
        2021, arXiv:2012.15723: masks. The next-word forms are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from reticent.errors import ConfigError

from ._labelled import Labelled

_SLOTS: Final = ("{text}", "{text_b}", "{mask}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Templates of a task, and words for its labels in the order of the public data sets.

    Args:
        mask: the masked-word template.
        prompt: the next-word template.
        words: the labels' words.
        next_words: those of the next-word template, if others.
    """

    mask: str
    prompt: str
    words: tuple[str, ...]
    next_words: tuple[str, ...] | None = None


PRESETS: Final = MappingProxyType(
    {
        "sst-2": Preset(
            mask="{text} It was {mask}.",
            # Untrained, smollm2 is right more often with it than with "{text} It was {mask}".
            prompt="Review: {text}\nSentiment: {mask}",
            words=("terrible", "great"),
            next_words=("negative", "positive"),
        ),
        "mnli": Preset(
            mask="{text}? {mask}, {text_b}",
            prompt="{text} Is it true that {text_b} Answer: {mask}",
            words=("yes", "maybe", "no"),
        ),
        "qnli": Preset(
            mask="{text}? {mask}, {text_b}",
            prompt="{text} {text_b} Does this answer the question? {mask}",
            words=("yes", "no"),
        ),
        "qqp": Preset(
            mask="{text} {mask}, {text_b}",
            prompt="{text} {text_b} Do both ask the same? {mask}",
            words=("no", "yes"),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A template ready for one tokenizer.

    Args:
        parts: token ids that all rows share, and slots, in order.
        begin: special tokens before everything.
        end: special tokens after everything.
        mask: the mask's token; None: nothing stands for the word, it comes next.
        word_ids: the token of each label's word.
        special: tokens that a text may not bring.
        spaced: slots of texts that follow a space.
    """

    parts: tuple[str | tuple[int, ...], ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    mask: int | None
    word_ids: tuple[int, ...]
    special: frozenset[int]
    spaced: frozenset[str]

    @property
    def num_fixed(self) -> int:
        """Tokens of a row that no text fills."""
        shared = sum(len(part) for part in self.parts if not isinstance(part, str))
        return len(self.begin) + shared + len(self.end) + (self.mask is not None)


def make_prompt(
    tokenizer: Any, *, template: str, words: Sequence[str], pairs: bool, next_word: bool, max_length: int
) -> Prompt:
    """Check a template and the labels' words against a tokenizer.

    Args:
        tokenizer: the model's.
        template: with slots `{text}`, `{mask}`, and `{text_b}` where rows are pairs.
        words: one for each label.
        pairs: whether rows are pairs.
        next_word: whether the word comes next instead of standing in a mask.
        max_length: tokens of a row.

    Raises:
        ConfigError[text-template]: a slot is missing, doubled or unknown, text follows a next word, or the
            template leaves no room for texts.
        ConfigError[label-words]: a word is unknown to the tokenizer, takes several tokens, or stands for two
            labels.
        ConfigError[text-model]: masks are needed, and the tokenizer has none.
    """
    pieces = [piece for piece in re.split(r"(\{[^{}]*\})", template) if piece]
    _check_slots(template, [p for p in pieces if p.startswith("{")], pairs=pairs)
    if next_word and pieces[-1] != "{mask}":
        raise ConfigError(
            f"The template {template!r} goes on after {{mask}}, and a decoder predicts the next word from "
            "what stands before it: end with {mask}, or set objective = mask for an encoder.",
            code="text-template",
        )
    if not next_word and tokenizer.mask_token_id is None:
        raise ConfigError(
            "The model's tokenizer has no mask token, so it fills no masks. Set objective = prompt for a "
            "decoder, or objective = head.",
            code="text-model",
        )
    parts, spaced = _parts(tokenizer, pieces)
    begin, end = _around(tokenizer, next_word=next_word)
    prompt = Prompt(
        parts=tuple(part for part in parts if not (next_word and part == "{mask}")),
        begin=begin,
        end=end,
        mask=None if next_word else tokenizer.mask_token_id,
        word_ids=_word_ids(tokenizer, words, spaced="{mask}" in spaced),
        special=frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id},
        spaced=frozenset(spaced),
    )
    if max_length < prompt.num_fixed + 1 + pairs:
        raise ConfigError(
            f"The template {template!r} takes {prompt.num_fixed} of max_length = {max_length} tokens and "
            "leaves no room for texts: raise max_length, or shorten it.",
            code="text-template",
        )
    return prompt


def prompted(
    tokenizer: Any, prompt: Prompt, rows: Labelled, max_length: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """Token ids and attention mask, padded on the right, and where each row's word is predicted."""
    room = max_length - prompt.num_fixed
    firsts = _text_ids(tokenizer, rows.texts, prompt, "{text}")
    seconds = [[]] * len(rows)
    if rows.seconds is not None:
        seconds = _text_ids(tokenizer, rows.seconds, prompt, "{text_b}")
    ids_BT = torch.full((len(rows), max_length), tokenizer.pad_token_id)
    mask_BT = torch.zeros((len(rows), max_length), dtype=torch.int64)
    at_B = torch.zeros(len(rows), dtype=torch.int64)
    for b, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        ids, at = _row(prompt, *_cut(first, second, room))
        ids_BT[b, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask_BT[b, : len(ids)] = 1
        at_B[b] = at
    return ids_BT, mask_BT, at_B


def _row(prompt: Prompt, first: list[int], second: list[int]) -> tuple[list[int], int]:
    ids, at = list(prompt.begin), 0
    for part in prompt.parts:
        if part == "{mask}":
            at = len(ids)
            assert prompt.mask is not None
            ids.append(prompt.mask)
        else:
            ids += {"{text}": first, "{text_b}": second}[part] if isinstance(part, str) else part
    ids += prompt.end
    return ids, len(ids) - 1 if prompt.mask is None else at


def _cut(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """The longer one loses its end first."""
    over = len(first) + len(second) - room
    if over <= 0:
        return first, second
    even = room // 2
    if len(second) <= even:
        return first[: room - len(second)], second
    if len(first) <= room - even:
        return first, second[: room - len(first)]
    return first[: room - even], second[:even]


def _text_ids(tokenizer: Any, texts: Sequence[str], prompt: Prompt, slot: str) -> list[list[int]]:
    space = " " if slot in prompt.spaced else ""
    spaced = [space + text for text in texts]
    made = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    return [[i for i in ids if i not in prompt.special] for ids in made]


def _check_slots(template: str, slots: list[str], *, pairs: bool) -> None:
    wanted = ["{text}", "{mask}"] + ["{text_b}"] * pairs
    wrong = [
        *(f"it has no {slot}" for slot in wanted if slot not in slots),
        *(f"it has {slot} {slots.count(slot)} times" for slot in _SLOTS if slots.count(slot) > 1),
        *(f"{slot} is no slot" for slot in dict.fromkeys(slots) if slot not in _SLOTS),
    ]
    if "{text_b}" in slots and not pairs:
        wrong.append("it has {text_b}, and rows are single texts: name pair_column")
    if wrong:
        raise ConfigError(
            f"The template {template!r} does not fit: {'; '.join(wrong)}. Write e.g. '{{text}} It was "
            "{mask}.', or for pairs '{text}? {mask}, {text_b}'.",
            code="text-template",
        )


def _parts(tokenizer: Any, pieces: list[str]) -> tuple[list[str | tuple[int, ...]], set[str]]:
    """Shared pieces as tokens; a space before a slot goes over to what fills it."""
    parts: list[str | tuple[int, ...]] = []
    spaced: set[str] = set()
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        if piece in _SLOTS:
            parts.append(piece)
            continue
        kept = piece.rstrip() if after in _SLOTS else piece
        if kept != piece:
            spaced.add(after)
        if kept:
            parts.append(tuple(tokenizer(kept, add_special_tokens=False)["input_ids"]))
    return parts, spaced


def _around(tokenizer: Any, *, next_word: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens that the tokenizer puts around a text; none after one that goes on."""
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [k for k in range(len(whole) - len(inside) + 1) if whole[k : k + len(inside)] == inside]
    assert starts, "a text's tokens do not depend on the special tokens around it"
    begin, end = whole[: starts[0]], whole[starts[0] + len(inside) :]
    return tuple(begin), () if next_word else tuple(end)


def _word_ids(tokenizer: Any, words: Sequence[str], *, spaced: bool) -> tuple[int, ...]:
    found = []
    for word in words:
        ids = tokenizer((" " if spaced else "") + word, add_special_tokens=False)["input_ids"]
        if not ids or tokenizer.unk_token_id in ids:
            raise ConfigError(
                f"The label word {word!r} is not in the tokenizer's vocabulary. Choose another one.",
                code="label-words",
            )
        if len(ids) > 1:
            raise ConfigError(
                f"The label word {word!r} takes {len(ids)} tokens, and one is predicted. Choose a word that "
                "is one token of this model.",
                code="label-words",
            )
        found += ids
    if len(set(found)) < len(found):
        raise ConfigError(
            f"Two of the label words {', '.join(words)} are one token to this model. Choose different ones.",
            code="label-words",
        )
    return tuple(found)
