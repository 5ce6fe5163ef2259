"""Log-likelihoods of token rows under a causal language model, and the perplexity of a text collection.

Room: recipes.text. Imports torch only; a model is anything that returns `.logits`.

Shape letters: B row, T position, N positions of all rows, H hidden, V vocabulary.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reticent.errors import ConfigError

IGNORED = -100  # the label of a position whose token is not scored, as in transformers
_LOGITS_AT_ONCE = 1 << 23  # numbers

Rows = tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "B T"]]


def token_losses(logits_BTV: Float[Tensor, "B T V"], labels_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """-log p of each next token in nats, float32 at least; 0 where its label is `IGNORED`."""
    losses_N = _cross_entropies(
        logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1]), labels_BT[:, 1:].flatten()
    )
    return losses_N.view(labels_BT.shape[0], -1)


def _cross_entropies(logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    logits_NV = logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="none")


def token_losses_in_parts(
    hidden_BTH: Float[Tensor, "B T H"], head: nn.Linear, labels_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "B T-1"]:
    """`token_losses` of the head's logits, which are formed some rows at a time and not kept.

    A head that is trained privately has a rule for that, which needs torch 2.13; before, and where a head is
    trained without privacy, the logits are whole.
    """
    hidden_NH, labels_N = hidden_BTH[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if trains and not hasattr(F, "linear_cross_entropy"):
        return token_losses(head(hidden_BTH), labels_BT)
    if trains:
        losses_N = F.linear_cross_entropy(
            hidden_NH,
            head.weight,
            labels_N,
            linear_bias=head.bias,
            reduction="none",
            ignore_index=IGNORED,
        )
        return losses_N.view(len(labels_BT), -1)

    def losses_of(hidden_NH: Tensor, labels_N: Tensor) -> Tensor:
        return _cross_entropies(head(hidden_NH), labels_N)

    size = max(1, _LOGITS_AT_ONCE // head.out_features)
    parts = [
        checkpoint(losses_of, hidden, labels, use_reentrant=False, preserve_rng_state=False)
        for hidden, labels in zip(hidden_NH.split(size), labels_N.split(size), strict=True)
    ]
    return torch.cat(parts).view(len(labels_BT), -1)


@torch.no_grad()
def row_losses(model: nn.Module, rows: Rows) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Each row's summed -log p over its labelled tokens, and the number of those tokens.

    Args:
        model: a causal language model in eval mode.
        rows: token ids, attention mask, and labels (`IGNORED` where not scored). A row's
            first token is never scored, because nothing precedes it.
    """
    ids_BT, mask_BT, labels_BT = rows
    # Left padding shifts positions; counting them from the mask makes the side of padding irrelevant.
    positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
    logits = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
    after_token_BT = F.pad(mask_BT[:, :-1], (1, 0)).bool()  # else padding on the left would predict the first
    labels_BT = labels_BT.masked_fill(~after_token_BT, IGNORED)
    losses = token_losses(logits, labels_BT)
    return losses.sum(1), (labels_BT[:, 1:] != IGNORED).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How well a model predicts a collection of texts.

    Args:
        perplexity: e to the mean loss; weighted by tokens, so a long text counts more than a short one.
        loss: mean -log p a token, in nats.
        num_tokens: how many tokens were predicted.
        num_texts: how many rows had at least one.
    """

    perplexity: float
    loss: float
    num_tokens: int
    num_texts: int


def perplexity(model: nn.Module, batches: Iterable[Rows]) -> Perplexity:
    """Perplexity over all labelled tokens of all rows.

    Args:
        model: a causal language model; put in eval mode meanwhile.
        batches: rows as for `row_losses`.

    Raises:
        ConfigError[text-no-tokens]: no row has a token to predict.
    """
    total, num_tokens, num_texts = 0.0, 0, 0
    with evaluating(model):
        for rows in batches:
            losses_B, counts_B = row_losses(model, rows)
            total += float(losses_B.double().sum())
            num_tokens += int(counts_B.sum())
            num_texts += int((counts_B > 0).sum())
    if num_tokens == 0:
        raise ConfigError(
            "Perplexity needs at least one token to predict; every row is empty or all source.",
            code="text-no-tokens",
        )
    loss = total / num_tokens
    return Perplexity(
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        loss=loss,
        num_tokens=num_tokens,
        num_texts=num_texts,
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside, each module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def text_rows(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Iterator[Rows]:
    """Whole texts as rows where every token is a label, cut to `max_length` tokens.

    The tokenizer's own begin and end tokens are added as it does by itself. Padding stands on the right and
    is masked.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked, so any id will do
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(list(texts[start : start + batch_size]), truncation=True, max_length=max_length)
        yield padded(encoded["input_ids"], pad=pad, device=device)


def padded(
    ids: Sequence[Sequence[int]],
    *,
    pad: int,
    num_source: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Rows:
    """Rows of different lengths, right-padded; labels leave out padding and the first `num_source` tokens."""
    longest = max([1, *map(len, ids)])
    shape = (len(ids), longest)
    ids_BT = torch.full(shape, pad, dtype=torch.long)
    mask_BT = torch.zeros(shape, dtype=torch.long)
    labels_BT = torch.full(shape, IGNORED, dtype=torch.long)
    for b, row in enumerate(ids):
        skip = num_source[b] if num_source else 0
        ids_BT[b, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask_BT[b, : len(row)] = 1
        labels_BT[b, skip : len(row)] = ids_BT[b, skip : len(row)]
    return ids_BT.to(device), mask_BT.to(device), labels_BT.to(device)


@torch.no_grad()
def log_likelihoods(
    model: Any, tokenizer: Any, sentences: Sequence[str], *, batch_size: int = 256
) -> list[float]:
    """log p of each whole sentence in nats; what all of them begin with is read once.

    Meant for many sentences that differ at their ends, as the candidates of a planted secret do. The first
    token is given, not scored. An end token that the tokenizer puts after every text is left out, so that a
    sentence may be cut anywhere.

    Args:
        model: a causal language model of transformers; put in eval mode meanwhile.
        tokenizer: its tokenizer.
        sentences: texts of at least two tokens.
        batch_size: sentences at once.

    Raises:
        ConfigError[text-no-tokens]: a sentence has fewer than two tokens.
    """
    rows = [open_ended(tokenizer, sentence) for sentence in sentences]
    if any(len(row) < 2 for row in rows):
        raise ConfigError("A sentence to score needs at least two tokens.", code="text-no-tokens")
    device = next(model.parameters()).device
    shared = _shared(rows)
    with evaluating(model):
        if shared == 0:
            chunks = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
            return [
                -s
                for chunk in chunks
                for s in row_losses(model, padded(chunk, pad=0, device=device))[0].tolist()
            ]
        head_1T = torch.tensor([rows[0][:shared]], device=device)
        read = model(input_ids=head_1T, use_cache=True)
        begun = -float(token_losses(read.logits, head_1T).sum())
        scores: list[float] = []
        for start in range(0, len(rows), batch_size):
            ends = [row[shared:] for row in rows[start : start + batch_size]]
            scores += [begun + end for end in _ends(model, read, ends, device)]
    return scores


def open_ended(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, without the end token that some tokenizers put after every text."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])  # else a log would tell how long a long one is
    while ids and ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()
    return ids


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, at least one of each row left over."""
    most = min(map(len, rows)) - 1
    return next((t for t in range(most) if len({row[t] for row in rows}) > 1), most)


def _ends(model: Any, read: Any, ends: Sequence[Sequence[int]], device: torch.device) -> list[float]:
    """log p of each end, given what was read before."""
    ids_BT, mask_BT, labels_BT = padded(ends, pad=0, device=device)
    cache = copy.deepcopy(read.past_key_values)
    num_read = cache.get_seq_length()
    cache.batch_repeat_interleave(len(ends))
    seen_BT = F.pad(mask_BT, (num_read, 0), value=1)
    positions_BT = torch.arange(num_read, num_read + ids_BT.shape[1], device=device).expand_as(ids_BT)
    logits = model(
        input_ids=ids_BT, attention_mask=seen_BT, position_ids=positions_BT, past_key_values=cache
    ).logits
    logits = torch.cat([read.logits[:, -1:].expand(len(ends), -1, -1), logits], 1)
    return (-token_losses(logits, F.pad(labels_BT, (1, 0), value=IGNORED)).double().sum(1)).tolist()
